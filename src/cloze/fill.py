"""Using a trained model: fill blanks, go on with a text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cloze.data.loader import special_tokens
from cloze.data.tokenizers import load_tokenizer
from cloze.errors import ClozeError
from cloze.evaluation.examples import generated
from cloze.models.build import load_causal_lm, load_masked_lm, reads_causally
from cloze.models.encoder import position_offset


@dataclass(frozen=True, slots=True)
class Guess:
    """One guess for a blank: its probability, the token, and the text with the token in place."""

    probability: float
    token: str
    text: str


def model_folder(run_or_model: str | Path) -> str:
    """The model folder of a run; a model folder or hub id is returned as it is.

    Errors: a folder that is neither.
    """
    folder = Path(run_or_model).expanduser()
    if not folder.is_dir():
        return str(run_or_model)
    if (folder / "config.json").is_file():
        return str(folder)
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    raise ClozeError(f"{folder} holds neither a run nor a model")


@torch.no_grad()
def fill_blanks(run_or_model: str, text: str, top: int = 5) -> list[list[Guess]]:
    """The most probable tokens for each blank of `text`, which are [MASK] or the tokenizer's mask token.

    A run that trained a decoder with masks as well (`gpt-bert`) reads the text from both sides.

    Errors: no blank in the text, a text that is too long, a model without a mask token, a causal one.
    """
    path = model_folder(run_or_model)
    tokenizer = load_tokenizer(path)
    text = text.replace("[MASK]", tokenizer.mask_token)
    if tokenizer.mask_token not in text:
        raise ClozeError(
            f"there is no blank in the text: write [MASK] (or {tokenizer.mask_token}) where one is"
        )
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
    logits = _decoded(run_or_model, ids) if reads_causally(path) else _read(path, tokenizer, ids)
    blanks = (ids == tokenizer.mask_token_id).nonzero().flatten().tolist()
    found = []
    for blank in blanks:
        p, tokens = logits[blank].softmax(-1).topk(min(top, logits.shape[-1]))
        found.append(
            [
                _guess(tokenizer, ids.tolist(), blank, t, q)
                for t, q in zip(tokens.tolist(), p.tolist(), strict=True)
            ]
        )
    return found


def _read(path: str, tokenizer: PreTrainedTokenizerFast, ids: Tensor) -> Tensor:
    """[tokens, vocabulary] float32 logits of a masked language model, of `ids` [tokens]."""
    model = load_masked_lm(path).eval()
    most = getattr(model.config, "max_position_embeddings", None) or 2**31
    limit = min(tokenizer.model_max_length, most - position_offset(model.config))
    if ids.numel() > limit:
        raise ClozeError(f"the text has {ids.numel():,} tokens, the model takes {limit:,}: shorten it")
    logits: Tensor = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits
    return logits[0].float()


def _decoded(run_or_model: str, ids: Tensor) -> Tensor:
    """The same of a decoder, seen from both sides; errors: its run did not train it so."""
    from cloze.evaluation.readings import readable
    from cloze.evaluation.subject import Subject
    from cloze.reading import Reader

    found = readable(Subject(run_or_model))
    if "masked" not in found.shifts:
        raise ClozeError(_causal(run_or_model))
    logits = Reader(found.encoder, model_folder(run_or_model)).logits(ids)
    return logits.roll(found.shifts["masked"], 0).cpu()


def _causal(name: str) -> str:
    return (
        f"{name}: a causal language model, which predicts next tokens and fills no blanks: give the "
        "beginning of a text without [MASK], and it goes on with it"
    )


def continuation(run_or_model: str, text: str, count: int = 30) -> str:
    """A text with what a causal language model goes on with: the most probable token, `count` times.

    Errors: a blank in the text, a text that is too long.
    """
    path = model_folder(run_or_model)
    tokenizer = load_tokenizer(path, needs_mask=False)
    if "[MASK]" in text or (tokenizer.mask_token is not None and tokenizer.mask_token in text):
        raise ClozeError(_causal(path))
    model = load_causal_lm(path).eval()
    _, behind = special_tokens(tokenizer)
    ids = tokenizer(text)["input_ids"]
    ids = ids[: len(ids) - len(behind)]
    if not ids or (ids[0] not in tokenizer.all_special_ids and tokenizer.bos_token_id is not None):
        ids = [tokenizer.bos_token_id, *ids]
    most = getattr(model.config, "max_position_embeddings", None) or 2**31
    if len(ids) + count > most:
        raise ClozeError(f"the text has {len(ids):,} tokens, the model takes {most - count:,}: shorten it")
    made = generated(model, torch.tensor([ids]), tokenizer, count)[0]
    return (
        text
        + str(tokenizer.decode([*ids, *made.tolist()], skip_special_tokens=True))[
            len(str(tokenizer.decode(ids, skip_special_tokens=True))) :
        ]
    )


def _guess(tokenizer: Any, ids: list[int], blank: int, token: int, probability: float) -> Guess:
    filled = [*ids[:blank], token, *ids[blank + 1 :]]
    keep = [i for i in filled if i == tokenizer.mask_token_id or i not in tokenizer.all_special_ids]
    # A mask token may take the space before it along.
    whole = re.sub(
        rf"(?<=\S){re.escape(tokenizer.mask_token)}", f" {tokenizer.mask_token}", tokenizer.decode(keep)
    )
    return Guess(probability, tokenizer.decode([token]).strip(), whole.strip())
