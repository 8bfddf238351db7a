"""Budgets of a comparison."""

from __future__ import annotations

import pytest

from cloze.comparison.budget import Allowance, Cost
from cloze.errors import ClozeError

COST = Cost(tokens=4000.0, predicted=1000.0, operations=2e12)


@pytest.mark.parametrize(
    ("text", "amount", "unit", "steps", "shown"),
    [
        ("1e15flop", 1e15, "operations", 500, "1e+15 operations"),
        ("3Pflop", 3e15, "operations", 1500, "3e+15 operations"),
        ("20 TFLOPs", 2e13, "operations", 10, "2e+13 operations"),
        ("10Mtok", 1e7, "tokens", 2500, "10 M tokens"),
        ("5m", 300, "seconds", 600, "5m 00s"),
        ("1h", 3600, "seconds", 7200, "1h 00m"),
        ("70steps", 70, "steps", 70, "70 steps"),
    ],
)
def test_what_a_budget_buys(text: str, amount: float, unit: str, steps: int, shown: str) -> None:
    found = Allowance.parse(text)
    assert (found.amount, found.unit) == (amount, unit)
    assert found.steps(COST, seconds_per_step=0.5) == steps
    assert str(found) == shown
    assert found.share(0.5).amount == amount / 2


@pytest.mark.parametrize("text", ["10M", "flop", "0flop", "-1flop", "1e15", "ten", "1.5.2flop", ""])
def test_mistakes(text: str) -> None:
    with pytest.raises(ClozeError, match="budget"):
        Allowance.parse(text)


def test_less_than_a_step_is_nothing() -> None:
    with pytest.raises(ClozeError, match=r"a budget of 100 tokens is less than one step of 4 k tokens"):
        Allowance.parse("100tok").steps(COST, 0.5)
