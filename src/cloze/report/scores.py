"""The scores of an evaluation as tables."""

from cloze.evaluation.results import Evaluation, cell, table_rows
from cloze.report.estimates import table

COLUMNS = 4  # metrics that fit beside each other


def score_table(evaluation: Evaluation, suite: str) -> str:
    """The table of a suite: tasks and groups of tasks by metrics."""
    rows = table_rows(evaluation.suites[suite])
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.scores))
    named = [
        ("\u2003" * row.depth + row.name + (f" ({row.tasks})" if row.tasks else ""), row) for row in rows
    ]
    if len(metrics) > COLUMNS:
        cells = [(name, metric, cell(values)) for name, row in named for metric, values in row.scores.items()]
        return table(("", "metric", "value"), cells)
    return table(
        ("", *metrics), [(name, *(cell(row.scores.get(metric)) for metric in metrics)) for name, row in named]
    )
