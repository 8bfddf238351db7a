"""The scores of an evaluation: as JSON, and as lines of a table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from cloze.evaluation.suites.base import Scores


def summary(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation over seeds (None for a single value), and the values."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": spread, "values": values}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        model: as the user named it.
        suites: suite, task, metric, and its values.
        settings: what was chosen. environment: hardware and versions.
    """

    model: str
    suites: dict[str, Scores]
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

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
        about = {"model": self.model, "settings": self.settings, "environment": self.environment}
        return {**self.scores(), "_about": about}
