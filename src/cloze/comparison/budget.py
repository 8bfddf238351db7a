"""The budget of a comparison: tokens, operations or time, which become steps of each recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cloze.errors import ClozeError
from cloze.terminal import amount, duration
from cloze.training.budget import Budget

_SIZES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21}
Unit = Literal["tokens", "operations", "seconds", "steps"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step of a recipe costs, in the mean over its run.

    Attributes:
        tokens: padding not counted. predicted: tokens that are predicted.
        operations: counted (`cloze.models.operations`).
    """

    tokens: float
    predicted: float
    operations: float


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much each run may use."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Allowance:
        """From `10Mtok`, `1e15flop` or `3Pflop`, `5m` or `1h`, `500steps`."""
        match = re.fullmatch(
            r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][0-9]+)?)\s*([kmgtpez]?)flops?\s*", text, re.IGNORECASE
        )
        if match is None:
            budget = Budget.parse(text)
            return cls(budget.amount, budget.unit)
        found = float(match[1].replace("_", "")) * _SIZES[match[2].lower()]
        if found <= 0:
            raise ClozeError(f"budget {text!r} is nothing: give a positive amount")
        return cls(found, "operations")

    def steps(self, cost: Cost, seconds_per_step: float) -> int:
        """Steps of a recipe that the allowance buys. Errors: not even one."""
        each = {
            "tokens": cost.tokens,
            "operations": cost.operations,
            "seconds": seconds_per_step,
            "steps": 1.0,
        }
        steps = round(self.amount / each[self.unit])
        if steps < 1:
            raise ClozeError(f"a budget of {self} is less than one step of {amount(cost.tokens)} tokens")
        return steps

    def share(self, part: float) -> Allowance:
        """A part of it."""
        return Allowance(self.amount * part, self.unit)

    def __str__(self) -> str:
        if self.unit == "seconds":
            return duration(self.amount)
        if self.unit == "operations":
            return f"{self.amount:.3g} operations"
        return f"{amount(self.amount)} {self.unit}"
