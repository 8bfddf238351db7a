"""An evaluation as one HTML page that needs nothing else, and as a part of a run's report."""

from html import escape
from pathlib import Path
from typing import Any

from cloze.evaluation.results import Evaluation, Measurement
from cloze.report.estimates import table
from cloze.report.markup import facts, section
from cloze.report.page import document, write_page
from cloze.report.scores import score_table


def write_evaluation(content: dict[str, Any], folder: Path) -> Path:
    """Write `evaluation.html` from the content of evaluation.json, and return its path."""
    return write_page(folder / "evaluation.html", render(Evaluation.from_dict(content)))


def render(evaluation: Evaluation) -> str:
    """The whole page."""
    suites = evaluation.suites
    after = "" if evaluation.step is None else f" after {evaluation.step:,} steps"
    body = (
        f'<header><p class="over">Cloze evaluation of <span>{escape(evaluation.model)}</span></p>'
        f'<h1>What the encoder can do</h1><p class="about">Measured{after} by {escape(", ".join(suites))}. '
        "Where something is trained, values are means over seeds ± their standard deviation; a group has the "
        "mean over its tasks.</p></header>",
        *(section(suite, (score_table(evaluation, suite), _seeds(evaluation, suite))) for suite in suites),
        section("How it was measured", map(_how, evaluation.measurements)),
    )
    return document(f"{evaluation.model} · Cloze evaluation", body)


def _seeds(evaluation: Evaluation, suite: str) -> str:
    """Every seed's value, folded away; empty where there is one."""
    rows = [
        (f"{task}, {metric}", ", ".join(f"{value:.4g}" for value in values))
        for task, metrics in evaluation.suites[suite].items()
        for metric, values in metrics.items()
        if len(values) > 1
    ]
    listed = table(("", "seed 0, 1, …"), rows)
    return f"<details><summary>Each seed</summary>{listed}</details>" if rows else ""


def _how(measurement: Measurement) -> str:
    what = {key: value for key, value in measurement.settings.items() if value not in (None, [], (), False)}
    what |= {"tasks": len(measurement.tasks), "seconds": measurement.seconds}
    settings = facts(measurement.suite, what)
    return f'<div class="tables">{settings}{facts("Environment", measurement.environment)}</div>'
