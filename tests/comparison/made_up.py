"""Comparisons that nobody ran: plans, and runs with losses as one wishes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cloze.comparison.arms import Arm
from cloze.comparison.budget import Allowance, Cost
from cloze.comparison.plan import Plan, Planned
from cloze.comparison.runs import Finished, MetricName, Point
from cloze.evaluation.suites.base import Scores
from cloze.recipes.load import load_recipe

STEPS, TOKENS = 100, 4000.0


def plan(
    names: Sequence[str],
    seeds: int = 3,
    out: Path = Path("out"),
    seconds: Mapping[str, float] | None = None,
    metric: MetricName = "heldout_loss",
    measures: Mapping[str, str] | None = None,
) -> Plan:
    """A plan of recipes that differ in their masking rate; `measures`: of those that predict other things."""
    arms = []
    for number, name in enumerate(names):
        recipe = load_recipe("mlm", [f"masking.rate={0.1 + 0.02 * number:.2f}"])
        cost = Cost(tokens=TOKENS, predicted=400.0, operations=1e12 * (1 + number))
        own = (seconds or {}).get(name, 0.5)
        times = (own * 0.9, own, own * 1.2)
        of = (measures or {}).get(name, "masked tokens")
        text = {"text": "t", "tokenizer": "t"}
        arms.append(Planned(Arm(name, recipe), cost, STEPS, times, 0.5, text, "m", of))
    return Plan(tuple(arms), tuple(range(seeds)), Allowance.parse("400ktok"), out, metric, ())


def run(
    name: str, seed: int, final: float | None, suites: dict[str, Scores] | None = None, start: float = 9.0
) -> Finished:
    """A run whose loss falls on a straight line from `start` to `final`; None: it diverged half way."""
    end = 6.0 if final is None else final
    whole = STEPS // 2 if final is None else STEPS
    curve = [Point(s, int(s * TOKENS), start + (end - start) * s / whole) for s in range(0, whole + 1, 10)]
    return Finished(
        recipe=name,
        seed=seed,
        budget=f"{STEPS}steps",
        status="diverged" if final is None else "finished",
        steps=whole,
        tokens=int(whole * TOKENS),
        operations=1e14,
        seconds=60.0,
        heldout_loss=final,
        heldout_accuracy=None if final is None else 0.3,
        bits_per_character=None if final is None else final / 2,
        curve=tuple(curve),
        suites=suites or {},
    )
