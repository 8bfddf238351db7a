"""What was learnt, in words: losses by word and by frequency, and examples (`examples.py`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cloze.evaluation.examples import examples
from cloze.evaluation.heldout import HeldOutResult, HeldOutSet, unigram_losses
from cloze.methods.base import Method

_BANDS = (10, 100, 1000, 10_000, 100_000)  # ranks by frequency in the training text


def samples(
    held_out: HeldOutSet,
    method: Method[Any],
    tokenizer: PreTrainedTokenizerFast,
    counts: np.ndarray,
    initial: Tensor | None,
    result: HeldOutResult,
) -> dict[str, Any]:
    """The content of samples.json.

    Args:
        held_out: what `result` was measured on.
        method: the trained one.
        counts: [vocabulary], frequency of each id in the training text.
        initial: [N] losses before the first step, if they are known.
        result: losses after the last one.
    """
    if not method.main.predicts_tokens:
        return {"words": [], "frequency": [], "examples": examples(held_out, method, tokenizer)}
    unigram = unigram_losses(result.labels, counts)
    return {
        "words": _words(tokenizer, result, initial, unigram),
        "frequency": _bands(counts, result, unigram),
        "examples": examples(held_out, method, tokenizer),
    }


def _words(
    tokenizer: PreTrainedTokenizerFast, result: HeldOutResult, initial: Tensor | None, unigram: Tensor
) -> list[dict[str, Any]]:
    ids, inverse, count = result.labels.unique(return_inverse=True, return_counts=True)

    def mean(values: Tensor) -> list[float]:
        return (torch.zeros(ids.numel()).index_add_(0, inverse, values.float()) / count).tolist()

    columns = {
        "count": count.tolist(),
        "unigram_loss": mean(unigram),
        "loss": mean(result.losses),
        "accuracy": mean(result.correct),
    }
    if initial is not None and initial.numel() == result.losses.numel():
        columns["loss_initial"] = mean(initial)
    chosen = count.argsort(descending=True, stable=True)[:400].tolist()
    return [
        {"word": tokenizer.decode([int(ids[i])])}
        | {name: _round(values[i]) for name, values in columns.items()}
        for i in chosen
    ]


def _bands(counts: np.ndarray, result: HeldOutResult, unigram: Tensor) -> list[dict[str, Any]]:
    rank = np.empty(counts.size, np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(counts.size)
    mine = torch.from_numpy(rank)[result.labels]
    bands, low = [], 0
    for high in (b for b in (*_BANDS, counts.size) if b <= max(_BANDS[0], counts.size)):
        inside = (mine >= low) & (mine < high)
        if bool(inside.any()):
            bands.append(
                {
                    "label": f"{low + 1}-{high}",
                    "tokens": int(inside.sum()),
                    "unigram_loss": _round(unigram[inside].mean().item()),
                    "loss": _round(result.losses[inside].mean().item()),
                    "accuracy": _round(result.correct[inside].float().mean().item()),
                }
            )
        low = high
    return bands


def _round(value: float) -> float:
    return round(value, 4)
