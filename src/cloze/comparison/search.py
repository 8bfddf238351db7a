"""Successive halving: many settings for a short while, the best third of them for longer, and so on.

Jamieson and Talwalkar 2016 (1502.07943), with a third kept where they keep half. All rungs get the same part
of the total. Every rung's runs start anew, with a whole learning-rate schedule over their own budget: a run
that is stopped in the middle of a longer schedule has not cooled down, and the order of such losses is
another one. So pruning within a run, which is what a library would bring, is not wanted here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloze.comparison.arms import Arm, make_arms
from cloze.comparison.budget import Allowance
from cloze.comparison.plan import Plan
from cloze.comparison.run import TIMES, Watch, check_jobs, plan_in, runs_of
from cloze.data.corpus import Progress
from cloze.errors import ClozeError
from cloze.recipes.load import dump
from cloze.recipes.schema import Recipe
from cloze.training.state import writable_folder, write_json

KEEP = 3  # one of so many goes on
SEED = 1000  # of all runs of a search: a comparison of its winner uses seeds from 0 on, which it has not seen


@dataclass(frozen=True, slots=True)
class Rung:
    """One round of a search.

    Attributes:
        budget: of each run. losses: final held-out metric by arm, best first; None: the run diverged.
    """

    budget: str
    losses: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found.

    Attributes:
        rungs: in their order. best: the arm that is left. recipe: its file.
    """

    total: str
    metric: str
    rungs: tuple[Rung, ...]
    best: str
    recipe: str

    def lines(self) -> list[str]:
        """For the terminal; a line that does not start with a space is a heading."""
        found = []
        for number, rung in enumerate(self.rungs, start=1):
            found.append(f"Rung {number}: {len(rung.losses)} settings, {rung.budget} each")
            for name, loss in rung.losses.items():
                shown = "diverged" if loss is None else f"{loss:.4f}"
                found.append(f"  {name:<60}{shown:>10}")
            found.append("")
        found.append(f"Best: {self.best}")
        found += [
            "  The lowest of several losses, in one seed, is lower than the setting deserves.",
            f"  To know what it is worth: cloze compare RECIPE {self.recipe} --seeds 5",
        ]
        return found


def sizes_of(settings: int) -> list[int]:
    """Settings in each rung, until the next one would have a single one."""
    found = [settings]
    while (left := math.ceil(found[-1] / KEEP)) > 1:
        found.append(left)
    return found


def search(
    recipes: Sequence[str | Recipe],
    data: Any,
    total: str,
    *,
    out: str | Path = "runs/search",
    model: str | None = None,
    sweeps: Sequence[str] = (),
    overrides: Sequence[str] = (),
    jobs: int = 1,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Search:
    """Find the best of all combinations of the swept values under a total budget.

    Args:
        total: of all runs together, such as "100Mtok", "1e15flop" or "2h". The rest: see `compare`.

    Returns:
        The rungs and the best setting, also in OUT/search.json; OUT/best.yaml is its recipe.

    Errors: as of `compare`; a total that is too small for one step of each run.
    """
    check_jobs(jobs)
    whole = Allowance.parse(total)
    arms = make_arms(recipes, data, model, sweeps, overrides)
    folder = writable_folder(Path(out))
    sizes = sizes_of(len(arms))
    rungs: list[Rung] = []
    metric = ""
    for number, size in enumerate(sizes, start=1):
        each = whole.share(1.0 / (len(sizes) * size))
        plan = plan_in(folder / f"rung-{number}", arms, each, [SEED], folder / TIMES, progress)
        _check_measures(plan)
        losses = {run.recipe: run.value(plan.metric) for run in runs_of(plan, watch, jobs)}
        order = {name: math.inf if loss is None else loss for name, loss in losses.items()}
        ranked = sorted(order, key=order.__getitem__)
        rungs.append(Rung(str(each), {name: losses[name] for name in ranked}))
        left = sizes[number] if number < len(sizes) else 1
        arms = [arm for arm in arms if arm.name in ranked[:left]]
        metric = plan.metric
    best = _write_best(folder, arms[0])
    found = Search(str(whole), metric, tuple(rungs), arms[0].name, str(best))
    write_json(folder / "search.json", asdict(found))
    return found


def _check_measures(plan: Plan) -> None:
    """Errors: losses of different things, of which none is the lowest."""
    first = plan.arms[0]
    for own in plan.arms[1:]:
        if own.measures != first.measures:
            raise ClozeError(
                f"--search: the loss of {own.arm.name} is of {own.measures}, that of {first.arm.name} of "
                f"{first.measures}, so neither is lower: search among recipes that measure the same"
            )


def _write_best(folder: Path, arm: Arm) -> Path:
    file = folder / "best.yaml"
    file.write_text(dump(arm.recipe.model_copy(update={"name": "best"})), encoding="utf-8")
    return file
