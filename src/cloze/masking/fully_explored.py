"""Fully-explored masking: the visits of a sample hide disjoint segments of a random partition."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field

from cloze.data.batch import Batch
from cloze.masking.base import Masking
from cloze.masking.draw import rank_within, spread
from cloze.masking.plan import MaskPlan
from cloze.masking.units import UnitKind, cut, fewest_units
from cloze.random import Stream, bits


class FullyExplored(Masking):
    """Random partitions of a sample into J = 1/rate disjoint segments, one a visit (2010.06040).

    Visit v hides segment v mod J of partition v div J, so that in a sweep of J visits every token is
    predicted exactly once. A sample of fewer than J units has a shorter sweep, of one unit a visit.

    Unbiased: a segment of a random partition is a simple random sample, so that each visit alone has the
    masks of `uniform` (or of `words`, `spans`); only how visits hang together changes. Cost: none. Helps
    where the text is seen several times; where it is seen once, it is uniform masking.
    """

    summary: ClassVar[str] = "disjoint segments"
    kind: Literal["fully_explored"] = "fully_explored"
    rate: float = Field(
        0.15, gt=0.0, le=0.5, description="constant; 1/rate is rounded to the number of segments"
    )
    units: UnitKind = Field("tokens", description="what is hidden as a whole")

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        turns = fewest_units(batch, self.units).clamp(min=1, max=round(1.0 / rate))
        sweep, turn = batch.visits // turns, batch.visits % turns
        whole = replace(batch, visits=sweep)  # one partition, and one cut into spans, for a whole sweep
        units = cut(whole, self.units, seed)
        sizes = torch.bincount(units.sample, minlength=batch.samples)
        score = bits(seed, Stream.CHOICE, batch.keys[units.sample], sweep[units.sample], units.first)
        segment = rank_within(units.sample, score) * turns[units.sample] // sizes[units.sample]
        drawn = segment == turn[units.sample]
        count = torch.bincount(units.sample[drawn], minlength=batch.samples)
        pi = (count / sizes.clamp(min=1)).to(torch.float32)
        return spread(units, drawn, pi[units.sample])
