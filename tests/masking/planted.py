"""Made-up gradient norms with a known mean square: what proposals learn from, and are let in by."""

from __future__ import annotations

from dataclasses import replace

import torch
from helpers import make_samples, pack
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking.base import Policy, Seen
from cloze.methods.base import select

WORDS = 24
_DRAW = torch.Generator().manual_seed(1)
OWN, LEFT = torch.randn(WORDS, generator=_DRAW).double(), 0.7 * torch.randn(WORDS, generator=_DRAW).double()


def text(rows: int, seed: int, visit: int = 0) -> Batch:
    """Rows of two packed samples of 14 and 12 tokens."""
    pairs = [
        [make_samples([n], 2000 * seed + 2 * r + i, WORDS)[0] for i, n in enumerate((14, 12))]
        for r in range(rows)
    ]
    batch = pack(pairs, 32)
    return replace(batch, visits=torch.full_like(batch.visits, visit))


def by_words(batch: Batch) -> Tensor:
    """[rows, length] mean square that depends on the token and on its left neighbour."""
    left = torch.zeros_like(batch.ids)
    left[:, 1:] = batch.ids[:, :-1]
    return (OWN[batch.ids] + LEFT[left]).exp()


def alike(batch: Batch) -> Tensor:
    """[rows, length] mean square that is the same everywhere."""
    return torch.ones_like(batch.ids, dtype=torch.float64)


def seen(
    policy: Policy, batch: Batch, mean_square: Tensor, noise: torch.Generator, spread: float = 1.0
) -> Seen:
    """What a step shows: squares with their planted mean, times log-normal noise with mean 1."""
    plan = policy.plan(batch, 0.3, 0)
    places, _, weights = select(plan, batch)
    z = torch.randn(places.numel(), generator=noise, dtype=torch.float64)
    square = mean_square.flatten()[places] * (spread * z - spread**2 / 2).exp()
    return Seen(batch, plan, places, weights, {"hidden_gradient": square.sqrt().float()})


def saving(score: Tensor, mean_square: Tensor, batch: Batch) -> float:
    """Share of the second moment that drawing in proportion to `score` [rows, length] saves."""
    of, count = batch.segments[batch.maskable], torch.bincount(batch.segments[batch.maskable])
    total = torch.zeros(count.numel(), dtype=torch.float64).index_add_(0, of, score[batch.maskable].double())
    q, t = score[batch.maskable] / (total / count)[of], mean_square[batch.maskable]
    return 1.0 - float((t / q).sum() / t.sum())
