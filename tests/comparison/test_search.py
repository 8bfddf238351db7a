"""Successive halving: its budget adds up, and the best is what is left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from comparison.made_up import plan, run

from cloze import ClozeError
from cloze.comparison import search as module
from cloze.comparison.arms import Arm
from cloze.comparison.budget import Allowance
from cloze.comparison.plan import Plan
from cloze.comparison.search import Search, search, sizes_of
from cloze.recipes.load import load_recipe

SWEEPS = ["masking.rate=0.1,0.2,0.3", "training.clip=1,2,3"]


def test_a_third_goes_on_until_one_is_left() -> None:
    assert sizes_of(27) == [27, 9, 3]
    assert sizes_of(4) == [4, 2]
    assert sizes_of(2) == [2]
    assert sizes_of(10) == [10, 4, 2]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Allowance, Sequence[int]]]:
    """Plans of a search with made-up losses: the lowest at rate 0.2, clip 3; rate 0.3, clip 3 diverges."""
    plans: list[tuple[list[str], Allowance, Sequence[int]]] = []

    def plan_in(folder: Path, arms: Sequence[Arm], each: Allowance, seeds: Sequence[int], *_: Any) -> Plan:
        plans.append(([arm.name for arm in arms], each, seeds))
        return plan([arm.name for arm in arms], 1, folder)

    def runs_of(made: Plan, watch: Any, at_once: int) -> list[Any]:
        losses = {}
        for planned in made.arms:
            rate, clip = (float(part.partition("=")[2]) for part in planned.arm.name.split()[1:])
            losses[planned.arm.name] = None if (rate, clip) == (0.3, 3) else 5 + abs(rate - 0.2) - 0.01 * clip
        return [run(name, 0, loss) for name, loss in losses.items()]

    monkeypatch.setattr(module, "plan_in", plan_in)
    monkeypatch.setattr(module, "runs_of", runs_of)
    return plans


def test_the_best_is_left_and_the_total_is_kept(tried: list[Any], tmp_path: Path) -> None:
    found = search(["mlm"], "x.txt", "90Mtok", out=tmp_path, sweeps=SWEEPS)
    assert [len(names) for names, _, _ in tried] == [9, 3]
    assert [each.amount for _, each, _ in tried] == [5e6, 15e6]
    assert sum(len(names) * each.amount for names, each, _ in tried) == 90e6
    assert all(seeds == [1000] for _, _, seeds in tried)
    assert found.best == "mlm rate=0.2 clip=3"
    assert list(found.rungs[0].losses.values())[-1] is None
    assert load_recipe(str(tmp_path / "best.yaml")).masking.rate == 0.2
    assert load_recipe(str(tmp_path / "best.yaml")).name == "best"
    assert json.loads((tmp_path / "search.json").read_text())["best"] == found.best


def test_the_words(tried: list[Any], tmp_path: Path) -> None:
    found: Search = search(["mlm"], "x.txt", "90Mtok", out=tmp_path, sweeps=SWEEPS)
    shown = found.lines()
    assert max(len(line) for line in shown if "cloze compare" not in line) <= 80
    assert "Rung 2: 3 settings, 15 M tokens each" in shown
    assert "Best: mlm rate=0.2 clip=3" in shown
    assert any("lower than the setting deserves" in line for line in shown)


def test_losses_of_different_things_have_no_lowest(
    tried: list[Any], tmp_path: Path, monkeypatch: Any
) -> None:
    other = {"mlm rate=0.2 clip=1": "next tokens"}

    def plan_in(folder: Path, arms: Sequence[Arm], *_: Any) -> Plan:
        return plan([arm.name for arm in arms], 1, folder, measures=other)

    monkeypatch.setattr(module, "plan_in", plan_in)
    with pytest.raises(
        ClozeError, match=r"^--search: the loss of mlm rate=0.2 clip=1 is of next tokens, that"
    ):
        search(["mlm"], "x.txt", "90Mtok", out=tmp_path, sweeps=SWEEPS)
