"""What a run folder says, read so that an unfinished or damaged run still gives a report."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloze.errors import ClozeError
from cloze.evaluation.results import FILE, Evaluation, read

STEP_KEYS = (
    "step",
    "tokens",
    "seconds",
    "loss",
    "learning_rate",
    "gradient_norm",
    "rate",
    "tokens_per_second",
)
HELDOUT_KEYS = ("step", "tokens", "seconds", "loss", "accuracy")
MAX_POINTS = 400

Series = dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """A run folder in memory; `steps` is thinned to at most `MAX_POINTS` means of `thinned_by` lines."""

    name: str
    summary: dict[str, Any]
    steps: Series
    thinned_by: int
    heldout: Series
    notes: list[tuple[int | None, str]]
    variance: list[dict[str, Any]]
    samples: dict[str, Any]
    recipe: str
    evaluation: Evaluation | None
    missing: list[str]

    def number(self, key: str) -> float | None:
        """A number of the summary, or None where the run has none (yet)."""
        return finite(self.summary.get(key))

    def part(self, key: str) -> dict[str, Any]:
        """A section of the summary such as `data`; empty where the run has none."""
        section = self.summary.get(key)
        return section if isinstance(section, dict) else {}


def finite(value: object) -> float | None:
    """The value as a float if it is a finite number, else None."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def records(samples: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The list of objects under a key; whatever is not an object is left out."""
    values = samples.get(key)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def read_run(folder: Path) -> Run:
    """Read everything a report needs; absent or unreadable files end up in `missing`.

    Raises `ClozeError` if the folder holds neither a summary nor metrics.
    """
    if not any((folder / name).is_file() for name in ("summary.json", "metrics.jsonl")):
        raise ClozeError(f"{folder} is not a run: it has neither summary.json nor metrics.jsonl")
    missing: list[str] = []
    summary = _read_object(folder / "summary.json", missing)
    samples = _read_object(folder / "samples.json", missing)
    recipe = _read_text(folder / "recipe.yaml", missing)
    lines, heldout_lines, notes, variance = _read_metrics(_read_text(folder / "metrics.jsonl", missing))
    heldout = _series(heldout_lines, HELDOUT_KEYS, 1)
    thinned_by = max(1, math.ceil(len(lines) / MAX_POINTS))
    known = {key: value for key, value in summary.items() if value is not None}
    return Run(
        name=folder.resolve().name,
        summary=_from_metrics(lines, heldout) | known,
        steps=_series(lines, STEP_KEYS, thinned_by),
        thinned_by=thinned_by,
        heldout=heldout,
        notes=notes,
        variance=variance,
        samples=samples,
        recipe=recipe,
        evaluation=_evaluation(folder, missing),
        missing=missing,
    )


def _evaluation(folder: Path, missing: list[str]) -> Evaluation | None:
    try:
        return read(folder)
    except ClozeError:
        missing.append(f"{FILE} (unreadable)")
        return None


def _read_text(path: Path, missing: list[str]) -> str:
    if not path.is_file():
        missing.append(path.name)
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _read_object(path: Path, missing: list[str]) -> dict[str, Any]:
    text = _read_text(path, missing)
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    missing.append(f"{path.name} (unreadable)")
    return {}


Lines = dict[float, tuple[float, ...]]


def _read_metrics(
    text: str,
) -> tuple[Lines, Lines, list[tuple[int | None, str]], list[dict[str, Any]]]:
    """Step and held-out lines by step, the notes, and what was measured of the variance.

    A resumed run repeats the steps since its checkpoint: the last line of a step is the one that counts.
    """
    steps: Lines = {}
    heldout: Lines = {}
    notes: list[tuple[int | None, str]] = []
    variance: dict[float, dict[str, Any]] = {}
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict):
            continue
        step = finite(event.get("step"))
        if event.get("kind") == "note":
            notes.append((None if step is None else int(step), str(event.get("message", ""))))
        elif event.get("kind") == "step" and step is not None:
            steps[step] = _row(event, STEP_KEYS)
        elif event.get("kind") == "heldout" and step is not None:
            heldout[step] = _row(event, HELDOUT_KEYS)
        elif event.get("kind") == "variance" and step is not None:
            variance[step] = event
    measured = [event for _, event in sorted(variance.items())]
    return dict(sorted(steps.items())), dict(sorted(heldout.items())), notes, measured


def _row(event: dict[str, Any], keys: tuple[str, ...]) -> tuple[float, ...]:
    values = (finite(event.get(key)) for key in keys)
    return tuple(math.nan if value is None else value for value in values)


def _series(lines: Lines, keys: tuple[str, ...], chunk: int) -> Series:
    """Columns of the lines, each value the mean of the finite ones among `chunk` neighbours."""
    table = np.array(list(lines.values()), dtype=np.float64).reshape(-1, len(keys))
    if chunk > 1:
        starts = np.arange(0, len(table), chunk)
        known = np.isfinite(table)
        sums = np.add.reduceat(np.where(known, table, 0.0), starts)
        counts = np.add.reduceat(known.astype(np.int64), starts)
        table = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return {key: table[:, column] for column, key in enumerate(keys)}


def _from_metrics(lines: Lines, heldout: Series) -> dict[str, Any]:
    """The headline numbers as far as the metrics know them, for runs that have no summary yet."""
    found: dict[str, Any] = {}
    if lines:
        last = dict(zip(STEP_KEYS, list(lines.values())[-1], strict=True))
        found |= {"steps": last["step"], "tokens_seen": last["tokens"], "seconds": last["seconds"]}
        if last["seconds"] > 0:
            found["tokens_per_second"] = last["tokens"] / last["seconds"]
    if len(heldout["loss"]):
        found |= {"heldout_loss_initial": heldout["loss"][0], "heldout_loss": heldout["loss"][-1]}
        found["heldout_accuracy"] = heldout["accuracy"][-1]
    return found
