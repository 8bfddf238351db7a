"""The scores of an evaluation: as JSON, put together with those of earlier calls, and as rows of tables."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloze.errors import ClozeError

if TYPE_CHECKING:
    from cloze.evaluation.suites.base import Scores

FILE = "evaluation.json"
ABOUT = "_about"


def summary(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation over seeds (None for a single value), and the values."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": spread, "values": values}


@dataclass(frozen=True, slots=True)
class Measurement:
    """How tasks of a suite were measured.

    Attributes:
        suite, tasks: what it is about.
        settings: what was chosen. environment: hardware and versions.
        seconds: that it took.
    """

    suite: str
    tasks: list[str]
    settings: dict[str, Any]
    environment: dict[str, Any]
    seconds: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        model: as the user named it.
        step: steps that the run had done; None: not a run.
        suites: suite, task, metric, and its values.
        measurements: how they were measured; each task is in one of them.
    """

    model: str
    step: int | None = None
    suites: dict[str, Scores] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()

    def add(self, scores: Scores, how: Measurement) -> Evaluation:
        """With the scores of a suite; tasks that are there already are replaced, the others stay."""
        suites = self.suites | {how.suite: self.suites.get(how.suite, {}) | scores}
        earlier = [replace(m, tasks=[t for t in m.tasks if m.suite != how.suite or t not in how.tasks])
                   for m in self.measurements]  # fmt: skip
        return replace(self, suites=suites, measurements=(*(m for m in earlier if m.tasks), how))

    def scores(self) -> dict[str, Any]:
        """`{suite: {task: {metric: {mean, std, values}}}}`."""
        return {
            suite: {
                task: {metric: summary(values) for metric, values in metrics.items()}
                for task, metrics in tasks.items()
            }
            for suite, tasks in self.suites.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """The content of evaluation.json."""
        how = [asdict(measurement) for measurement in self.measurements]
        return {**self.scores(), ABOUT: {"model": self.model, "step": self.step, "measurements": how}}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Evaluation:
        """Inverse of `as_dict`. Errors: KeyError, TypeError or AttributeError for other content."""
        about = content[ABOUT]
        suites = {
            suite: {
                task: {metric: list(score["values"]) for metric, score in metrics.items()}
                for task, metrics in tasks.items()
            }
            for suite, tasks in content.items()
            if suite != ABOUT
        }
        how = tuple(Measurement(**measurement) for measurement in about["measurements"])
        return cls(about["model"], about["step"], suites, how)


def read(folder: Path) -> Evaluation | None:
    """What is in a folder already; None: nothing. Errors: a file that is not what `evaluate` writes."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return Evaluation.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClozeError(
            f"{path}: is not what cloze evaluate writes: delete it or choose another --out folder"
        ) from error


@dataclass(frozen=True, slots=True)
class Row:
    """A task, or a group of tasks with the means over them.

    Attributes:
        name: the last part of the name. depth: number of groups around it.
        tasks: in the group; 0: it is a task.
        scores: metric and its values.
    """

    name: str
    depth: int
    tasks: int
    scores: dict[str, list[float]]


def table_rows(tasks: Scores, depth: int = 0) -> list[Row]:
    """Tasks whose names begin alike ("blimp/syntax/…") under their group, as deep as the names go."""
    groups: dict[str, Scores] = {}
    for task, scores in tasks.items():
        head, _, rest = task.partition("/")
        if rest:
            groups.setdefault(head, {})[rest] = scores
    found = [Row(task, depth, 0, scores) for task, scores in tasks.items() if "/" not in task]
    for name, inside in groups.items():
        found += [Row(name, depth, len(inside), mean(inside)), *table_rows(inside, depth + 1)]
    return found


def mean(tasks: Scores) -> dict[str, list[float]]:
    """Of the metrics that all tasks have: the mean over tasks, for each seed if they have as many of them."""
    shared = [m for m in next(iter(tasks.values()), {}) if all(m in scores for scores in tasks.values())]
    found = {}
    for metric in shared:
        values = [scores[metric] for scores in tasks.values()]
        if len({len(v) for v in values}) == 1:
            found[metric] = [statistics.fmean(seed) for seed in zip(*values, strict=True)]
        else:
            found[metric] = [statistics.fmean([statistics.fmean(v) for v in values])]
    return found


def cell(values: list[float] | None) -> str:
    """Mean ± standard deviation over seeds, with four digits after the point where it is small."""
    if not values:
        return ""
    average = statistics.fmean(values)
    digits = 4 if abs(average) < 10 else 2 if abs(average) < 1000 else 0
    spread = f" ±{statistics.stdev(values):.{max(digits - 1, 0)}f}" if len(values) > 1 else ""
    return f"{average:,.{digits}f}{spread}"
