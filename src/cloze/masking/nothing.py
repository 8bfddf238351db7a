"""No masking: for objectives that predict tokens which are not hidden."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from cloze.data.batch import Batch
from cloze.masking.base import Masking
from cloze.masking.plan import MaskPlan


class Nothing(Masking):
    """Nothing is hidden. For objectives that predict the next token everywhere; there is no mask noise."""

    summary: ClassVar[str] = "nothing"
    kind: Literal["none"] = "none"
    rate: float = Field(0.0, ge=0.0, le=0.0, description="always 0")

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        return nothing(batch)


def nothing(batch: Batch) -> MaskPlan:
    """The plan that hides and predicts nothing."""
    none = torch.zeros_like(batch.maskable)
    return MaskPlan(none, none, none.to(torch.float32), none.to(torch.float32))
