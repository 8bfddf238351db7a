"""Intervals of paired differences: known values, how often they hold the truth, and controls that do not."""

from __future__ import annotations

import math
import re
import statistics
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from cloze.comparison import statistics as ours
from cloze.comparison.statistics import mean_interval, ratio_interval, reached_at
from cloze.variance.estimate import Estimate

SEEDS, ARMS, ROUNDS = 3, 4, 2000
SIGMAS = 4 * math.sqrt(0.05 * 0.95 / ROUNDS)  # what chance may do to a share of 95%


def test_the_interval_is_that_of_the_t_test() -> None:
    values = [0.1, -0.2, 0.4, 0.05]
    half = student.ppf(1 - 0.05 / 6, 3) * statistics.stdev(values) / 2
    found = mean_interval(values, comparisons=3)
    assert found.value == pytest.approx(statistics.fmean(values))
    assert found.high == pytest.approx(found.value + half)
    assert found.low == pytest.approx(found.value - half)


def test_one_seed_has_no_interval() -> None:
    assert mean_interval([0.3], 2) == Estimate(0.3, None, None)
    assert mean_interval([]) == Estimate(None, None, None)


def test_equal_differences_have_no_interval() -> None:
    """A coarse metric may give the same difference in all seeds by chance; that is no certainty."""
    assert mean_interval([0.1, 0.3 - 0.2, 0.1]) == Estimate(pytest.approx(0.1), None, None)  # type: ignore[arg-type]
    assert mean_interval([0.0, 0.0]) == Estimate(0.0, 0.0, 0.0)


def test_the_table_of_the_docs() -> None:
    """Half the width of an interval by seeds and recipes, as docs/compare.md has it."""
    page = (Path(__file__).parent.parent.parent / "docs" / "compare.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert len(rows) == 7
    for seeds, *widths in rows:
        n = int(seeds)
        wanted = [student.ppf(1 - 0.025 / m, n - 1) / math.sqrt(n) for m in (1, 2, 4, 8)]
        assert [float(w) for w in widths] == pytest.approx(wanted, abs=0.005), seeds


def test_ratios_have_a_geometric_mean() -> None:
    found = ratio_interval([2.0, 0.5, 1.0])
    logs = mean_interval([math.log(2), -math.log(2), 0.0])
    assert found.value == pytest.approx(1.0)
    assert logs.high is not None and found.high == pytest.approx(math.exp(logs.high))


@cache
def experiments() -> np.ndarray:
    """[rounds, arms, seeds] differences of no true size: final losses of equal recipes, less the baseline's.

    Every arm's loss is what its seed gives to all plus noise of its own, of another size in each arm.
    """
    draw = np.random.default_rng(0)
    seed = draw.normal(0, 5.0, (ROUNDS, 1, SEEDS))
    noise = draw.normal(0, 1.0, (ROUNDS, ARMS + 1, SEEDS)) * np.array([1.0, 0.3, 1.0, 2.0, 0.7])[:, None]
    losses = seed + noise
    return losses[:, 1:] - losses[:, :1]


def held(comparisons: int) -> np.ndarray:
    """[rounds, arms] whether the interval holds the true difference, 0."""
    found = []
    for arms in experiments():
        intervals = [mean_interval(values.tolist(), comparisons) for values in arms]
        found.append([e.low <= 0.0 <= e.high for e in intervals])  # type: ignore[operator]
    return np.array(found)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    assert held(comparisons=1).mean(0) == pytest.approx(0.95, abs=SIGMAS)


def test_corrected_intervals_hold_together() -> None:
    together = held(comparisons=ARMS).all(1).mean()
    assert 0.95 - SIGMAS < together < 0.99


def test_uncorrected_intervals_do_not_hold_together() -> None:
    """A control: of four recipes that are all as good as the first, one is found different too often."""
    assert held(comparisons=1).all(1).mean() < 0.95 - SIGMAS


def test_normal_quantiles_do_not_hold_for_three_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: as if the spread of three numbers were known."""
    monkeypatch.setattr(ours, "t_quantile", lambda _, level: student.ppf((1 + level) / 2, 10**9))
    assert (held(comparisons=1).mean(0) < 0.95 - 3 * SIGMAS).all()


def test_pairing_takes_out_what_the_seed_does_to_all() -> None:
    """A control: the same runs with the seeds of the second one shifted have wide intervals."""
    draw = np.random.default_rng(1)
    seed = draw.normal(0, 5.0, 8)
    a, b = seed + draw.normal(0, 0.1, 8), seed + draw.normal(0, 0.1, 8)
    paired, apart = mean_interval((a - b).tolist()), mean_interval((a - np.roll(b, 1)).tolist())
    assert paired.low is not None and apart.low is not None
    assert paired.high - paired.low < 0.1 * (apart.high - apart.low)  # type: ignore[operator]


def test_where_a_curve_reaches_a_loss() -> None:
    curve = [(0.0, 9.0), (100.0, 6.0), (200.0, 5.0), (300.0, 5.5), (400.0, 4.0)]
    assert reached_at(curve, 5.5) == 150.0
    assert reached_at(curve, 5.0) == 200.0
    assert reached_at(curve, 4.75) == pytest.approx(350.0)
    assert reached_at(curve, 3.9) is None
    assert reached_at(curve, 10.0) == 0.0
    assert reached_at([], 1.0) is None
