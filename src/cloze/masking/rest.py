"""The rest of a text, behind a beginning of random length: prefix language modelling as a mask."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from cloze.data.batch import Batch
from cloze.masking.base import Masking
from cloze.masking.plan import MaskPlan
from cloze.random import Stream, uniform


class Rest(Masking):
    """All that follows a beginning, whose length is uniform from 0 to all of a sample's tokens but one.

    As the prefixes of `visibility: prefix` (2204.05832, §3.1). A token is hidden with the probability that
    the beginning ends before it: token i of n with (i + 1) / n, p = π.
    """

    summary: ClassVar[str] = "all behind a beginning"
    kind: Literal["rest"] = "rest"
    rate: float = Field(0.5, ge=0.5, le=0.5, description="always 0.5: half of the tokens, on average")

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        text = batch.index >= 0
        sizes = torch.bincount(batch.segments[text], minlength=batch.samples)
        begins = (uniform(seed, Stream.PREFIX, batch.keys, batch.visits) * sizes).to(torch.int64)
        # Padding (-1) reads the 0 that is put behind the last sample.
        begin, size = (F.pad(x, (0, 1))[batch.segments] for x in (begins, sizes))
        able = batch.maskable & text
        hidden = able & (batch.index >= begin)
        p = torch.where(able, (batch.index + 1) / size.clamp(min=1), 0.0).to(torch.float32)
        return MaskPlan(hidden, hidden, p, p)
