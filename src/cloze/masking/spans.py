"""Span masking: runs of whole words of random length."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cloze.data.batch import Batch
from cloze.masking.base import Masking
from cloze.masking.draw import uniform_draw
from cloze.masking.plan import MaskPlan
from cloze.masking.units import spans


class Spans(Masking):
    """`rate` of the spans of every sample (after SpanBERT, 1907.10529, §3.1).

    Each visit partitions a sample into spans of geometric length in words, then draws spans. So a token of
    a sample that was cut into n spans is predicted with probability max(rate, 1/n), known exactly. A span has
    at most half of its sample's words. Unbiased for the span objective.
    """

    summary: ClassVar[str] = "spans of words"
    kind: Literal["spans"] = "spans"
    mean: float = Field(3.0, ge=1.0, description="mean length in words, before the cut at `longest`")
    longest: int = Field(10, ge=1, description="longest span in words")

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        return uniform_draw(batch, spans(batch, seed, self.mean, self.longest), rate, seed)
