"""Numbers with their uncertainty: 95% intervals from leaving out one block of sequences at a time.

Sequences are the independent units of every measurement here; masks and tokens of one sequence are not.
So all intervals come from the jackknife over sequences (Tukey 1958), and ratios are jackknifed as ratios.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95% interval.

    Attributes:
        value: the estimate; None if it is not known (then at most a bound is).
        low: lower end of the interval; None where it is unbounded or not known.
        high: upper end, likewise.
    """

    value: float | None
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        """{"value", "low", "high"}, for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def scaled(self, factor: float, shift: float = 0.0) -> Estimate:
        """shift + factor · estimate; `factor` is not negative."""
        value, low, high = (None if x is None else shift + factor * x for x in self.as_dict().values())
        return Estimate(value, low, high)


def jackknife(value: float, left_out: Sequence[float], sizes: Sequence[int] | None = None) -> Estimate:
    """A statistic with its interval: value ± t · standard error, with blocks − 1 degrees of freedom.

    Args:
        value: the statistic of all sequences.
        left_out: [blocks] the statistic without each block of sequences.
        sizes: [blocks] sequences in each block; None: the same number in each. With blocks of unequal size
            the variance is that of Busing, Meijer and van der Leeden (1999).

    With fewer than two blocks, or if the statistic does not exist without one of them, the ends are None;
    if it does not exist at all, so is the value.
    """
    blocks = len(left_out)
    if not math.isfinite(value):
        return Estimate(None, None, None)
    if blocks < 2 or not all(math.isfinite(x) for x in left_out):
        return Estimate(value, None, None)
    shares = [1.0 / blocks] * blocks if sizes is None else [size / sum(sizes) for size in sizes]
    centre = sum((1.0 - share) * x for share, x in zip(shares, left_out, strict=True))
    pseudo = [(value - (1.0 - share) * x) / share for share, x in zip(shares, left_out, strict=True)]
    middle = blocks * value - centre
    variance = sum((p - middle) ** 2 * s / (1.0 - s) for p, s in zip(pseudo, shares, strict=True)) / blocks
    half = t_quantile(blocks - 1) * math.sqrt(variance)
    return Estimate(value, value - half, value + half)


@functools.cache
def t_quantile(freedom: int, level: float = 0.95) -> float:
    """Two-sided quantile of Student's t: |T| is below it with probability `level`.

    The distribution for whole degrees of freedom is a finite sum in the angle atan(t / √freedom)
    (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4), which is halved down to the last bits.
    """
    low, high = 0.0, 0.5 * math.pi
    for _ in range(64):
        middle = 0.5 * (low + high)
        if _within(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| ≤ √freedom · tan angle)."""
    odd, square = freedom % 2, math.cos(angle) ** 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(1, (freedom - odd) // 2 + 1):
        total += term
        term *= square * (2 * k - 1 + odd) / (2 * k + odd)
    total *= math.sin(angle)
    return 2.0 / math.pi * (angle + total) if odd else total
