"""What a model does with held-out text: blanks that it fills, or beginnings that it goes on with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cloze.data.batch import Batch
from cloze.evaluation.heldout import SEED, HeldOutSet
from cloze.masking.plan import MaskPlan
from cloze.methods.base import Method
from cloze.methods.token_prediction import TokenPrediction

NUMBER = 6
SHOWN = 60  # tokens of a sample with blanks
PROMPT, CONTINUATION = 24, 24  # tokens


@torch.no_grad()
def examples(
    held_out: HeldOutSet, method: Method[Any], tokenizer: PreTrainedTokenizerFast
) -> list[dict[str, Any]]:
    """Some held-out samples as a method reads them; empty for methods that predict no tokens of the text.

    Blanks, of a main method that predicts hidden tokens: `tokens`, those that were hidden with the model's
    guesses. Continuations, of a model that goes out as a decoder: `tokens` that it was given, the greedy
    `continuation` by transformers' own `generate`, and the text's own, `truth`. One with both readings has
    both.
    """
    main, training = method.main, method.training
    method.eval()
    batch, plan = next(held_out.items())
    found = []
    if isinstance(main, TokenPrediction) and not main.everywhere:
        found += _filled(batch, plan, main, tokenizer)
    if method.reading == "causal" and "causal" in method.readings:
        device = next(method.parameters()).device
        found += _continued(batch, method.export().to(device).eval(), tokenizer)  # type: ignore[arg-type]
    method.train(training)
    return found


def in_words(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(kind, text) of the first example of each kind, for a terminal."""
    shown = {}
    for example in found:
        texts = [_token_in_words(token) for token in example["tokens"]]
        if "continuation" in example:
            text = f"{''.join(texts).strip()} >>>{_spaced(example['continuation'])}"
            shown.setdefault("continued", text)
        else:
            shown.setdefault("blanks", "".join(texts).strip())
    return [(kind, " ".join(text.split())) for kind, text in shown.items()]


def _token_in_words(token: dict[str, Any]) -> str:
    """The token; a hidden one as [GUESS], with the right one where it is another."""
    text = str(token["text"])
    if not token.get("masked"):
        return text
    best, space = token["guesses"][0], " " if text.startswith(" ") else ""
    own = best["text"].strip()
    return f"{space}[{own}]" if best["right"] else f"{space}[{own}, not {text.strip()}]"


def _spaced(text: str) -> str:
    return text if text.startswith(" ") else f" {text}"


def _filled(
    batch: Batch, plan: MaskPlan, method: TokenPrediction, tokenizer: PreTrainedTokenizerFast
) -> list[dict[str, Any]]:
    """The beginnings of some samples, with the model's guesses at the hidden tokens."""
    layer = method.encoder.vocabulary
    device = layer.weight.device
    work = method.examine(batch, plan, SEED)
    chosen = _spread(batch.samples)
    segment, index = batch.segments.flatten(), batch.index.flatten()
    wanted = torch.isin(segment[work.targets], torch.tensor(chosen)) & (index[work.targets] < SHOWN)
    features = method.encoder(work.views[0].to(device), work.places[wanted].to(device)).features
    logits = torch.nn.functional.linear(features, layer.weight, layer.bias).float()
    top = logits.softmax(-1).topk(5)
    ids = batch.ids.flatten().tolist()
    rows = zip(work.targets[wanted].tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    guesses = {
        place: [
            {"text": tokenizer.decode([i]), "p": round(p, 4), "right": i == ids[place]}
            for i, p in zip(top_ids, ps, strict=True)
        ]
        for place, top_ids, ps in rows
    }
    found = []
    for sample in chosen:
        inside = ((segment == sample) & (index >= 0) & (index < SHOWN)).nonzero()
        tokens = []
        for place in inside.flatten().tolist():
            token: dict[str, Any] = {"text": tokenizer.decode([ids[place]])}
            if place in guesses:
                token |= {"masked": True, "guesses": guesses[place]}
            tokens.append(token)
        if tokens:
            found.append({"tokens": tokens})
    return found


def _continued(
    batch: Batch, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> list[dict[str, Any]]:
    """The beginnings of some samples, a decoder's greedy continuations, and how the text goes on."""
    sizes = torch.bincount(batch.segments[batch.segments >= 0], minlength=batch.samples)
    long = (sizes > PROMPT + CONTINUATION).nonzero().flatten().tolist()
    chosen = [batch.ids[batch.segments == long[i]] for i in _spread(len(long))]
    if not chosen:
        return []
    prompts = torch.stack([ids[:PROMPT] for ids in chosen])
    continuations = generated(model, prompts, tokenizer, CONTINUATION)
    found = []
    for ids, prompt, continuation in zip(chosen, prompts, continuations, strict=True):
        texts = {"continuation": continuation, "truth": ids[PROMPT : PROMPT + CONTINUATION]}
        given = [i for i in prompt.tolist() if i not in tokenizer.all_special_ids]
        found.append(
            {"tokens": [{"text": tokenizer.decode([i])} for i in given]}
            | {name: tokenizer.decode(x, skip_special_tokens=True) for name, x in texts.items()}
        )
    return found


@torch.no_grad()
def generated(
    model: PreTrainedModel, prompts: Tensor, tokenizer: PreTrainedTokenizerFast, count: int
) -> Tensor:
    """[prompts, up to `count`] int64, the most probable next tokens after prompts [prompts, length]."""
    ids = prompts.to(model.device)
    made = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    return made[:, ids.shape[1] :].cpu()


def _spread(count: int) -> list[int]:
    """Up to `NUMBER` of the numbers 0 … count - 1, evenly."""
    return np.unique(np.linspace(0, count - 1, min(NUMBER, count)).astype(int)).tolist() if count else []
