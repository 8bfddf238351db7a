"""Masks by measurement: the run decides at a few fixed points what its own variance terms recommend."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking.base import Evidence, Learner, Masking, Networks, Policy, Seen
from cloze.masking.fully_explored import FullyExplored
from cloze.masking.mapnet import MapNet, MapNetPolicy
from cloze.masking.plan import MaskPlan
from cloze.masking.units import UnitKind

REVISITED = 1.5  # visits of the text over the run from which on disjoint segments are worth their name
WORTH = 0.05  # saving of the proposal, of the second moment of its scores, that is worth weights and contexts


class Auto(Masking):
    """Chooses between disjoint segments and the proposal network, the copies in a step, and the rate.

    At a few points of the run, fixed by its number of steps, the terms of the gradient's variance are
    measured on training text (`cloze.variance`), and each choice follows from them:

    - *segments or proposal*: a sweep of disjoint segments (`fully_explored`), which costs nothing and is
      uniform masking on text that is seen once. Only there the proposal (`mapnet`) takes its place, and
      only if it surely saves 5%: less was not seen to pay in training (docs/benchmarks.md).
    - *copies*: two disjoint masks of a row in one step if the upper bound of D + C is below 0.
    - *rate*: the variance at equal compute, (D + M·rate/r)·(body + head·r), is least at
      r = √(M·rate·body / (D·head)); the rate goes there, within `rate` and `highest`.

    Each decision is a line in the run's log, with its reason. Unbiased as its parts are; a rate that moves
    changes the objective, as a schedule does, and `highest` equal to `rate` rules that out. Cost: the
    small network and the measurements, together a few per cent.
    """

    summary: ClassVar[str] = "as measured"
    learned: ClassVar[bool] = True
    kind: Literal["auto"] = "auto"
    rate: float = Field(0.2, gt=0.0, le=0.5, description="at the start, and the lowest")
    highest: float = Field(1 / 3, gt=0.0, le=0.5, description="rate that it may go up to")
    units: UnitKind = Field("tokens", description="what is hidden as a whole")
    epsilon: float = Field(0.2, gt=0.0, le=0.5, description="of the proposal; weights ≤ 1/epsilon")

    @model_validator(mode="after")
    def _range(self) -> Auto:
        if self.highest < self.rate:
            raise ValueError(f"highest ({self.highest:g}) is below rate ({self.rate:g})")
        return self

    def build(self, networks: Networks) -> Policy:
        return AutoPolicy(self, networks)


class AutoPolicy(Learner[Auto]):
    """What `Auto` has decided so far, and the policies that it decides between."""

    decided: Tensor

    def __init__(self, config: Auto, networks: Networks):
        super().__init__(config)
        self.proposal = MapNetPolicy(
            MapNet(rate=config.rate, units=config.units, epsilon=config.epsilon), networks
        )
        self.segments = FullyExplored(rate=config.rate, units=config.units)
        # rate, copies, whether the masks are segments, how often the copies became fewer
        self.register_buffer("decided", torch.tensor([config.rate, 1.0, 1.0, 0.0], dtype=torch.float64))

    @property
    def rate(self) -> float:
        """As decided."""
        return float(self.decided[0])

    @property
    def copies(self) -> int:
        """As decided."""
        return int(self.decided[1])

    def real(self, rate: float) -> float:
        """That of the policy that is in use."""
        return self._used().real(rate)

    def _used(self) -> FullyExplored | MapNetPolicy:
        return self.segments if bool(self.decided[2]) else self.proposal

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        """Masks by the policy that is in use."""
        # Where two copies became one, visit 5 would have the mask that the second copy of visit 2 had.
        return self._used().plan(batch, rate, seed + int(self.decided[3]))

    def decide(self, evidence: Evidence) -> list[str]:
        """Choose anew."""
        high, saving = evidence.break_even_high, evidence.saving_low
        pair = high is not None and high < 0.0
        seen = f"the text is seen {evidence.visits:.1f} times"
        sweep = True
        if evidence.visits >= REVISITED:
            lines = [f"disjoint segments: {seen}"]
        elif pair:
            lines = ["disjoint segments: two masks of a row in one step have to be disjoint"]
        elif saving is None:
            lines = [f"disjoint segments: {seen}, what the proposal saves is not known"]
        elif saving < WORTH:
            lines = [
                f"disjoint segments: {seen}, the proposal saves at least {saving:.1%}, {WORTH:.0%} is asked"
            ]
        else:
            sweep = False
            lines = [f"proposal network: {seen}, it saves at least {saving:.1%}"]
        rate = self.config.rate
        if evidence.data is not None and evidence.mask is not None and self.config.highest > rate:
            # Both are estimates, which may be below 0.
            mask = max(evidence.mask, 0.0)
            data = max(evidence.data, 1e-12 * mask, 1e-300)
            best = min(1.0, (mask * evidence.rate * evidence.body / (data * evidence.head)) ** 0.5)
            rate = min(max(best, rate), self.config.highest)
            real = self.segments.real(rate) if sweep else rate
            lines.append(
                f"rate {real:.2f}: the least variance at equal compute would be at {best:.2f} "
                f"(mask term {evidence.mask:.3g}, data term {evidence.data:.3g})"
            )
        if high is not None:
            masks = "2 masks" if pair else "1 mask"
            lines.append(f"{masks} of a row in one step: D + C is at most {high:.3g}")
        copies = 2 if pair else 1
        fewer = float(self.decided[3]) + (copies < self.copies)
        self.decided.copy_(torch.tensor([rate, copies, float(sweep), fewer], dtype=torch.float64))
        return lines

    def observe(self, seen: list[Seen]) -> None:
        """The proposal network learns all the time."""
        self.proposal.observe(seen)

    def scores(self, batch: Batch) -> Tensor:
        """[rows, length] predicted score of each token."""
        return self.proposal.scores(batch)

    def log(self) -> dict[str, float]:
        """What is in use."""
        return self.proposal.log() | {"segments": float(self.decided[2]), "copies": float(self.copies)}
