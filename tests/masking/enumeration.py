"""Exact expectations over masks, on an encoder so small that all masks and all draws can be enumerated.

A policy's random numbers are replaced by a table, one sample of the batch for each outcome: every order of
the units, every interval of a systematic draw's offset. So one plan of the batch is the whole distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, permutations
from typing import Any

import pytest
import torch
from helpers import make_samples, pack, tiny_model, vocabulary
from torch import Tensor

from cloze.corruption.replace import Replace
from cloze.data.batch import Batch
from cloze.masking.plan import MaskPlan
from cloze.methods.base import select
from cloze.methods.build import Choices, build_method
from cloze.methods.token_prediction import TokenPrediction
from cloze.models.encoder import isolate
from cloze.random import Stream

WORDS = 16  # of the vocabulary
Gradients = Callable[[Tensor], Tensor]
"""mask [n] bool → [n, P], the gradient of each hidden token's loss, 0 for the others."""


def tiny() -> TokenPrediction:
    """A tiny encoder in float64; the mask token stands in every hidden place."""
    small = {"hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 12, "vocab_size": WORDS}
    encoder = isolate(tiny_model("bert", **small).to(torch.float64))
    choices = Choices(corruption=Replace(mask=1.0, random=0.0))
    return build_method(choices, encoder, vocabulary(WORDS))


def outcomes(n: int, count: int) -> Batch:
    """The same text of n tokens as `count` samples, whose keys are 0, 1, 2, …"""
    (sample,) = make_samples([n], seed=5, size=WORDS)
    one = pack([[sample]], n + 2)
    segments = torch.where(one.segments >= 0, torch.arange(count)[:, None], -1)
    same = {name: getattr(one, name).expand(count, -1) for name in ("ids", "index", "units", "maskable")}
    same = {name: value.clone() for name, value in same.items()}
    return Batch(segments=segments, keys=torch.arange(count), visits=torch.zeros(count).long(), **same)


def gradients_of(method: TokenPrediction, text: Tensor | None = None) -> Gradients:
    """All token gradients of a method, for `outcomes` or another text [n], each made once."""
    parameters = list(method.parameters())

    @cache
    def found(mask: tuple[bool, ...]) -> Tensor:
        batch = outcomes(len(mask), 1)
        if text is not None:
            batch.ids[:, 1:-1] = text
        hidden = torch.zeros_like(batch.maskable)
        hidden[:, 1:-1] = torch.tensor(mask)
        ones = batch.maskable.float()
        rows = torch.zeros(len(mask), sum(p.numel() for p in parameters), dtype=torch.float64)
        for token in hidden[0, 1:-1].nonzero().flatten().tolist():
            predicted = torch.zeros_like(hidden)
            predicted[:, token + 1] = True
            total = method(method.work(batch, MaskPlan(hidden, predicted, ones, ones))).sums["mlm"]
            rows[token] = flat(torch.autograd.grad(total, parameters, allow_unused=True), parameters)
        return rows

    return lambda mask: found(tuple(mask.tolist()))


def flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """[P]; 0 where there is no gradient."""
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


@cache
def method() -> TokenPrediction:
    """The encoder that exact statements are tested on; its weights are random."""
    return tiny()


@cache
def _real() -> Gradients:
    return gradients_of(method())


def real(mask: Tensor) -> Tensor:
    """Gradients of `method()`: what else is hidden matters."""
    return _real()(mask)


def context_free(mask: Tensor) -> Tensor:
    """Gradients that are the token's own, whatever else is hidden."""
    draw = torch.Generator().manual_seed(1)
    own = torch.randn(mask.numel(), 50, generator=draw, dtype=torch.float64)
    return torch.where(mask[:, None], own, 0.0)


def uniform_mean(n: int, k: int, gradients: Gradients = real) -> Tensor:
    """[P]: the mean gradient over all masks of k of n tokens, each as likely."""
    masks = torch.zeros(0, n, dtype=torch.bool)
    for chosen in combinations(range(n), k):
        masks = torch.cat([masks, torch.isin(torch.arange(n), torch.tensor(chosen))[None]])
    return torch.stack([gradients(m).sum(0) / k for m in masks]).mean(0)


def coefficients(batch: Batch, plan: MaskPlan) -> tuple[Tensor, Tensor]:
    """([S, n] bool hidden, [S, n] what each token's gradient is multiplied with), as the method has it."""
    places, _, weights = select(plan, batch)
    found = torch.zeros(batch.ids.numel(), dtype=torch.float64)
    found[places] = weights.double() / (plan.mass() / batch.samples)
    return plan.hidden[:, 1:-1], found.view_as(batch.ids)[:, 1:-1]


def expectation(
    hidden: Tensor, coefficients: Tensor, probability: Tensor | None = None, gradients: Gradients = real
) -> Tensor:
    """[P]: Σ probability · Σ coefficient · gradient over the outcomes; probabilities may be all alike."""
    share = probability
    if share is None:
        share = torch.full((len(hidden),), 1.0 / len(hidden), dtype=torch.float64)
    assert float(share.sum()) == pytest.approx(1.0, abs=1e-9)
    masks, number = hidden.unique(dim=0, return_inverse=True)
    summed = torch.zeros(len(masks), hidden.shape[1], dtype=torch.float64)
    summed.index_add_(0, number, coefficients * share[:, None])
    return torch.stack([c @ gradients(m) for c, m in zip(summed, masks, strict=True)]).sum(0)


def apart(found: Tensor, wanted: Tensor) -> float:
    """Distance of two gradients, relative to the second."""
    return float((found - wanted).norm() / wanted.norm())


def orders(n: int) -> Tensor:
    """[n!, n] int64: the rank of each unit in every order."""
    return torch.tensor(list(permutations(range(n))))


def intervals(pi: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets that stand for all of [0, 1) in a systematic draw, and their probabilities: [S, n + 1] each.

    Between two values at which the running sum of π, in the order of the ranks, has the same fraction as the
    offset, the drawn set does not change.
    """
    ends = pi.gather(1, rank.argsort(1)).cumsum(1) % 1.0
    edges = torch.cat([torch.zeros(len(pi), 1), ends.sort(1).values, torch.ones(len(pi), 1)], 1).double()
    return (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1)


def deal(patch: pytest.MonkeyPatch, module: str, name: str, table: Callable[..., Tensor]) -> None:
    """Give a module of `cloze.masking` made-up random numbers: `table(stream, *counters)`."""
    patch.setattr(f"cloze.masking.{module}.{name}", lambda seed, stream, *rest: table(stream, *rest))


def systematic_outcomes(
    patch: pytest.MonkeyPatch,
    plan: Callable[[Batch], MaskPlan],
    rank: Tensor,
    given: Tensor | None = None,
    rounding: float = 0.5,
) -> tuple[Batch, MaskPlan, Tensor]:
    """All outcomes of a policy that draws systematically: the batch, its plan, and their probabilities.

    Args:
        plan: of the policy; its random orders are `rank` [S, n].
        given: [S, n], the orders by which a uniform hidden set is drawn first.
        rounding: the number in [0, 1) that rounds the size of a predicted part.
    """
    size = rank.shape[1]

    def dealt(ranks: Tensor, hiding: Tensor | None, offset: Tensor) -> tuple[Batch, MaskPlan]:
        def numbers(stream: Stream, keys: Tensor, *rest: Tensor) -> Tensor:
            return offset[keys] if stream == Stream.OFFSET else torch.full_like(offset[keys], rounding)

        deal(patch, "unequal", "bits", lambda stream, keys, visits, first: ranks[keys, first])
        deal(patch, "unequal", "uniform", numbers)
        if hiding is not None:
            deal(patch, "draw", "bits", lambda stream, keys, visits, first: hiding[keys, first])
        batch = outcomes(size, len(ranks))
        return batch, plan(batch)

    _, first = dealt(rank, given, torch.full((len(rank),), 0.5, dtype=torch.float64))
    pi = first.inclusion
    if given is not None:  # π given the hidden set
        pi = torch.where(first.hidden, pi / first.reference.clamp(min=1e-9), 0.0)
    offsets, probability = intervals(pi[:, 1:-1].double(), rank)
    times = offsets.shape[1]
    hiding = None if given is None else given.repeat_interleave(times, 0)
    batch, found = dealt(rank.repeat_interleave(times, 0), hiding, offsets.flatten())
    return batch, found, probability.flatten() / len(rank)


def at_visit(batch: Batch, visit: int) -> Batch:
    """The same samples at another visit."""
    return replace(batch, visits=torch.full_like(batch.visits, visit))


def scored(policy: Any, patch: pytest.MonkeyPatch, score: Tensor) -> None:
    """Let a policy's network predict `score` [n] for the tokens of `outcomes`."""
    table = torch.cat([score[:1], score, score[-1:]]).double()
    patch.setattr(policy.proposal, "predict", lambda batch: table.expand(batch.ids.shape))
    patch.setattr(policy.proposal, "forward", lambda theta, batch: 2.0 * table.log().expand(batch.ids.shape))
