"""Budgets: time, tokens or steps, which become steps once."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from cloze.errors import ClozeError

_UNITS: dict[str, tuple[str, float]] = {
    "s": ("seconds", 1),
    "m": ("seconds", 60),
    "min": ("seconds", 60),
    "h": ("seconds", 3600),
    "d": ("seconds", 86400),
    "tok": ("tokens", 1),
    "ktok": ("tokens", 1e3),
    "mtok": ("tokens", 1e6),
    "gtok": ("tokens", 1e9),
    "step": ("steps", 1),
    "steps": ("steps", 1),
}


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a run may use, in `seconds`, `tokens` (padding not counted) or `steps`."""

    amount: float
    unit: Literal["seconds", "tokens", "steps"]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From `30m`, `2h`, `10Mtok`, `5000steps`."""
        number = (
            r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][0-9]+)?"  # not 1,5h, which is no 15h
        )
        match = re.fullmatch(rf"\s*({number})\s*([a-zA-Z]+)\s*", str(text))
        unit = match[2] if match else ""
        known = None if unit == "M" else _UNITS.get(unit.lower())  # 10M: minutes, or millions of tokens?
        if match is None or known is None:
            raise ClozeError(f"budget {text!r} is not understood: use such as 30m, 2h, 10Mtok or 5000steps")
        amount = float(match[1].replace("_", "").replace(",", "")) * known[1]
        if amount <= 0:
            raise ClozeError(f"budget {text!r} is nothing: give a positive amount")
        if not math.isfinite(amount):
            raise ClozeError(f"budget {text!r} is endless: give a smaller amount")
        return cls(amount, known[0])  # type: ignore[arg-type]

    def steps(self, tokens_per_step: float, seconds_per_step: float | None, overhead: float = 0.0) -> int:
        """Steps that the budget buys, at least 1.

        Args:
            tokens_per_step: mean over the run.
            seconds_per_step: measured before the run; needed for a budget of time only.
            overhead: seconds for evaluations and saving, taken off a budget of time.
        """
        if self.unit == "steps":
            return max(1, round(self.amount))
        if self.unit == "tokens":
            return max(1, round(self.amount / tokens_per_step))
        assert seconds_per_step is not None
        return max(1, int(max(self.amount - overhead, 0.1 * self.amount) / seconds_per_step))
