"""Disjoint segments, each a fair selection of the text: the two papers together, and a better order."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking.base import Learner, Masking, Networks, Policy, Seen
from cloze.masking.draw import group_by_sample, rank_within, spread
from cloze.masking.plan import MaskPlan
from cloze.masking.proposal import Proposal
from cloze.masking.sweep import segments, sweep
from cloze.masking.unequal import unit_scores
from cloze.masking.units import UnitKind, Units
from cloze.processes import summed
from cloze.random import Stream, bits, uniform

FIRST_FREEZE = 100  # steps; the order is frozen anew at each doubling


class Stratified(Masking):
    """Partitions into J = 1/rate disjoint segments, each of which takes one unit of every stratum.

    The units of a sample are ordered, and cut into strata of J neighbours in that order; the J segments of
    a sweep (2010.06040) take one unit of each stratum, at random. π = 1/J for every unit, so that no
    weights are needed. Two orders:

    - `frequency`: how often the token of a unit occurs in the training text. Each segment is then a fair
      selection of frequent and rare tokens, and equal tokens are spread over the segments.
    - `score`: MAPNet's predicted gradient norm (2008.05333), frozen after 100, 200, 400, … steps, for a
      partition must not change within a sweep; the sweeps that such a moment falls into are not disjoint.
      It takes no variance away (docs/lab-diary.md): gradients of one length point in all directions.

    Unbiased for each token's loss, given its context: two units of one stratum are never hidden together.
    Cost: none by frequency, the small network by score. Helps where `fully_explored` does.
    """

    summary: ClassVar[str] = "stratified segments"
    learned: ClassVar[bool] = True
    kind: Literal["stratified"] = "stratified"
    rate: float = Field(
        0.15, gt=0.0, le=0.5, description="constant; 1/rate is rounded to the number of segments"
    )
    units: UnitKind = Field("tokens", description="what is hidden as a whole")
    order: Literal["frequency", "score"] = Field("frequency", description="what the strata are neighbours in")
    same_step: int = Field(1, ge=1, description="segments of a sample in one update; divides the rows")

    @property
    def copies(self) -> int:
        return self.same_step

    def real(self, rate: float) -> float:
        """That of a whole number of segments."""
        return 1.0 / segments(rate)

    def build(self, networks: Networks) -> Policy:
        return StratifiedPolicy(self, networks)


class StratifiedPolicy(Learner[Stratified]):
    """What the order of `Stratified` is made from, and the masks drawn with it."""

    rank: Tensor
    frozen: Tensor

    def __init__(self, config: Stratified, networks: Networks):
        super().__init__(config)
        self.learned = config.order == "score"  # or there is nothing to learn
        if config.order == "score":
            self.proposal = Proposal(networks)
            self.register_buffer("frozen", self.proposal.theta.clone())
        else:
            self.register_buffer("rank", networks.counts.double().argsort().argsort().double())

    @torch.no_grad()
    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        """Segments from the clean text and the frozen order; equal keys are in random order."""
        now = sweep(batch, self.config.units, rate, seed)
        units, of = now.units, now.units.sample
        name = (batch.keys[of], now.number[of], units.first)
        at_random = group_by_sample(of, bits(seed, Stream.CHOICE, *name))
        order = at_random[group_by_sample(of[at_random], self._keys(batch, units)[at_random])]
        sizes = torch.bincount(of, minlength=batch.samples)
        # `of` is ascending, so place, stratum and turns are those of the units in `order` as well.
        place = torch.arange(order.numel(), device=order.device) - (sizes.cumsum(0) - sizes)[of]
        turns = now.turns[of]
        stratum = place // turns
        number = (place % turns == 0).cumsum(0) - 1
        within = rank_within(number, bits(seed, Stream.STRATUM, *(x[order] for x in name)))
        # The last stratum may have fewer units than segments: a random rotation is fair to all segments.
        u = uniform(seed, Stream.STRATUM, batch.keys[of], now.number[of], -1 - stratum)  # never a unit's name
        rotation = (u * turns).floor().to(torch.int64)
        drawn = torch.zeros(of.numel(), dtype=torch.bool, device=of.device)
        drawn[order] = (within + rotation) % turns == now.turn[of]
        return spread(units, drawn, (1.0 / turns).to(torch.float32))

    def _keys(self, batch: Batch, units: Units) -> Tensor:
        """[units] what they are ordered by: the predicted score, or the mean rank of their tokens."""
        if self.learned:
            # The largest first: the stratum that may be short is then that of the smallest.
            return -unit_scores(units, (0.5 * self.proposal(self.frozen, batch)).double().exp())
        inside = units.of >= 0
        tokens = torch.bincount(units.of[inside], minlength=units.sample.numel())
        return unit_scores(units, self.rank[batch.ids].sqrt()) ** 2 / tokens.clamp(min=1)

    def observe(self, seen: list[Seen]) -> None:
        """Learn from the step, and freeze the scores anew after 100, 200, 400, … of them."""
        none = torch.zeros((), dtype=torch.int64, device=self.frozen.device)
        (known,) = summed(sum(((s.weights > 0).sum() for s in seen), none))
        if not known:
            return
        self.proposal.learn(seen)
        steps = int(self.proposal.steps)
        if steps % FIRST_FREEZE == 0 and (steps // FIRST_FREEZE).bit_count() == 1:
            self.frozen.copy_(self.proposal.theta)

    def scores(self, batch: Batch) -> Tensor | None:
        """[rows, length] predicted score of each token; None when ordered by frequency."""
        return self.proposal.predict(batch) if self.learned else None
