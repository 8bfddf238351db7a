"""Learning-rate factors against hand-made values."""

import pytest
from pydantic import ValidationError

from cloze.training.schedules import Schedule

KINDS = ("wsd", "cosine", "linear", "constant")


def factors(steps: int, **fields: object) -> list[float]:
    schedule = Schedule.model_validate(fields)
    return [schedule.factor(step, steps) for step in range(steps)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 997])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5])
def test_no_step_is_idle_and_none_is_above_one(kind: str, steps: int, warmup: float) -> None:
    found = factors(steps, kind=kind, warmup=warmup)
    assert len(found) == steps
    assert all(0.0 < factor <= 1.0 for factor in found)


def test_wsd() -> None:
    found = factors(100, kind="wsd", warmup=0.1, decay=0.2)
    assert found[:10] == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95])
    assert found[10:80] == [1.0] * 70
    assert found[80:] == pytest.approx([(19.5 - i) / 20 for i in range(20)])


def test_linear() -> None:
    found = factors(10, kind="linear", warmup=0.2)
    assert found == pytest.approx([0.25, 0.75, *((7.5 - i) / 8 for i in range(8))])


def test_cosine() -> None:
    found = factors(4, kind="cosine", warmup=0.0)
    assert found == pytest.approx([0.9619398, 0.6913417, 0.3086583, 0.0380602])


def test_constant_stays_after_its_warm_up() -> None:
    assert factors(4, kind="constant", warmup=0.5) == pytest.approx([0.25, 0.75, 1.0, 1.0])


def test_floor_is_where_it_ends() -> None:
    for kind in ("wsd", "cosine", "linear"):
        last = Schedule.model_validate({"kind": kind, "floor": 0.1}).factor(99_999, 100_000)
        assert last == pytest.approx(0.1, abs=1e-4)
        assert last > 0.1


def test_shares_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"warmup \+ decay"):
        Schedule(kind="wsd", warmup=0.8, decay=0.3)
    assert Schedule(kind="linear", warmup=0.8, decay=0.3).warmup == 0.8
