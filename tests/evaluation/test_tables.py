"""Scores as rows and lines: groups have the means of their tasks, and everything fits 80 columns."""

from __future__ import annotations

import pytest

from cloze.evaluation.results import Evaluation, Measurement, Row, cell, mean, table_rows
from cloze.evaluation.suites import SUITES
from cloze.evaluation.suites.base import Scores, Suite
from cloze.evaluation.table import MOST, WIDTH, lines


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(SUITES, "made-up", Suite("made-up", "", lambda subject, options: {}, "f1"))
    return "made-up"


def table(suite: str, scores: Scores) -> list[str]:
    found = lines(Evaluation("m", None, {suite: scores}))
    assert all(len(line) <= WIDTH for line in found), found
    assert [line for line in found if not line.startswith(" ")] == [found[0]]
    return found


def test_groups_have_the_mean_of_their_tasks() -> None:
    scores: Scores = {
        "a/x/1": {"f1": [0.1], "loss": [1.0]},
        "b": {"f1": [0.9]},
        "a/x/2": {"f1": [0.3], "loss": [3.0]},
        "a/y/3": {"f1": [0.8]},
    }
    assert table_rows(scores) == [
        Row("b", 0, 0, {"f1": [0.9]}),
        Row("a", 0, 3, {"f1": [pytest.approx(0.4)]}),
        Row("x", 1, 2, {"f1": [pytest.approx(0.2)], "loss": [2.0]}),
        Row("1", 2, 0, {"f1": [0.1], "loss": [1.0]}),
        Row("2", 2, 0, {"f1": [0.3], "loss": [3.0]}),
        Row("y", 1, 1, {"f1": [0.8]}),
        Row("3", 2, 0, {"f1": [0.8]}),
    ]
    assert [row.name for row in table_rows({"a": {}, "a/b": {}})] == ["a", "a", "b"]


def test_a_mean_over_tasks_keeps_the_seeds_apart() -> None:
    assert mean({"a": {"f1": [0.2, 0.4]}, "b": {"f1": [0.4, 0.8]}}) == {
        "f1": [pytest.approx(0.3), pytest.approx(0.6)]
    }
    assert mean({"a": {"f1": [0.2, 0.4]}, "b": {"f1": [0.5]}}) == {"f1": [pytest.approx(0.4)]}
    assert mean({"a": {"f1": [0.2]}, "b": {"mcc": [0.4]}}) == {}
    assert mean({}) == {}


def test_a_table_of_few_metrics(suite: str) -> None:
    found = table(suite, {"cola": {"f1": [0.5, 0.7], "loss": [1234.5]}, "x" * 90: {"f1": [0.2, 0.2]}})
    assert found[0].split() == ["made-up", "f1", "loss"]
    assert found[1].split() == ["cola", "0.6000", "±0.141", "1,234"]  # banker's rounding
    assert found[2].split()[0] == "x" * (len(found[2].split()[0]) - 1) + "…"
    assert found[3].split() == ["mean", "of", "f1", "(2)", "0.4000", "±0.071"]


def test_many_metrics_stand_below_each_other(suite: str) -> None:
    metrics = {f"a_metric_with_a_long_name_{i}": [float(i)] for i in range(5)}
    found = table(suite, {"t": metrics})
    assert found[1] == "  t"
    assert found[2].split() == ["a_metric_with_a_long_name_0", "0.0000"]
    assert len(found) == 7 and len({len(line) for line in found[2:]}) == 1


def test_of_many_tasks_the_groups_are_shown(suite: str) -> None:
    few = table(suite, {f"blimp/g{i % 3}/t{i}": {"f1": [0.5]} for i in range(9)})
    assert len(few) == 1 + 1 + 3 + 9
    many = table(suite, {f"blimp/g{i % 3}/t{i}": {"f1": [0.5]} for i in range(MOST)})
    assert [line.split()[0] for line in many[1:-1]] == ["blimp", "g0", "g1", "g2"]
    assert f"each of the {MOST} tasks" in many[-1]
    flat = table(suite, {f"t{i}": {"f1": [0.5]} for i in range(2 * MOST)})
    assert len(flat) == 1 + 2 * MOST + 1  # they have no group that could stand for them


def test_cells() -> None:
    assert cell(None) == cell([]) == ""
    assert cell([0.51234]) == "0.5123"
    assert cell([-0.5, 0.5]) == "0.0000 ±0.707"
    assert cell([123.456]) == "123.46"
    assert cell([98765.4]) == "98,765"


def test_what_is_written_is_read_again() -> None:
    how = Measurement("s", ["a", "b"], {"seeds": 2}, {"torch": "2"}, 1.5)
    made = Evaluation("m", 7).add({"a": {"f1": [0.1, 0.2]}, "b": {"f1": [0.3]}}, how)
    assert Evaluation.from_dict(made.as_dict()) == made
    again = Measurement("s", ["b", "c"], {"seeds": 3}, {}, 0.5)
    both = made.add({"b": {"f1": [0.4]}, "c": {"f1": [0.5]}}, again)
    assert [m.tasks for m in both.measurements] == [["a"], ["b", "c"]]
    assert both.suites["s"]["b"] == {"f1": [0.4]} and list(both.suites["s"]) == ["a", "b", "c"]
    elsewhere = both.add({"b": {"f1": [0.9]}}, Measurement("t", ["b"], {}, {}, 0.1))
    assert elsewhere.suites["s"]["b"] == {"f1": [0.4]}
