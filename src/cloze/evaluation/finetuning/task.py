"""A task as it is trained and scored: examples with labels, and the metrics of its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cloze.evaluation.finetuning import metrics
from cloze.evaluation.finetuning.columns import Shape
from cloze.evaluation.finetuning.entities import entity_scores

Kind = Literal["classes", "numbers", "entities", "tags"]
"""Of labels; entities are tags with spans, tags are others, such as parts of speech."""


@dataclass(frozen=True, slots=True)
class Example:
    """One or two texts and a label; or the words of a sentence, and a label for each."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """A task.

    Attributes:
        name: as in the results. shape: what its examples are.
        kind: of its labels.
        labels: the classes, sorted; empty for numbers.
        metrics: what is reported.
        train: labelled examples.
        reported: what is scored, by what is put behind the metrics' names: "" for test, or for dev where test
            has no labels; "_mismatched" for the second dev split of MNLI.
    """

    name: str
    shape: Shape
    kind: Kind
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train: list[Example]
    reported: dict[str, list[Example]]

    def targets(self, examples: Sequence[Example]) -> np.ndarray:
        """[items]: a class id or a number for each label, in order."""
        flat = [label for example in examples for label in example.labels]
        if self.kind == "numbers":
            return np.array([float(label) for label in flat], np.float32)
        ids = {label: i for i, label in enumerate(self.labels)}
        return np.array([ids[label] for label in flat], np.int64)

    def score(self, examples: Sequence[Example], predicted: np.ndarray) -> dict[str, float]:
        """The metrics of [items] predicted class ids or numbers."""
        gold = self.targets(examples)
        if self.kind == "entities":
            tags = iter([self.labels[i] for i in predicted])
            guesses = [[next(tags) for _ in example.labels] for example in examples]
            return entity_scores([example.labels for example in examples], guesses)
        found = {}
        for name in self.metrics:
            if name == "f1":
                found[name] = metrics.f1(gold, predicted, self.labels.index("1"))
            else:
                found[name] = _METRICS[name](gold, predicted)
        return found

    def merit(self, examples: Sequence[Example], predicted: np.ndarray) -> float:
        """What a selection split decides by: F1 of entities, else the mean of the task's metrics."""
        scores = self.score(examples, predicted)
        return scores["f1"] if self.kind == "entities" else float(np.mean(list(scores.values())))


_METRICS: dict[str, Any] = {
    "accuracy": metrics.accuracy,
    "macro_f1": metrics.macro_f1,
    "micro_f1": metrics.accuracy,  # the same, where each text has one label and all classes count
    "matthews": metrics.matthews,
    "pearson": metrics.pearson,
    "spearman": metrics.spearman,
}
