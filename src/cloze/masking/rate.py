"""Masking rates: a constant, or a schedule over the run."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from cloze.config import Config

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class RateSchedule(Config):
    """A rate that moves from `start` to `end` while the budget is spent."""

    start: Share
    end: Share
    shape: Literal["linear", "cosine"] = "linear"


Rate = Share | RateSchedule


def rate_at(rate: Rate, progress: float) -> float:
    """The rate when the share `progress` of the budget is spent, progress in [0, 1]."""
    if not isinstance(rate, RateSchedule):
        return rate
    x = min(max(progress, 0.0), 1.0)
    if rate.shape == "cosine":
        x = (1.0 - math.cos(math.pi * x)) / 2.0
    return rate.start + (rate.end - rate.start) * x
