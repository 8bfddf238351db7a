"""Uniform masking: single tokens, each with the same probability."""

from __future__ import annotations

from typing import ClassVar, Literal

from cloze.data.batch import Batch
from cloze.masking.base import Masking
from cloze.masking.draw import uniform_draw
from cloze.masking.plan import MaskPlan
from cloze.masking.units import tokens


class Uniform(Masking):
    """`rate` of the tokens of every sample, drawn without replacement (BERT, 1810.04805, §3.1).

    Unbiased: it is the reference itself. Cost: none. The count per sample is exact up to rounding, where
    the usual Bernoulli draw leaves short samples without any mask.
    """

    summary: ClassVar[str] = "single tokens"
    kind: Literal["uniform"] = "uniform"

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        return uniform_draw(batch, tokens(batch), rate, seed)
