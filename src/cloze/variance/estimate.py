"""Numbers with their uncertainty: 95% intervals from leaving out one block of sequences at a time.

Sequences are the independent units of every measurement here; masks and tokens of one sequence are not.
So all intervals come from the jackknife over sequences (Tukey 1958), and ratios are jackknifed as ratios.
"""

from __future__ import annotations

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


_Z = 1.959963984540054  # the same quantile of the normal distribution


def t_quantile(freedom: int) -> float:
    """Two-sided 95% quantile of Student's t: exact for 1 and 2 degrees of freedom, from 3 on within 0.2%.

    From 3 on it is the series in 1/freedom of Abramowitz and Stegun (1964), 26.7.5.
    """
    if freedom == 1:
        return math.tan(0.475 * math.pi)
    if freedom == 2:
        return 0.95 * math.sqrt(2.0 / (4.0 * 0.975 * 0.025))
    z = _Z
    series = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(series, start=1))
