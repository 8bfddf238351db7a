"""The public entry: `evaluate` a model by suites, and what it leaves in a folder."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cloze.errors import ClozeError
from cloze.evaluation.results import Evaluation
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites import SUITES
from cloze.evaluation.suites.base import Meter, Options, Suite
from cloze.report.environment import environment
from cloze.training.precision import quick_products
from cloze.training.state import writable_folder, write_json


def evaluate(
    model: str | Path,
    suites: str | Sequence[str],
    data: str | Path | Mapping[str, str | Path] | None = None,
    *,
    seeds: int = 5,
    tasks: Sequence[str] = (),
    columns: Sequence[str] = (),
    probe: bool = False,
    length: int | None = None,
    out: str | Path | None = None,
    meter: Meter | None = None,
) -> Evaluation:
    """Evaluate an encoder.

    Args:
        model: a run, a model folder or a hub id.
        suites: names of suites (`cloze.evaluation.suites.SUITES`).
        data: where their data is: a path for all, or a path for each suite by its name.
        seeds, tasks, columns, probe, length: see `Options`.
        out: folder for evaluation.json, evaluation.html; into a run's folder by default nothing is written.
        meter: is told how far it is.

    Returns:
        The scores, each with a value per seed.

    Errors: `ClozeError` for every mistake that the user can mend.
    """
    names = [suites] if isinstance(suites, str) else list(suites)
    chosen = [suite_of(name) for name in names]
    if seeds < 1:
        raise ClozeError(f"--seeds {seeds}: at least 1 is needed")
    folder = None if out is None else writable_folder(Path(out))
    subject = Subject(model)
    options = Options(seeds=seeds, tasks=tuple(tasks), columns=tuple(columns), probe=probe, length=length)
    if meter is not None:
        options = replace(options, meter=meter)
    found = {}
    with quick_products():
        for suite in chosen:
            place = data.get(suite.name) if isinstance(data, Mapping) else data
            own = replace(options, data=None if place is None else str(place))
            found[suite.name] = suite.run(subject, own)
    settings = {"seeds": seeds, "tasks": list(tasks), "columns": list(columns), "probe": probe}
    result = Evaluation(str(model), found, settings, environment(subject.device, "fp32"))
    if folder is not None:
        write_json(folder / "evaluation.json", result.as_dict())
    return result


def suite_of(name: str) -> Suite:
    """The suite of that name. Errors: there is none."""
    if name not in SUITES:
        close = difflib.get_close_matches(name, SUITES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(SUITES)}"
        raise ClozeError(f"--suite {name}: no such suite; {hint}")
    return SUITES[name]
