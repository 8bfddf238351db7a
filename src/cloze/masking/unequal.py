"""Draw a fixed number of units of each sample with unequal, exactly known inclusion probabilities.

Importance sampling needs π to weight by p/π. Drawing without replacement by perturbed scores (Gumbel
top-k) has no π in closed form; systematic sampling in a random order has any π that one asks for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking.draw import counts, group_by_sample, spread, uniform_draw
from cloze.masking.plan import MaskPlan
from cloze.masking.units import Units
from cloze.random import Stream, bits, uniform


def inclusion(score: Tensor, sample: Tensor, count: Tensor, floor: Tensor) -> Tensor:
    """π_i = min(1, floor + c · score_i) with c such that the π of each sample add up to its count.

    Args:
        score: [units], at least 0. sample: [units] int64, ascending.
        count: [samples] int64, at most the number of units of the sample.
        floor: [samples] float64, the smallest π; at most count / units of the sample.

    Returns:
        [units] float64. A sample whose scores are all 0 gets equal probabilities.
    """
    samples = count.numel()
    share = score.to(torch.float64).clamp(min=1e-30)  # so that a scale always exists
    full = torch.zeros_like(sample, dtype=torch.bool)
    while True:
        rest = count - torch.bincount(sample[full], minlength=samples)
        free = torch.bincount(sample[~full], minlength=samples)
        total = torch.zeros(samples, dtype=torch.float64, device=score.device)
        total.index_add_(0, sample, torch.where(full, 0.0, share))
        scale = (rest - floor * free) / total.clamp(min=1e-300)
        pi = torch.where(full, 1.0, floor[sample] + scale[sample] * share)
        over = (pi >= 1.0) & ~full  # raising the others only raises the scale, so these stay full
        if not bool(over.any()):
            return pi
        full |= over


def systematic(pi: Tensor, sample: Tensor, count: Tensor, offset: Tensor, shuffle: Tensor) -> Tensor:
    """Draw exactly `count` units of each sample with inclusion probabilities `pi` (Madow 1949).

    The units of a sample are put in a random order along a line, each as long as its π; the points
    offset, offset + 1, … hit `count` of them. The random order keeps joint probabilities free of the
    places in the text; equal π give simple random sampling.

    Args:
        pi: [units] float64, adding up to `count` within each sample. sample: [units] int64, ascending.
        count: [samples] int64. offset: [samples] float64 in [0, 1). shuffle: [units] int64, random bits.

    Returns:
        [units] bool.
    """
    order = group_by_sample(sample, shuffle)
    mine = sample[order]
    sizes = torch.bincount(sample, minlength=count.numel())
    ends = sizes.cumsum(0)
    starts = ends - sizes
    running = pi[order].cumsum(0)
    before = torch.cat([running.new_zeros(1), running])[starts]
    upper = running - before[mine]
    upper[(ends - 1)[sizes > 0]] = count[sizes > 0].to(upper.dtype)  # rounding must not lose a draw
    lower = torch.cat([upper.new_zeros(1), upper[:-1]])
    lower[starts[sizes > 0]] = 0.0
    shift = offset[mine]
    drawn = torch.empty_like(order, dtype=torch.bool)
    # A point lies in [lower, upper): ceil counts the points below.
    drawn[order] = (upper - shift).ceil() > (lower - shift).ceil()
    return drawn


def proposal_draw(
    batch: Batch, units: Units, score: Tensor, rate: float, seed: int, epsilon: float, reweight: bool = True
) -> MaskPlan:
    """`rate` of the units of every sample, in proportion to a score mixed with uniform.

    As many units as `uniform_draw` hides of the same sample. π_i ≥ ε·p with p the uniform probability, so
    the weights p/π are at most 1/ε.

    Args:
        units: what is hidden as a whole. score: [units], at least 0, only ratios within a sample matter.
        rate: in (0, 1]. epsilon: in (0, 1], the share of the draws that is uniform.
        reweight: the reference is the uniform draw (weights p/π); False: the draw itself (weights 1).
    """
    count, p = counts(batch, units, rate, seed)
    sizes = torch.bincount(units.sample, minlength=batch.samples)
    even = count.to(torch.float64) / sizes.clamp(min=1)
    pi = inclusion(score, units.sample, count, torch.minimum(epsilon * p, even))
    keys, visits = batch.keys, batch.visits
    offset = uniform(seed, Stream.OFFSET, keys, visits)
    shuffle = bits(seed, Stream.CHOICE, keys[units.sample], visits[units.sample], units.first)
    drawn = systematic(pi, units.sample, count, offset, shuffle)
    reference = p[units.sample] if reweight else pi
    return spread(units, drawn, pi.to(torch.float32), reference.to(torch.float32))


def unit_scores(units: Units, score: Tensor) -> Tensor:
    """[units] score of each unit, from its tokens' [rows, length]: the root of the sum of their squares.

    The gradient of a unit is the sum of those of its tokens; were they orthogonal, this would be its norm.
    """
    total = torch.zeros(units.sample.numel(), dtype=torch.float64, device=score.device)
    inside = units.of >= 0
    total.index_add_(0, units.of[inside], score[inside].to(torch.float64) ** 2)
    return total.sqrt()


def predicted_part(
    batch: Batch, units: Units, score: Tensor, rate: float, seed: int, epsilon: float, share: float
) -> MaskPlan:
    """A uniform hidden set, of which the part that is predicted is drawn in proportion to a score.

    Exactly unbiased for predicting the whole hidden set, contexts included, whatever the score: the
    weight 1/π is the inverse of the probability *given the hidden set*, at most 1/(ε·share).

    Args:
        score: [units], at least 0. share: in (0, 1], of the hidden units; at least one is predicted.
    """
    whole = uniform_draw(batch, units, rate, seed)
    inside = units.of >= 0
    hidden = torch.zeros(units.sample.numel(), dtype=torch.bool, device=score.device)
    hidden[units.of[whole.hidden]] = True
    sample, first = units.sample[hidden], units.first[hidden]
    sizes = torch.bincount(sample, minlength=batch.samples)
    keys, visits = batch.keys, batch.visits
    u = uniform(seed, Stream.COUNT, keys, visits, torch.ones_like(keys))
    count = (sizes * share + u).floor().to(torch.int64)
    count = torch.minimum(count.clamp(min=1), sizes)
    n = sizes.clamp(min=1).to(torch.float64)
    floor = torch.minimum(epsilon * (1.0 / n).clamp(min=share), count / n)
    pi = inclusion(score[hidden], sample, count, floor)
    offset = uniform(seed, Stream.OFFSET, keys, visits)
    shuffle = bits(seed, Stream.OFFSET, keys[sample], visits[sample], first)
    drawn = torch.zeros_like(hidden)
    drawn[hidden] = systematic(pi, sample, count, offset, shuffle)
    given = torch.full_like(score, share, dtype=torch.float64)  # of units that are not hidden: not used
    given[hidden] = pi
    part = spread(units, drawn, given.to(torch.float32)) if drawn.numel() else whole
    return MaskPlan(
        hidden=whole.hidden,
        predicted=part.predicted,
        inclusion=torch.where(inside, whole.reference * part.inclusion, 0.0),
        reference=whole.reference,
    )
