"""Where a run is: its parts are shares of its steps, and progress in [0, 1) is the share that is done."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

_ROUNDING = 1e-9


def part_at(shares: Sequence[float], progress: float) -> int:
    """Number of the part, of those with these shares one after the other, that progress lies in."""
    ends = accumulate(shares[:-1])
    return next((i for i, end in enumerate(ends) if progress < end - _ROUNDING), len(shares) - 1)


def stretches(*divisions: Sequence[float]) -> list[tuple[float, float]]:
    """(start, end) of the stretches of a run in which no division of it into shares changes its part."""
    inner = {round(end, 9) for shares in divisions for end in accumulate(shares[:-1])}
    marks = [0.0, *sorted(end for end in inner if 0.0 < end < 1.0), 1.0]
    return list(pairwise(marks))
