"""The public entry: `compare` recipes under one budget, and what it leaves in a folder.

OUT/runs/ARM-SEED/      each run, as `pretrain` leaves it, without its checkpoints
OUT/runs/ARM-SEED.json  what is kept of it, written as it finishes
OUT/timing.json         step times, taken in turn
OUT/comparison.json     what was found; OUT/report.html, the same as a page
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from cloze.comparison.analysis import analyse
from cloze.comparison.arms import Arm, make_arms
from cloze.comparison.budget import Allowance
from cloze.comparison.execute import make_runs
from cloze.comparison.plan import Plan, make_plan
from cloze.comparison.result import Comparison
from cloze.comparison.runs import Finished, Job, add_scores, made_before, measured_as
from cloze.comparison.timing import read_timing, write_timing
from cloze.data.corpus import Progress
from cloze.data.files import looks_local
from cloze.errors import ClozeError
from cloze.evaluation.run import evaluate, suite_of
from cloze.evaluation.suites.base import Meter
from cloze.recipes.schema import Recipe
from cloze.report.environment import environment
from cloze.training.precision import resolve
from cloze.training.state import writable_folder, write_json
from cloze.training.tracking import Listener

TIMES = "timing.json"


class Watcher(Protocol):
    """Who is told of the runs while they are made, such as the terminal's table."""

    def listen(self, job: Job) -> Listener: ...
    def done(self, run: Finished) -> None: ...


Watch = Callable[[Plan], AbstractContextManager[Watcher]]


class Unwatched:
    """Nobody looks."""

    def __enter__(self) -> Unwatched:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def listen(self, job: Job) -> Unwatched:
        """Nobody listens to the run either."""
        return self

    def done(self, run: Finished) -> None:
        """A run has ended."""

    def begin(self, steps: int) -> None:
        """A run begins."""

    def record(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""


def compare(
    recipes: Sequence[str | Recipe],
    data: Any = None,
    budget: str = "10Mtok",
    *,
    seeds: int = 3,
    out: str | Path = "runs/comparison",
    model: str | None = None,
    sweeps: Sequence[str] = (),
    overrides: Sequence[str] = (),
    suites: Sequence[str] = (),
    suite_data: Mapping[str, str | Path] | None = None,
    probe: bool = False,
    margin: float | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
    watch: Watch | None = None,
    meter: Meter | None = None,
) -> Comparison:
    """Train every recipe with every seed under one budget, and say what the differences show.

    Args:
        recipes: names, YAML files or recipes; the first one is the baseline.
        data: text, as for `pretrain`: paths, globs, hub ids. model: checkpoint that all start from.
        budget: of each run: tokens ("10Mtok"), operations ("1e15flop"), training time ("10m") or steps.
        seeds: runs of each recipe, with the seeds 0 to seeds − 1.
        out: folder. The same call again goes on with what is there; more seeds, recipes and suites may come,
            other settings of what is there are refused.
        sweeps: each "some.field=a,b,c": every recipe with every combination of the values.
        overrides: each "some.field=value", for all recipes.
        suites: downstream suites that every run's model is evaluated by. suite_data: where their data is.
        probe: suites that train fit a logistic regression to the frozen encoder, in place of fine-tuning.
        margin: in nats (bits where tokenizers differ): no more than that worse counts as not worse.
        jobs: runs on each GPU, or on the CPU's cores, at one time. More than one are processes of their own.
        progress: is told how far reading and tokenising is. watch: how the runs are. meter: the suites.

    Returns:
        What was found: comparison.json as an object.

    Errors: `ClozeError` for every mistake that the user can mend; `Interrupted` after Ctrl-C.
    """
    if seeds < 1:
        raise ClozeError(f"--seeds {seeds}: at least 1 is needed")
    if margin is not None and not margin > 0:
        raise ClozeError(f"--margin {margin:g}: give a positive difference, in nats")
    check_jobs(jobs)
    _check_suites(suites, suite_data or {})
    allowance = Allowance.parse(budget)
    arms = make_arms(recipes, data, model, sweeps, overrides)
    folder = writable_folder(Path(out))
    plan = plan_in(folder, arms, allowance, range(seeds), folder / TIMES, progress)
    runs = runs_of(plan, watch, jobs)
    if suites:
        plan = replace(plan, notes=(*plan.notes, *_unread(plan, suites)))
        runs = [_evaluated(plan, run, suites, suite_data or {}, probe, meter) for run in runs]
    settings = {
        "budget": str(allowance),
        "seeds": list(plan.seeds),
        "data": [source.path for source in arms[0].recipe.data.sources],
        "suites": [measured_as(name, probe) for name in suites],
        "margin": margin,
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve(arms[0].recipe.training.precision, device)
    found = analyse(plan, runs, margin, settings, environment(device, precision))
    _write(found, folder)
    return found


def check_jobs(jobs: int) -> None:
    """Errors: no run at a time."""
    if jobs < 1:
        raise ClozeError(f"--jobs {jobs}: at least 1 is needed")


def plan_in(
    folder: Path,
    arms: Sequence[Arm],
    allowance: Allowance,
    seeds: Sequence[int],
    times: Path,
    progress: Progress | None = None,
) -> Plan:
    """The plan of a comparison in a folder, with the step times of the file `times` if it has them.

    Errors: as of `make_plan`; a run of the folder was made with other settings.
    """
    before = read_timing(times, {arm.name: arm.recipe for arm in arms})
    plan, timing = make_plan(arms, allowance, seeds, folder, before, progress)
    made_before(plan.jobs)
    if before is None:
        write_timing(times, timing)
    return plan


def runs_of(plan: Plan, watch: Watch | None = None, at_once: int = 1) -> list[Finished]:
    """Make all runs of a plan that are missing, so many at one time on each device."""
    with watch(plan) if watch is not None else Unwatched() as watcher:
        return make_runs(plan.jobs, at_once, watcher.listen, watcher.done)


def _check_suites(suites: Sequence[str], places: Mapping[str, str | Path]) -> None:
    """Errors, before anything is trained: no such suite; it has no data, or data that is not there."""
    for name in suites:
        if suite_of(name).brings:
            continue
        place = places.get(name)
        if place is None:
            raise ClozeError(f"--suite {name}: where is its data? give --suite-data {name}=PATH")
        if looks_local(str(place)) and not Path(place).expanduser().exists():
            raise ClozeError(f"--suite-data {name}={place}: no such file or folder")


def _unread(plan: Plan, suites: Sequence[str]) -> list[str]:
    """What a reader must know of recipes whose outputs predict no tokens."""
    names = ", ".join(planned.arm.name for planned in plan.arms if not planned.reads)
    asked = ", ".join(name for name in suites if suite_of(name).reads)
    return [f"{names}: predicts no tokens, so {asked} cannot read it."] if names and asked else []


def _evaluated(
    plan: Plan,
    run: Finished,
    suites: Sequence[str],
    places: Mapping[str, str | Path],
    probe: bool,
    meter: Meter | None,
) -> Finished:
    """A run with the scores of the suites; those that it has are not measured again."""
    reads = next(p.reads for p in plan.arms if p.arm.name == run.recipe)
    able = [name for name in suites if reads or not suite_of(name).reads]
    missing = [name for name in able if measured_as(name, probe) not in run.suites]
    if not missing or run.status == "diverged":
        return run
    job = next(job for job in plan.jobs if (job.arm, job.seed) == (run.recipe, run.seed))
    found = evaluate(job.folder, missing, places, seeds=1, probe=probe, meter=meter).suites
    return add_scores(job.file, run, {measured_as(name, probe): scores for name, scores in found.items()})


def _write(found: Comparison, folder: Path) -> None:
    from cloze.report.comparison import write_comparison  # matplotlib is slow to import

    try:
        write_json(folder / "comparison.json", found.as_dict())
        write_comparison(found, folder)
    except OSError as error:
        raise ClozeError(f"{folder}: cannot be written ({error.strerror or error})") from error
