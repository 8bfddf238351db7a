"""The benchmark of short runs as proxies: counts on curves whose order is known."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield __import__("proxy")
    sys.modules.pop("proxy")


def curves(proxy: Any, order: str, recipes: int = 6, seeds: int = 5) -> list[Any]:
    """Early losses by number of the recipe; final ones in the same, the reversed or a random order."""
    draw = np.random.default_rng(0)
    found = []
    for seed in range(seeds):
        for number in range(recipes):
            late = {"kept": number, "reversed": -number, "random": draw.normal()}[order]
            points = ((0, 9.0), (10, 6 + 0.01 * number), (100, 5 + 0.01 * late))
            found.append(proxy.Curve("cell", str(number), seed, points))
    return found


@pytest.mark.parametrize(("order", "share"), [("kept", 1.0), ("reversed", 0.0)])
def test_orders_that_are_known(proxy: Any, order: str, share: float) -> None:
    found = proxy.agreement(proxy.pairs(curves(proxy, order), 0.1))
    assert found["all"] == {"kept": share * 75, "of": 75}
    assert sum(size["of"] for size in found["early"].values()) == 75
    means = proxy.agreement(proxy.mean_pairs(curves(proxy, order), 0.1))
    assert means["all"] == {"kept": share * 15, "of": 15}


def test_random_orders_are_kept_half_of_the_time(proxy: Any) -> None:
    found = proxy.count(proxy.pairs(curves(proxy, "random", recipes=12, seeds=20), 0.1))
    assert 0.4 < found["kept"] / found["of"] < 0.6


def test_the_evaluation_at_or_after_the_share_is_looked_at(proxy: Any) -> None:
    curve = proxy.Curve("cell", "a", 0, ((0, 9.0), (125, 7.0), (250, 6.0), (1000, 5.0)))
    assert curve.at(0.1) == (0.125, 7.0)
    assert curve.at(0.125) == (0.125, 7.0)
    assert curve.at(0.2) == (0.25, 6.0)


def test_runs_of_other_sets_are_not_compared(proxy: Any) -> None:
    one, other = (proxy.Curve(cell, name, 0, ((0, 9.0), (9, 5.0))) for cell, name in (("a", "x"), ("b", "y")))
    assert proxy.pairs([one, other], 0.1) == []


def test_both_kinds_of_folders_are_read(proxy: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    found = proxy.read(ROOT / "benchmarks" / "results" / "masking")
    cells = {c.cell for c in found}
    assert cells >= {"masking fresh 0.143 128 4 modernbert", "masking scarce 0.333 128 4 modernbert"}
    assert "masking scarce 0.333 128" not in cells  # of earlier files, which do not name size and family
    (tmp_path / "runs").mkdir()
    for recipe, loss in (("mlm", 5.0), ("spans", 4.9)):
        curve = [{"step": s, "tokens": 10 * s, "loss": 9 - (9 - loss) * s / 10} for s in range(11)]
        content = {"recipe": recipe, "seed": 0, "status": "finished", "curve": curve}
        (tmp_path / "runs" / f"{recipe}-0.json").write_text(json.dumps(content))
    (tmp_path / "timing.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["proxy.py", str(tmp_path), "--json", str(tmp_path / "out.json")])
    proxy.main()
    assert "1 of 1     100%" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["shares"]["0.1"]["seeds"]["all"] == {
        "kept": 1,
        "of": 1,
    }
