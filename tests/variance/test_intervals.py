"""Intervals: the t quantile, the jackknife, and how often they hold the truth."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from scipy.stats import t as student
from variance.tiny_mlm import Urn

from cloze.variance import Decomposition, Estimate, decompose, jackknife, t_quantile

# Two-sided 95% quantiles of Student's t, as any table has them.
TABLE = {
    1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 7: 2.3646, 10: 2.2281, 15: 2.1314, 23: 2.0687,
    30: 2.0423, 63: 1.9983, 120: 1.9799, 1000: 1.9623,
}  # fmt: skip
RUNS = 160


@cache
def measured(signal: float = 1.0, runs: int = RUNS) -> list[Decomposition]:
    urns = [Urn(seed=1000 + i, sequences=16, signal=signal) for i in range(runs)]
    return [decompose(u.loss, u.sizes, u.rate, u.parameters, masks=4) for u in urns]


def test_t_quantile_is_that_of_the_tables() -> None:
    for freedom, wanted in TABLE.items():
        assert t_quantile(freedom) == pytest.approx(wanted, abs=5.1e-5), freedom


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99, 1 - 0.05 / 40])
def test_t_quantiles_of_other_levels(level: float) -> None:
    for freedom in (*range(1, 12), 50, 201):
        wanted = student.ppf((1 + level) / 2, freedom)
        assert t_quantile(freedom, level) == pytest.approx(wanted, rel=1e-9), freedom


def test_the_jackknife_of_a_mean_is_the_t_interval() -> None:
    x = torch.tensor([1.0, 2.0, 4.0, 4.5, 9.0, 2.5], dtype=torch.float64)
    found = jackknife(float(x.mean()), ((x.sum() - x) / 5).tolist())
    half = TABLE[5] * float(x.std()) / 6**0.5
    assert found.low == pytest.approx(float(x.mean()) - half, rel=1e-3)
    assert found.high == pytest.approx(float(x.mean()) + half, rel=1e-3)


def test_blocks_of_unequal_size() -> None:
    """The mean of 7 numbers from blocks of 3, 2 and 2: variance of the block means, weighted by size."""
    x = torch.tensor([1.0, 2.0, 4.0, 4.5, 9.0, 2.5, 3.0], dtype=torch.float64)
    sizes = [3, 2, 2]
    left_out = [float(torch.cat([x[:a], x[b:]]).mean()) for a, b in ((0, 3), (3, 5), (5, 7))]
    found = jackknife(float(x.mean()), left_out, sizes)
    means = torch.tensor([x[:3].mean(), x[3:5].mean(), x[5:].mean()])
    shares = torch.tensor(sizes) / 7
    variance = ((means - x.mean()) ** 2 * shares / (1 - shares)).sum() / 3
    assert found.high is not None
    assert found.high - float(x.mean()) == pytest.approx(TABLE[2] * float(variance) ** 0.5, rel=1e-4)
    equal = jackknife(1.0, [0.9, 1.3, 1.1], [4, 4, 4])
    assert equal.as_dict() == pytest.approx(jackknife(1.0, [0.9, 1.3, 1.1]).as_dict())


def test_what_is_not_known_is_none() -> None:
    assert jackknife(2.0, [1.0]) == Estimate(2.0, None, None)
    assert jackknife(2.0, [1.0, float("nan")]) == Estimate(2.0, None, None)
    assert jackknife(float("nan"), [1.0, 2.0]) == Estimate(None, None, None)
    assert Estimate(2.0, None, 3.0).scaled(2.0, 1.0) == Estimate(5.0, None, 7.0)
    assert Estimate(2.0, None, 3.0).as_dict() == {"value": 2.0, "low": None, "high": 3.0}


def covered(name: str, shrink: float = 1.0) -> float:
    """Share of the runs whose interval, shrunk around its value, holds the truth."""
    truth, hits = Urn(seed=0, sequences=2).truth[name], 0
    for found in measured():
        estimate = getattr(found, name)
        assert None not in (estimate.value, estimate.low, estimate.high)
        low = estimate.value - shrink * (estimate.value - estimate.low)
        high = estimate.value + shrink * (estimate.high - estimate.value)
        hits += low <= truth <= high
    return hits / RUNS


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    for name in Urn(seed=0, sequences=2).truth:
        assert 0.88 <= covered(name) <= 1.0, name


def test_intervals_of_one_standard_error_are_found() -> None:
    """The control: intervals half as wide."""
    assert all(covered(name, 0.5) < 0.85 for name in Urn(seed=0, sequences=2).truth)


def test_without_a_signal_the_noise_scale_has_only_a_lower_bound() -> None:
    found = [run.noise_scale for run in measured(signal=0.0, runs=60)]
    unknown = [scale for scale in found if scale.value is None]
    assert len(unknown) > 0.9 * 60
    assert all(scale.high is None and (scale.low is None or scale.low > 0.0) for scale in unknown)
    assert sum(scale.low is None for scale in unknown) < 0.1 * 60


def test_two_sequences_give_values_without_all_intervals() -> None:
    urn = Urn(seed=1, sequences=2)
    found = decompose(urn.loss, urn.sizes, urn.rate, urn.parameters)
    assert found.data.value is not None and found.data.low is None
    assert found.mask.low is not None
