"""Budgets: what is understood, what is refused, and how many steps they buy."""

import pytest

from cloze.errors import ClozeError
from cloze.training.budget import Budget


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("45s", 45, "seconds"),
        ("30m", 1800, "seconds"),
        ("30min", 1800, "seconds"),
        ("1.5h", 5400, "seconds"),
        (" 2 d ", 172_800, "seconds"),
        ("500tok", 500, "tokens"),
        ("3ktok", 3000, "tokens"),
        ("10Mtok", 1e7, "tokens"),
        ("2GTOK", 2e9, "tokens"),
        ("1e6tok", 1e6, "tokens"),
        ("1step", 1, "steps"),
        ("5_000steps", 5000, "steps"),
        ("1,250,000steps", 1_250_000, "steps"),
    ],
)
def test_understood(text: str, amount: float, unit: str) -> None:
    assert Budget.parse(text) == Budget(amount, unit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        *("", "30", "m", ".", "-5m", "0m", "0.0steps", "ten minutes", "5 parsecs", "5m 30s"),
        *("1.2.3h", "nan h", "inf h", "1e999steps", "10M", "1,5h", "1,50,000steps"),
    ],
)
def test_refused_in_a_line_that_says_how(text: str) -> None:
    with pytest.raises(ClozeError, match=r"^budget '.*(use such as 30m, 2h|positive amount|smaller amount)"):
        Budget.parse(text)


def test_steps() -> None:
    assert Budget.parse("70steps").steps(1000, None) == 70
    assert Budget.parse("10ktok").steps(990.0, None) == 10
    assert Budget.parse("100s").steps(1000, 0.5) == 200
    assert Budget.parse("100s").steps(1000, 0.5, overhead=40) == 120


def test_a_budget_buys_a_step_at_least_and_evaluations_leave_a_tenth() -> None:
    assert Budget.parse("1tok").steps(4096, None) == 1
    assert Budget.parse("1s").steps(4096, 60.0) == 1
    assert Budget.parse("100s").steps(1000, 0.5, overhead=1e6) == 20
