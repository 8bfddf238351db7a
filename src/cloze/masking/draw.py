"""Draw a fixed number of units of each sample, with known inclusion probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking.plan import MaskPlan
from cloze.masking.units import Units
from cloze.random import Stream, bits, uniform


def rank_within(sample: Tensor, score: Tensor) -> Tensor:
    """Rank (0 = lowest score) of each unit among the units of its sample; `sample` is ascending."""
    order = score.argsort(stable=True)
    order = order[sample[order].argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel(), device=order.device)
    sizes = torch.bincount(sample)
    return rank - (sizes.cumsum(0) - sizes)[sample]


def uniform_draw(batch: Batch, units: Units, rate: float, seed: int) -> MaskPlan:
    """Simple random sampling without replacement: `rate` of the units of every sample.

    A sample of n units hides rate·n of them, rounded up or down at random so that the expectation is
    exact, and at least one. So π = max(rate, 1/n) for every token, which is also the reference p.
    """
    sizes = torch.bincount(units.sample, minlength=batch.samples)
    sample = torch.arange(batch.samples, device=sizes.device)
    u = uniform(seed, Stream.COUNT, batch.keys[sample], batch.visits[sample])
    count = (sizes.to(torch.float64) * rate + u).floor().to(torch.int64)
    count = torch.minimum(count.clamp(min=1), sizes)
    score = bits(seed, Stream.CHOICE, batch.keys[units.sample], batch.visits[units.sample], units.first)
    drawn = rank_within(units.sample, score) < count[units.sample]
    pi = (1.0 / sizes.clamp(min=1)).clamp(min=rate).to(torch.float32)
    return spread(units, drawn, pi[units.sample])


def spread(units: Units, drawn: Tensor, pi: Tensor) -> MaskPlan:
    """From drawn units ([units] bool) and their π to the plan of a policy that samples its reference."""
    inside = units.of >= 0
    of = units.of.clamp(min=0)
    if drawn.numel() == 0:
        nothing = torch.zeros_like(inside)
        return MaskPlan(nothing, nothing, nothing.float(), nothing.float())
    hidden = drawn[of] & inside
    inclusion = torch.where(inside, pi[of], 0.0)
    return MaskPlan(hidden=hidden, predicted=hidden, inclusion=inclusion, reference=inclusion)
