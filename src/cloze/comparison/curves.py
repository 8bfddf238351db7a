"""Held-out curves over the seeds of a recipe, ready to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloze.comparison.result import ArmFacts, Comparison
from cloze.comparison.statistics import mean_interval


@dataclass(frozen=True, slots=True)
class Line:
    """A recipe's line in a plot.

    Attributes:
        name: of the recipe. at: [points] tokens, operations or seconds.
        middle, low, high: [points], the line and its band.
    """

    name: str
    at: Sequence[float]
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def bands(comparison: Comparison, measure: str) -> list[Line]:
    """The mean over each recipe's seeds; its band goes from the lowest to the highest.

    Recipes whose loss is of something else than the first one's have no points.

    Args:
        measure: tokens, operations or seconds.
    """
    found = []
    for arm in comparison.arms:
        steps, values = _curves(comparison, arm) if arm.recipe in comparison.comparable else ([], np.empty(0))
        at = [step * arm.per_step(measure) for step in steps]
        ways = (f(values, axis=0).tolist() if steps else [] for f in (np.mean, np.min, np.max))
        found.append(Line(arm.recipe, at, *ways))
    return found


def gaps(comparison: Comparison) -> list[Line]:
    """Paired differences to the baseline against tokens, with 95% intervals at each point by itself."""
    baseline, *others = comparison.arms
    found = []
    for arm in others:
        rows: list[list[float]] = []
        at: list[float] = []
        for run in comparison.runs:
            base = next(
                (r for r in comparison.runs if (r.recipe, r.seed) == (baseline.recipe, run.seed)), None
            )
            if arm.recipe not in comparison.comparable or run.recipe != arm.recipe:
                continue
            if base is None or "diverged" in (run.status, base.status):
                continue
            own, theirs = (np.array(r.points(comparison.metric)) for r in (run, base))
            tokens = own[own[:, 1] <= theirs[-1, 1] * 1.001, 1]
            at = tokens.tolist()
            rows.append((own[: len(at), 2] - np.interp(tokens, theirs[:, 1], theirs[:, 2])).tolist())
        intervals = [mean_interval(values) for values in zip(*rows, strict=False)]
        middle = [e.value or 0.0 for e in intervals]
        low = [m if e.low is None else e.low for m, e in zip(middle, intervals, strict=True)]
        high = [m if e.high is None else e.high for m, e in zip(middle, intervals, strict=True)]
        found.append(Line(arm.recipe, at[: len(middle)], middle, low, high))
    return found


def _curves(comparison: Comparison, arm: ArmFacts) -> tuple[list[int], np.ndarray]:
    """Steps of the evaluations that all of an arm's runs have, and [seeds, steps] values."""
    curves = [
        {step: value for step, _, value in run.points(comparison.metric)}
        for run in comparison.runs
        if run.recipe == arm.recipe and run.status == "finished"
    ]
    steps = sorted(set.intersection(*(set(c) for c in curves))) if curves else []
    return steps, np.array([[c[s] for s in steps] for c in curves])
