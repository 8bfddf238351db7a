"""Draw a fixed number of units of each sample, with known inclusion probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking.plan import MaskPlan
from cloze.masking.units import Units
from cloze.random import Stream, bits, uniform


def group_by_sample(sample: Tensor, score: Tensor) -> Tensor:
    """[units] int64: the units ordered by score within each sample; `sample` is ascending."""
    order = score.argsort(stable=True)
    return order[sample[order].argsort(stable=True)]


def rank_within(sample: Tensor, score: Tensor) -> Tensor:
    """Rank (0 = lowest score) of each unit among the units of its sample; `sample` is ascending."""
    order = group_by_sample(sample, score)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel(), device=order.device)
    sizes = torch.bincount(sample)
    return rank - (sizes.cumsum(0) - sizes)[sample]


def counts(batch: Batch, units: Units, rate: float, seed: int) -> tuple[Tensor, Tensor]:
    """Units drawn of each sample, [samples] int64, and the probability of each unit, [samples] float64.

    A sample of n units hides rate·n of them, rounded up or down at random so that the expectation is
    exact, and at least one: p = max(rate, 1/n).
    """
    sizes = torch.bincount(units.sample, minlength=batch.samples)
    u = uniform(seed, Stream.COUNT, batch.keys, batch.visits)
    count = (sizes.to(torch.float64) * rate + u).floor().to(torch.int64)
    p = (1.0 / sizes.clamp(min=1).to(torch.float64)).clamp(min=rate)
    return torch.minimum(count.clamp(min=1), sizes), p


def uniform_draw(batch: Batch, units: Units, rate: float, seed: int) -> MaskPlan:
    """Simple random sampling without replacement: `rate` of the units of every sample (`counts`).

    π is the same for all units of a sample, and also the reference p.
    """
    count, p = counts(batch, units, rate, seed)
    score = bits(seed, Stream.CHOICE, batch.keys[units.sample], batch.visits[units.sample], units.first)
    drawn = rank_within(units.sample, score) < count[units.sample]
    return spread(units, drawn, p.to(torch.float32)[units.sample])


def spread(units: Units, drawn: Tensor, pi: Tensor, reference: Tensor | None = None) -> MaskPlan:
    """From drawn units ([units] bool), their π and their p (None: π itself) to a plan of tokens."""
    inside = units.of >= 0
    of = units.of.clamp(min=0)
    if drawn.numel() == 0:
        nothing = torch.zeros_like(inside)
        return MaskPlan(nothing, nothing, nothing.float(), nothing.float())
    hidden = drawn[of] & inside
    inclusion = torch.where(inside, pi[of], 0.0)
    p = inclusion if reference is None else torch.where(inside, reference[of], 0.0)
    return MaskPlan(hidden=hidden, predicted=hidden, inclusion=inclusion, reference=p)
