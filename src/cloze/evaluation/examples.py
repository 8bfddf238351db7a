"""What a model does with held-out text: blanks it fills, beginnings it goes on with, tokens it judges."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cloze.data.batch import Batch
from cloze.data.tokenizers import sentinels_of
from cloze.evaluation.heldout import SEED, HeldOutSet
from cloze.masking.plan import MaskPlan
from cloze.methods.base import Method
from cloze.methods.infilling import Infilling
from cloze.methods.token_prediction import TokenPrediction

NUMBER = 6
SHOWN = 60  # tokens of a sample with blanks
PROMPT, CONTINUATION = 24, 24  # tokens
_SENTINEL = re.compile(r"⟨\d+⟩")
IN_A_LINE = 40  # tokens of a judged sample in a terminal


@torch.no_grad()
def examples(
    held_out: HeldOutSet, method: Method[Any], tokenizer: PreTrainedTokenizerFast
) -> list[dict[str, Any]]:
    """Some held-out samples as a method reads them.

    Blanks, of a main method that predicts hidden tokens: `tokens`, those that were hidden with the model's
    guesses. Continuations, of a model that goes out as a decoder: `tokens` that it was given, the greedy
    `continuation` by transformers' own `generate`, and the text's own, `truth`. One with both readings has
    both. Judgements: `judged`, `tokens` as the model got them with the probability `p` that they are
    replaced, and where they are also the `original` one. Spans: `tokens` with sentinels in place of what was
    hidden, the greedy `answer`, and `truth`.
    """
    main, training = method.main, method.training
    method.eval()
    batch, plan = next(held_out.items())
    found = []
    if isinstance(main, Infilling):
        found += _answered(batch, main, tokenizer)
    elif not main.predicts_tokens:
        found += _judged(batch, plan, main, tokenizer)
    elif isinstance(main, TokenPrediction) and not main.everywhere:
        found += _filled(batch, plan, main, tokenizer)
    if method.reading == "causal" and "causal" in method.readings:
        device = next(method.parameters()).device
        found += _continued(batch, method.export().to(device).eval(), tokenizer)  # type: ignore[arg-type]
    method.train(training)
    return found


def in_words(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(kind, text) of the first example of each kind, for a terminal."""
    shown: dict[str, str] = {}
    for example in found:
        texts = [_token_in_words(token) for token in example["tokens"]]
        if "judged" in example:
            shown.setdefault("judged", "".join(map(_judgement, example["tokens"][:IN_A_LINE])))
        elif "answer" in example:
            shown.setdefault("written", _with_spans("".join(texts).strip(), example))
        elif "continuation" in example:
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


def _judgement(token: dict[str, Any]) -> str:
    """The token; [text<original] a replaced one that was found, (text<original) one that was not, {text} an
    original one that was taken for replaced.
    """
    text, replaced, said = token["text"], "original" in token, token["p"] > 0.5
    if not (replaced or said):
        return str(text)
    space = text[: len(text) - len(text.lstrip())]
    core = text.strip() + (f"<{token['original'].strip()}" if replaced else "")
    left, right = ("[", "]") if replaced and said else ("(", ")") if replaced else ("{", "}")
    return f"{space}{left}{core}{right}"


def _with_spans(text: str, example: dict[str, Any]) -> str:
    """The text with [ANSWER] for each sentinel, and the right words where they are others."""
    answers, truths = (_spans(example[name]) for name in ("answer", "truth"))

    def span(found: re.Match[str]) -> str:
        answer, truth = (spans.get(found[0], "") for spans in (answers, truths))
        return f"[{answer}]" if answer == truth else f"[{answer}, not {truth}]"

    return _SENTINEL.sub(span, text)


def _spans(text: str) -> dict[str, str]:
    """{sentinel: words behind it} of an answer."""
    sentinels, words = _SENTINEL.findall(text), _SENTINEL.split(text)[1:]
    return {name: part.strip() for name, part in zip(sentinels, words, strict=True)}


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


def _judged(
    batch: Batch, plan: MaskPlan, method: Method[Any], tokenizer: PreTrainedTokenizerFast
) -> list[dict[str, Any]]:
    """The beginnings of some samples as the method got them, with its judgement of each token."""
    device = next(method.parameters()).device
    work = method.examine(batch.to(device), plan.to(device), SEED)
    feedback = {name: x.cpu() for name, x in method(work).feedback.items()}
    targets = work.targets.cpu()
    segment, index = batch.segments.flatten()[targets], batch.index.flatten()[targets]
    original, found = batch.ids.flatten()[targets], []
    for sample in _spread(batch.samples):
        tokens = []
        for i in ((segment == sample) & (index < SHOWN)).nonzero().flatten().tolist():
            token: dict[str, Any] = {"text": tokenizer.decode([int(feedback["seen"][i])])}
            token["p"] = round(float(feedback["logits"][i].sigmoid()), 4)
            if feedback["labels"][i]:
                token["original"] = tokenizer.decode([int(original[i])])
            tokens.append(token)
        if tokens:
            found.append({"judged": True, "tokens": tokens})
    return found


def _answered(batch: Batch, method: Infilling, tokenizer: PreTrainedTokenizerFast) -> list[dict[str, Any]]:
    """Some samples with hidden spans, what the model writes for them, and what stood there."""
    sizes = torch.bincount(batch.segments[batch.segments >= 0], minlength=batch.samples)
    long = (sizes >= min(PROMPT, int(sizes.max()))).nonzero().flatten().tolist()
    device = method.encoder.vocabulary.weight.device
    found = []
    for number in [long[i] for i in _spread(len(long))]:
        row = int((batch.segments == number).any(1).nonzero()[0])
        inside = batch.segments[row] == number
        one = batch.take(torch.tensor([row]))
        one = replace(
            one,
            **{n: getattr(one, n)[:, inside] for n in ("ids", "index", "units", "maskable")},
            segments=torch.zeros_like(one.segments[:, inside]),
            keys=batch.keys[number : number + 1],
            visits=batch.visits[number : number + 1],
        ).to(device)
        given, answer, truth = (_words(tokenizer, x) for x in method.answer(one, SEED))
        if truth:
            tokens = [{"text": text} for text in given]
            found.append({"tokens": tokens, "answer": "".join(answer), "truth": "".join(truth)})
    return found


def _words(tokenizer: PreTrainedTokenizerFast, ids: Tensor) -> list[str]:
    """Tokens in words, sentinels as ⟨0⟩, ⟨1⟩, …, without the other special tokens."""
    sentinels = sentinels_of(tokenizer)
    others = set(tokenizer.all_special_ids) - set(sentinels)
    return [
        f" ⟨{sentinels.index(i)}⟩" if i in sentinels else str(tokenizer.decode([i]))
        for i in ids.tolist()
        if i not in others
    ]


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
