"""Paired differences with intervals that hold together, and the budget at which a curve reaches a loss.

Two runs of a seed share weights, order of text and held-out masks, so what is compared is the difference
within each seed. Seeds are the independent units: the interval of the mean difference is Student's t over
seeds, with seeds − 1 degrees of freedom. With m comparisons in a table each interval has the level
1 − 0.05/m (Bonferroni), so that all of them hold at the same time in 95% of such tables, whatever their
correlation. Dunnett's intervals would be narrower with few seeds, but they suppose that all recipes vary
equally from seed to seed, which a recipe that is nearly unstable does not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from cloze.variance.estimate import Estimate, t_quantile

ALPHA = 0.05


def mean_interval(values: Sequence[float], comparisons: int = 1) -> Estimate:
    """Mean of independent values with its interval.

    One value has none, nor have values that are all the same but not 0: seeds do differ, so a metric that
    does not show it is too coarse to tell by how much (such as an accuracy on few examples).

    Args:
        comparisons: how many intervals are to hold together.
    """
    n = len(values)
    if n == 0:
        return Estimate(None, None, None)
    mean = statistics.fmean(values)
    spread = statistics.stdev(values) if n > 1 else 0.0
    if n == 1 or 0.0 < 1e9 * spread < abs(mean) or (spread == 0.0 and mean != 0.0):
        return Estimate(mean, None, None)
    half = t_quantile(n - 1, 1.0 - ALPHA / comparisons) * spread / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half)


def ratio_interval(values: Sequence[float], comparisons: int = 1) -> Estimate:
    """Geometric mean of positive ratios with its interval: that of the mean of their logarithms."""
    found = mean_interval([math.log(v) for v in values], comparisons)
    return Estimate(*(None if x is None else math.exp(x) for x in found.as_dict().values()))


def reached_at(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """The budget at which a curve first is at `target` or below, on straight lines between its points.

    Args:
        curve: (budget, loss) in the order of the budget.

    None: it never is.
    """
    for number, (at, loss) in enumerate(curve):
        if loss <= target:
            if number == 0:
                return at
            before, above = curve[number - 1]
            return before + (at - before) * (above - target) / (above - loss)
    return None
