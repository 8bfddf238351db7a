"""Disjoint segments that are balanced in predicted score: the two papers together."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking.base import Learner, Masking, Networks, Policy, Seen
from cloze.masking.draw import group_by_sample, rank_within, spread
from cloze.masking.plan import MaskPlan
from cloze.masking.proposal import Proposal, Score
from cloze.masking.sweep import sweep
from cloze.masking.unequal import unit_scores
from cloze.masking.units import UnitKind
from cloze.random import Stream, bits, uniform

FIRST_FREEZE = 100  # observed steps; the scores are frozen anew at each doubling


class Stratified(Masking):
    """Partitions into J = 1/rate disjoint segments with equal shares of large and small gradients.

    The units of a sample are ordered by MAPNet's predicted score (2008.05333) and cut into strata of J;
    the J segments of a sweep (2010.06040) take one unit of each stratum, at random. π = 1/J for every
    unit, so that no weights are needed. Scores are those of a frozen copy of the network, renewed after
    100, 200, 400, … steps, for a partition must not change within a sweep; the sweeps that such a moment
    falls into are not disjoint.

    Unbiased for each token's loss, given its context: two units of one stratum are never hidden together.
    Cost: that of the small network. Helps where `fully_explored` does, and on fresh text by as much as
    equal gradients within strata are worth.
    """

    summary: ClassVar[str] = "balanced segments"
    learned: ClassVar[bool] = True
    kind: Literal["stratified"] = "stratified"
    rate: float = Field(
        0.15, gt=0.0, le=0.5, description="constant; 1/rate is rounded to the number of segments"
    )
    units: UnitKind = Field("tokens", description="what is hidden as a whole")
    score: Score = Field("hidden_gradient", description="what orders the units")
    width: int | None = Field(None, ge=1, description="of its layers; null: an eighth of the embeddings'")
    learning_rate: float = Field(3e-3, gt=0.0)
    same_step: int = Field(1, ge=1, description="segments of a sample in one update; divides the rows")

    @property
    def copies(self) -> int:
        return self.same_step

    def build(self, networks: Networks) -> Policy:
        return StratifiedPolicy(self, networks)


class StratifiedPolicy(Learner[Stratified]):
    """The network of `Stratified`, its frozen copy, and the masks drawn with it."""

    frozen: Tensor

    def __init__(self, config: Stratified, networks: Networks):
        super().__init__(config)
        self.proposal = Proposal(networks, config.score, config.width, config.learning_rate)
        self.register_buffer("frozen", self.proposal.theta.clone())

    @torch.no_grad()
    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        """Segments from the clean text and the frozen scores; equal scores are in random order."""
        now = sweep(batch, self.config.units, rate, seed)
        units, of = now.units, now.units.sample
        score = unit_scores(units, (0.5 * self.proposal(self.frozen, batch)).double().exp())
        name = (batch.keys[of], now.number[of], units.first)
        at_random = group_by_sample(of, bits(seed, Stream.CHOICE, *name))
        order = at_random[group_by_sample(of[at_random], score[at_random])]
        sizes = torch.bincount(of, minlength=batch.samples)
        place = torch.arange(order.numel(), device=order.device) - (sizes.cumsum(0) - sizes)[of]
        stratum = place // now.turns[of]  # of the units in `order`, which are grouped by sample as `of` is
        begins = (place % now.turns[of] == 0).cumsum(0) - 1
        within = rank_within(begins, bits(seed, Stream.STRATUM, *(x[order] for x in name)))
        # The last stratum may have fewer units than segments: a random rotation is fair to all segments.
        turns = now.turns[of]
        u = uniform(seed, Stream.STRATUM, batch.keys[of], now.number[of], -1 - stratum)  # never a unit's name
        rotation = (u * turns).floor().to(torch.int64)
        drawn = torch.zeros(of.numel(), dtype=torch.bool, device=of.device)
        drawn[order] = (within + rotation) % turns == now.turn[of]
        return spread(units, drawn, (1.0 / turns).to(torch.float32))

    def observe(self, seen: list[Seen]) -> None:
        """Learn from the step, and freeze the scores anew after 100, 200, 400, … steps."""
        if all(int((s.weights > 0).sum()) == 0 for s in seen):
            return
        self.proposal.learn(seen)
        steps = int(self.proposal.steps)
        if steps % FIRST_FREEZE == 0 and (steps // FIRST_FREEZE).bit_count() == 1:
            self.frozen.copy_(self.proposal.theta)

    def scores(self, batch: Batch) -> Tensor:
        """[rows, length] predicted score of each token."""
        return self.proposal.predict(batch)
