"""Learning-rate schedules: the factor as a pure function of progress."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from cloze.config import Config


class Schedule(Config):
    """Warm-up, then a shape; all lengths are shares of the run's steps.

    `wsd` is warm-up, stable, then a linear decay over the last `decay` of the run (2404.06395); `cosine`
    and `linear` fall from the end of the warm-up to the end.
    """

    kind: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    warmup: float = Field(0.05, ge=0.0, lt=1.0)
    decay: float = Field(0.3, gt=0.0, le=1.0)
    floor: float = Field(0.0, ge=0.0, le=1.0, description="last learning rate, as a share of the highest")

    @model_validator(mode="after")
    def _fits(self) -> Schedule:
        if self.kind == "wsd" and self.warmup + self.decay > 1.0:
            raise ValueError("warmup + decay must not be more than 1")
        return self

    def factor(self, step: int, steps: int) -> float:
        """Factor on the learning rate of step `step` (0 is the first) of `steps`; never 0."""
        warm = self.warmup * steps
        x = step + 0.5  # the middle of the step: neither the first nor the last one is idle
        if x < warm:
            return x / warm
        if self.kind == "constant":
            return 1.0
        if self.kind == "wsd":
            fall = min(1.0, (steps - x) / (self.decay * steps))
        else:
            fall = (steps - x) / (steps - warm)
            if self.kind == "cosine":
                fall = (1.0 - math.cos(math.pi * fall)) / 2.0
        return self.floor + (1.0 - self.floor) * fall
