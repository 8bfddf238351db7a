"""The public entry: `evaluate` a model by suites, and what it leaves in a folder."""

from __future__ import annotations

import difflib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from cloze.errors import ClozeError
from cloze.evaluation.results import FILE, Evaluation, Measurement, read
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites import SUITES
from cloze.evaluation.suites.base import Meter, Options, Scores, Suite
from cloze.methods.base import Readout
from cloze.report.environment import environment
from cloze.training.precision import quick_products
from cloze.training.state import writable_folder, write_json

log = logging.getLogger("cloze")

SETTINGS = (
    "data",
    "seeds",
    "columns",
    "probe",
    "epochs",
    "learning_rate",
    "length",
    "reading",
    "unmask",
)  # of `Options`, that are written down

EVERY_GROUP = tuple(f"{number:04b}" for number in range(16))  # what "--unmask all" stands for


def evaluate(
    model: str | Path,
    suites: str | Sequence[str],
    data: str | Path | Mapping[str, str | Path] | None = None,
    *,
    seeds: int = 5,
    tasks: Sequence[str] = (),
    columns: Sequence[str] = (),
    probe: bool = False,
    epochs: int | None = None,
    learning_rate: float | None = None,
    length: int | None = None,
    unmask: Sequence[str] = (),
    reading: str | None = None,
    out: str | Path | None = None,
    meter: Meter | None = None,
) -> Evaluation:
    """Evaluate an encoder.

    Args:
        model: a run, a model folder or a hub id.
        suites: names of suites (`cloze.evaluation.suites.SUITES`).
        data: where their data is: a path for all, or a path for each suite by its name.
        seeds, tasks, columns, probe, epochs, learning_rate, length, reading, unmask: see `Options`; unmask
            may be ["all"].
        out: folder for evaluation.json and evaluation.html; by default the run's, whose report and model card
            then have the results too, and none for other models. What was evaluated there before is kept. A
            suite that is done is written before the next one begins.
        meter: is told how far it is.

    Returns:
        The scores of these suites, each with a value per seed.

    Errors: `ClozeError` for every mistake that the user can mend.
    """
    names = [suites] if isinstance(suites, str) else list(suites)
    chosen = [suite_of(name) for name in names]
    if not chosen:
        raise ClozeError(f"--suite: name one or more of {', '.join(SUITES)}")
    if reading is not None and reading not in get_args(Readout):
        raise ClozeError(f"--reading {reading}: there are {', '.join(get_args(Readout))}")
    if seeds < 1:
        raise ClozeError(f"--seeds {seeds}: at least 1 is needed")
    for suite in chosen:
        if unmask and not suite.trains:
            raise ClozeError(f"--unmask: {suite.name} trains nothing; it is for classify, pair and tag")
    subject = Subject(model)
    run = run_folder(model)
    folder = run if out is None else Path(out)
    found = kept = Evaluation(str(model), _step(run))
    own = False
    if folder is not None:
        folder = writable_folder(folder)
        own = run is not None and folder.resolve() == run.resolve()
        kept = _earlier(folder, found, own)
    options = Options(
        seeds=seeds,
        tasks=tuple(tasks),
        columns=tuple(columns),
        probe=probe,
        epochs=epochs,
        learning_rate=learning_rate,
        length=length,
        reading=reading,
        unmask=tuple(group for given in unmask for group in (EVERY_GROUP if given == "all" else [given])),
    )
    if meter is not None:
        options = replace(options, meter=meter)
    with quick_products():
        for suite in chosen:
            place = data.get(suite.name) if isinstance(data, Mapping) else data
            mine = replace(options, data=None if place is None else str(place))
            scores, how = _measure(suite, subject, mine)
            found, kept = found.add(scores, how), kept.add(scores, how)
            if folder is not None:
                _write(kept, folder, own)
    return found


def _measure(suite: Suite, subject: Subject, options: Options) -> tuple[Scores, Measurement]:
    begin = time.perf_counter()
    scores = suite.run(subject, options)
    seconds = round(time.perf_counter() - begin, 2)
    settings = {name: getattr(options, name) for name in SETTINGS}
    made = environment(subject.device, "fp32")
    return scores, Measurement(suite.name, list(scores), settings, made, seconds)


def run_folder(model: str | Path) -> Path | None:
    """The folder of a run; None for a model that is none."""
    folder = Path(model).expanduser()
    is_run = (folder / "recipe.yaml").is_file() and (folder / "model" / "config.json").is_file()
    return folder if is_run else None


def suite_of(name: str) -> Suite:
    """The suite of that name. Errors: there is none."""
    if name not in SUITES:
        close = difflib.get_close_matches(name, SUITES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(SUITES)}"
        raise ClozeError(f"--suite {name}: no such suite; {hint}")
    return SUITES[name]


def _step(run: Path | None) -> int | None:
    """Steps that a run had done when its model was saved."""
    try:
        return None if run is None else int(json.loads((run / "summary.json").read_text("utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _earlier(folder: Path, new: Evaluation, own: bool) -> Evaluation:
    """What a folder, perhaps the run's own, has of the same model already. Errors: it has another model's."""
    earlier = read(folder)
    if earlier is None:
        return new
    if earlier.model != new.model and not own:
        raise ClozeError(f"{folder / FILE} is of {earlier.model}: choose another --out folder")
    if earlier.step != new.step:
        log.warning("%s: results of step %s are dropped, the run has gone on", folder / FILE, earlier.step)
        return new
    return earlier


def _write(evaluation: Evaluation, folder: Path, own: bool) -> None:
    from cloze.report.evaluation import write_evaluation
    from cloze.report.model_card import add_results
    from cloze.report.page import write_report  # matplotlib is slow to import

    content = evaluation.as_dict()
    try:
        write_json(folder / FILE, content)
        write_evaluation(content, folder)
        if own:
            write_report(folder)
            add_results(folder / "model" / "README.md", evaluation)
    except OSError as error:
        raise ClozeError(f"{folder}: cannot be written ({error.strerror or error})") from error
