"""Rates are constants or schedules, and bad ones are refused."""

from itertools import pairwise

import pytest
from pydantic import ValidationError

from cloze.masking.rate import RateSchedule, rate_at
from cloze.masking.uniform import Uniform

SHAPES = [RateSchedule(start=0.4, end=0.1), RateSchedule(start=0.1, end=0.4, shape="cosine")]


def test_a_constant_stays() -> None:
    assert {rate_at(0.3, x) for x in (0.0, 0.5, 1.0)} == {0.3}


@pytest.mark.parametrize("rate", SHAPES)
def test_a_schedule_goes_from_start_to_end_and_its_mean_is_its_mean(rate: RateSchedule) -> None:
    assert rate_at(rate, 0.0) == pytest.approx(rate.start)
    assert rate_at(rate, 1.0) == pytest.approx(rate.end)
    assert rate_at(rate, -0.1) == rate_at(rate, 0.0)  # beyond the ends it stays
    assert rate_at(rate, 1.7) == rate_at(rate, 1.0)
    n = 10_000
    values = [rate_at(rate, (i + 0.5) / n) for i in range(n)]
    assert sum(values) / n == pytest.approx((rate.start + rate.end) / 2, abs=1e-9)
    steps = [b - a for a, b in pairwise(values)]
    assert all(s * (rate.end - rate.start) > 0 for s in steps)


def test_shapes_differ() -> None:
    linear, cosine = (RateSchedule(start=0.5, end=0.1, shape=s) for s in ("linear", "cosine"))
    assert rate_at(linear, 0.25) == pytest.approx(0.4)
    assert rate_at(cosine, 0.25) == pytest.approx(0.5 - 0.4 * (1 - 0.5**0.5) / 2)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.01, {"start": 0.3}, {"start": 0.3, "end": 0.0}, "much"])
def test_bad_rates_are_refused(rate: object) -> None:
    with pytest.raises(ValidationError):
        Uniform.model_validate({"rate": rate})


def test_a_policy_takes_a_schedule_from_yaml() -> None:
    assert Uniform.model_validate({"rate": {"start": 0.3, "end": 0.15}}).rate == RateSchedule(
        start=0.3, end=0.15
    )
