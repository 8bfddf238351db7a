"""What stands in the place of a hidden token: the mask token, a random token, or itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field, model_validator

from cloze.config import Config
from cloze.corruption.view import View
from cloze.data.batch import Batch
from cloze.masking.plan import MaskPlan
from cloze.random import Stream, uniform


class Replace(Config):
    """Shares of hidden tokens that become the mask token or a random one; the rest stay (BERT: 80/10/10)."""

    kind: Literal["replace"] = "replace"
    mask: float = Field(0.8, ge=0.0, le=1.0)
    random: float = Field(0.1, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _shares(self) -> Replace:
        if self.mask + self.random > 1.0 + 1e-9:
            raise ValueError("mask + random must not be more than 1 (the rest of the hidden tokens stays)")
        return self

    def describe(self) -> str:
        """Such as "80/10/10": percent mask token, random, kept."""
        shares = (self.mask, self.random, max(0.0, 1.0 - self.mask - self.random))
        return "/".join(f"{100 * s:.0f}" for s in shares)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a corruption has to know of the tokenizer.

    Attributes:
        size: number of ids.
        mask: id of the mask token.
        ordinary: [n] int64, the ids that a random replacement is drawn from: no specials.
        first, separator: ids of what stands before a text, and after each of a pair of texts; None: it has
            none.
        blank: [n] int64, the ids that stand for white space alone.
        sentinels: ids of the sentinels (`corruption: sentinels`), in their order. end: id that ends a text.
    """

    size: int
    mask: int
    ordinary: torch.Tensor
    first: int | None = None
    separator: int | None = None
    blank: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    sentinels: tuple[int, ...] = ()
    end: int = 0


def replace(batch: Batch, plan: MaskPlan, config: Replace, vocabulary: Vocabulary, seed: int) -> View:
    """The batch with its hidden tokens replaced, each by its own counter-based draw."""
    # Padding (-1) reads the 0 that is put behind the last sample.
    key, visit = (torch.nn.functional.pad(x, (0, 1))[batch.segments] for x in (batch.keys, batch.visits))
    name = (key, visit, batch.index)
    action = uniform(seed, Stream.ACTION, *name)
    ordinary = vocabulary.ordinary.to(batch.ids.device)
    drawn = (uniform(seed, Stream.TOKEN, *name) * ordinary.numel()).to(torch.int64)
    masked = torch.where(action < config.mask, vocabulary.mask, batch.ids)
    randomly = (action >= config.mask) & (action < config.mask + config.random)
    replaced = torch.where(randomly, ordinary[drawn], masked)
    return View.of(batch, torch.where(plan.hidden, replaced, batch.ids))
