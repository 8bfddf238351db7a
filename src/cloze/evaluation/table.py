"""An evaluation as lines of text that fit 80 columns."""

from __future__ import annotations

from cloze.evaluation.results import Evaluation, Row, cell, mean, table_rows
from cloze.evaluation.suites import SUITES
from cloze.evaluation.suites.base import Scores

WIDTH = 80
MOST = 30  # rows of a suite; where there are more, tasks that are in a group are not shown
_NAME = 30  # the least room for names


def lines(evaluation: Evaluation) -> list[str]:
    """A table for each suite; a line that does not start with a space is a heading."""
    found = []
    for suite, tasks in evaluation.suites.items():
        found += [*_table(suite, tasks), ""]
    return found[:-1]


def _table(suite: str, tasks: Scores) -> list[str]:
    rows, hidden = _shown(table_rows(tasks))
    rows += _overall(suite, tasks)
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.scores))
    widths = [
        2 + max(len(metric), *(len(cell(row.scores.get(metric))) for row in rows)) for metric in metrics
    ]
    name = WIDTH - sum(widths)
    found = _columns(suite, rows, metrics, widths) if name >= _NAME else _blocks(suite, rows)
    if hidden:
        found.append(f"  (each of the {hidden} tasks in these groups: evaluation.json)")
    return found


def _shown(rows: list[Row]) -> tuple[list[Row], int]:
    """The rows that are shown, and the number of tasks that are not."""
    if len(rows) <= MOST:
        return rows, 0
    kept = [row for row in rows if row.tasks or row.depth == 0]
    return kept, len(rows) - len(kept)


def _overall(suite: str, tasks: Scores) -> list[Row]:
    """The mean of the suite's main metric, unless one row says it all."""
    main = SUITES[suite].main
    scored = {task: {main: scores[main]} for task, scores in tasks.items() if main in scores}
    if len({task.split("/")[0] for task in scored}) < 2:
        return []
    return [Row(f"mean of {main}", 0, len(scored), mean(scored))]


def _columns(suite: str, rows: list[Row], metrics: list[str], widths: list[int]) -> list[str]:
    name = WIDTH - sum(widths)
    heads = "".join(f"{metric:>{width}}" for metric, width in zip(metrics, widths, strict=True))
    found = [f"{suite:<{name}}{heads}"]
    for row in rows:
        cells = zip(metrics, widths, strict=True)
        values = "".join(f"{cell(row.scores.get(metric)):>{width}}" for metric, width in cells)
        found.append(f"{_label(row, name):<{name}}{values}".rstrip())
    return found


def _blocks(suite: str, rows: list[Row]) -> list[str]:
    """A line for each metric, where they do not fit beside each other."""
    found = [suite]
    for row in rows:
        found.append(_label(row, WIDTH))
        indent = " " * (4 + 2 * row.depth)
        for metric, values in row.scores.items():
            room = WIDTH - len(indent) - len(metric)
            found.append(f"{indent}{metric}{cell(values):>{room}}")
    return found


def _label(row: Row, width: int) -> str:
    text = "  " * (1 + row.depth) + row.name + (f" ({row.tasks})" if row.tasks else "")
    return text if len(text) < width else f"{text[: width - 2]}…"
