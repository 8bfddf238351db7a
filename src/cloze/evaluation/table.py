"""An evaluation as lines of text that fit 80 columns."""

from __future__ import annotations

import statistics

from cloze.evaluation.results import Evaluation
from cloze.evaluation.suites import SUITES


def lines(evaluation: Evaluation) -> list[str]:
    """A table for each suite; a line that does not start with a space is a heading."""
    found = []
    for name, tasks in evaluation.suites.items():
        metrics = list(dict.fromkeys(m for scores in tasks.values() for m in scores))[:3]
        found.append(f"{name:<38}" + "".join(f"{metric:>14}" for metric in metrics))
        for task, scores in tasks.items():
            found.append(f"  {task:<36}" + "".join(f"{_cell(scores.get(m)):>14}" for m in metrics))
        main = SUITES[name].main
        means = [statistics.fmean(scores[main]) for scores in tasks.values() if main in scores]
        if len(means) > 1:
            found.append(f"  {'mean of ' + main:<36}{statistics.fmean(means):>14.4f}")
        found.append("")
    return found[:-1]


def _cell(values: list[float] | None) -> str:
    if not values:
        return ""
    spread = f" ±{statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"
