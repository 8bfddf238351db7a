"""Several corruptions of the same text, each of which asks another question about its tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cloze.config import Config
from cloze.corruption.generator import Generator

Correction = Literal["generator", "model"]


class Courses(Config):
    """The courses of multi-perspective course learning (2305.03981), each of them in every step.

    Replaced tokens, as in ELECTRA, are always there. `swapped` and `inserted` are shares of the tokens; 0
    leaves the course out. The inserted places are filled by the generator. `corrections` say who tries again
    what went wrong with replaced tokens: the generator writes anew where the model told its token from the
    original, where it wrote a wrong one unseen, and where the model doubted a right one; the model judges the
    text with what is written then.
    """

    kind: Literal["courses"] = "courses"
    generator: Generator = Field(Generator(), description="what fills hidden and inserted places")
    swapped: float = Field(0.15, ge=0.0, le=1.0, description="share of the tokens that change places")
    inserted: float = Field(0.15, ge=0.0, le=1.0, description="tokens inserted for each token of the text")
    corrections: tuple[Correction, ...] = Field(
        ("generator", "model"), description="who is trained on what went wrong; empty: neither"
    )

    def describe(self) -> str:
        """A word for tables."""
        return "courses"
