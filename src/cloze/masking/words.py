"""Whole-word masking: all tokens of a word together."""

from __future__ import annotations

from typing import ClassVar, Literal

from cloze.data.batch import Batch
from cloze.masking.base import Masking
from cloze.masking.draw import uniform_draw
from cloze.masking.plan import MaskPlan
from cloze.masking.units import words


class Words(Masking):
    """`rate` of the words of every sample, each hidden with all its tokens.

    Words are the tokenizer's own, checked at start-up. Unbiased for the whole-word objective, in which
    every token is predicted with probability `rate`; that objective is harder than single tokens, since
    the rest of a word no longer gives it away. Helps where words are cut in many tokens.
    """

    summary: ClassVar[str] = "whole words"
    kind: Literal["words"] = "words"

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        return uniform_draw(batch, words(batch), rate, seed)
