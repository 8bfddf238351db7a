"""Count-balanced masking: what was hidden less often in earlier visits is hidden more likely now."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field

from cloze.data.batch import Batch
from cloze.masking.base import Masking
from cloze.masking.draw import counts, rank_within, spread
from cloze.masking.plan import MaskPlan
from cloze.masking.units import UnitKind, cut
from cloze.random import Stream, uniform


class Balanced(Masking):
    """The masks of GPT-BERT's loader: a soft form of disjoint segments (2410.24159, released code).

    Each unit has a uniform random number times e to the number of visits that hid it before; the lowest
    ones are hidden. There, counts live in the data loader and go on for ever; here they are counted anew
    from the random numbers of the earlier visits in a window, so that a mask stays a pure function.

    Unbiased: units are exchangeable before the window begins, so each visit alone has the masks of
    `uniform`. Cost: planning grows with the window, half of it at each visit on average. Helps where the
    text is seen several times, less strictly than `fully_explored`; works at any rate.
    """

    summary: ClassVar[str] = "least hidden yet"
    kind: Literal["balanced"] = "balanced"
    rate: float = Field(0.15, gt=0.0, le=1.0, description="constant")
    units: UnitKind = Field("tokens", description="what is hidden as a whole")
    window: int = Field(16, ge=1, description="visits after which the counts begin again")

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        start = batch.visits // self.window * self.window
        units = cut(replace(batch, visits=start), self.units, seed)  # one cut into spans for the window
        of, keys = units.sample, batch.keys[units.sample]
        hidden = torch.zeros(of.numel(), dtype=torch.float64, device=of.device)
        drawn = torch.zeros(of.numel(), dtype=torch.bool, device=of.device)
        turn = batch.visits - start
        p = counts(batch, units, rate, seed)[1]
        for earlier in range(int(turn.max()) + 1 if turn.numel() else 0):
            visits = start + torch.minimum(turn, turn.new_tensor(earlier))
            score = uniform(seed, Stream.CHOICE, keys, visits[of], units.first) * hidden.exp()
            count, _ = counts(replace(batch, visits=visits), units, rate, seed)
            now = rank_within(of, score) < count[of]
            open_ = (turn >= earlier)[of]
            drawn = torch.where(open_, now, drawn)
            hidden += now & open_
        return spread(units, drawn, p.to(torch.float32)[of])
