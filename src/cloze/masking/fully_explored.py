"""Fully-explored masking: the visits of a sample hide disjoint segments of a random partition."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from cloze.data.batch import Batch
from cloze.masking.base import Masking
from cloze.masking.draw import rank_within, spread
from cloze.masking.plan import MaskPlan
from cloze.masking.sweep import segments, sweep
from cloze.masking.units import UnitKind
from cloze.random import Stream, bits


class FullyExplored(Masking):
    """Random partitions of a sample into J = 1/rate disjoint segments, one a visit (2010.06040).

    Visit v hides segment v mod J of partition v div J, so that in a sweep of J visits every token is
    predicted exactly once. A sample of fewer than J units has a shorter sweep, of one unit a visit.
    With `same_step` above 1, that many segments of a sample are in the same update, as masked copies.

    Unbiased: a segment of a random partition is a simple random sample, so that each visit alone has the
    masks of `uniform` (or of `words`, `spans`); only how visits hang together changes. Cost: none for the
    sweep; copies in one step take the place of other text. Helps where the text is seen several times;
    where it is seen once, the sweep is uniform masking. Copies help where D + C < 0, which
    `cloze diagnose` measures, and hurt elsewhere.
    """

    summary: ClassVar[str] = "disjoint segments"
    kind: Literal["fully_explored"] = "fully_explored"
    rate: float = Field(
        0.15, gt=0.0, le=0.5, description="constant; 1/rate is rounded to the number of segments"
    )
    units: UnitKind = Field("tokens", description="what is hidden as a whole")
    same_step: int = Field(1, ge=1, description="segments of a sample in one update; divides the rows")

    @property
    def copies(self) -> int:
        return self.same_step

    def real(self, rate: float) -> float:
        """That of a whole number of segments."""
        return 1.0 / segments(rate)

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        now = sweep(batch, self.units, rate, seed)
        units = now.units
        sizes = torch.bincount(units.sample, minlength=batch.samples)
        score = bits(seed, Stream.CHOICE, batch.keys[units.sample], now.number[units.sample], units.first)
        segment = rank_within(units.sample, score) * now.turns[units.sample] // sizes[units.sample]
        drawn = segment == now.turn[units.sample]
        count = torch.bincount(units.sample[drawn], minlength=batch.samples)
        pi = (count / sizes.clamp(min=1)).to(torch.float32)
        return spread(units, drawn, pi[units.sample])
