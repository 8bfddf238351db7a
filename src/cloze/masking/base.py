"""Masking policies: the base class, and how one is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from cloze.config import Config
from cloze.data.batch import Batch
from cloze.masking.plan import MaskPlan
from cloze.masking.rate import Rate


class Masking(Config, ABC):
    """A masking policy: which tokens are hidden, which are predicted.

    A policy without state is its own configuration: `plan` is a pure function. A policy that learns
    overrides `build` and returns an object with state.

    Class attributes:
        unbiased: the expected loss is that of the reference scheme, at any state of the policy. When
            False the policy changes the objective, and every report says so.
        summary: one line for tables.
    """

    unbiased: ClassVar[bool] = True
    summary: ClassVar[str] = ""

    kind: str
    rate: Rate = 0.3

    @abstractmethod
    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        """Masks of the batch: a pure function of (seed, sample key, visit, token index)."""

    def build(self, **networks: Any) -> Masking:
        """The object that draws the masks of a run; policies that learn get callables into the method."""
        return self
