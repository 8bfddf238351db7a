"""The words of a verdict say what the interval shows, and no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze.comparison.verdict import finding, sentence, signed, with_interval
from cloze.variance.estimate import Estimate

NUMBERS = st.floats(-10, 10)


@given(st.lists(NUMBERS, min_size=3, max_size=3).map(sorted), st.booleans(), st.none() | st.floats(0.001, 5))
def test_a_difference_is_claimed_only_if_the_whole_interval_shows_it(
    numbers: list[float], lower: bool, margin: float | None
) -> None:
    low, value, high = numbers
    found = finding(Estimate(value, low, high), lower, margin)
    all_below, all_above = high < 0, low > 0
    assert (found == "better") == (all_below if lower else all_above)
    assert (found == "worse") == (all_above if lower else all_below)
    worst = high if lower else -low
    assert (found == "not worse") == (
        margin is not None and 0 <= worst < margin and not (all_below or all_above)
    )


def test_one_seed_claims_nothing_however_large_the_difference() -> None:
    assert finding(Estimate(-5.0, None, None), True) == "no interval"
    assert "nothing is claimed" in sentence(
        "spans", "mlm", "no interval", Estimate(-5.0, None, None), "nats", None
    )


@pytest.mark.parametrize(
    ("estimate", "margin", "words"),
    [
        (Estimate(-0.09, -0.12, -0.06), None, "spans: better than mlm: −0.090 [−0.120, −0.060] nats."),
        (Estimate(0.09, 0.06, 0.12), 0.2, "spans: worse than mlm: +0.090 [+0.060, +0.120] nats."),
        (
            Estimate(-0.01, -0.05, 0.03),
            None,
            "spans: no difference to mlm is shown: −0.010 [−0.050, +0.030] nats.",
        ),
        (
            Estimate(-0.01, -0.05, 0.03),
            0.02,
            "spans: no difference to mlm is shown: −0.010 [−0.050, +0.030] nats.",
        ),
        (Estimate(0.0, -0.02, 0.015), 0.02, "and at most 0.02 nats worse: +0.000 [−0.020, +0.015]"),
        (Estimate(None, None, None), None, "spans: no run to compare yet."),
    ],
)
def test_the_words(estimate: Estimate, margin: float | None, words: str) -> None:
    found = finding(estimate, True, margin)
    assert words in sentence("spans", "mlm", found, estimate, "nats", margin)


def test_numbers_are_short() -> None:
    assert signed(-0.01234) == "−0.012"
    assert with_interval(Estimate(1.0, None, None)) == "+1.000"
    assert with_interval(Estimate(None, None, None)) == ""
