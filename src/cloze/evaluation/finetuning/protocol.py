"""How every model is fine-tuned: the same for all, and written down in docs/evaluate.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cloze.evaluation.finetuning.task import Example, Task

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Protocol:
    """The pinned settings.

    Attributes:
        learning_rates: searched once a task, with a seed of its own; then used for all seeds.
        updates: the epochs are as many as give this many updates, but at least and at most `epochs_between`.
        epochs: so many in place of that.
        batch: examples of an update.
        warmup: share of the updates with a rising learning rate; then it falls linearly to 0.
        dropout: in front of the new head; the encoder has its own.
        selection: share of train that is not trained on, but chooses learning rate and epoch; at most
            `selection_most` examples.
        search_most: examples that the search for the learning rate trains on, at most.
        probe_strengths: inverse regularisation strengths (C) of the probe, searched on the selection split.
        length: most tokens of a sequence.
    """

    learning_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    updates: int = 1000
    epochs_between: tuple[int, int] = (3, 10)
    epochs: int | None = None
    batch: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    dropout: float = 0.1
    selection: float = 0.1
    selection_most: int = 2000
    search_most: int = 10_000
    probe_strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    length: int = 128

    def epochs_of(self, examples: int) -> int:
        """Epochs of training on so many examples."""
        if self.epochs is not None:
            return self.epochs
        least, most = self.epochs_between
        return min(most, max(least, -(-self.updates // self.steps_of(examples))))

    def steps_of(self, examples: int) -> int:
        """Updates of an epoch."""
        return -(-examples // self.batch)

    def split(self, task: Task) -> tuple[list[Example], list[Example]]:
        """Train in two parts: to train on, and to choose by. The same for all seeds and models.

        Stratified: the examples are shuffled, sorted by their label, and every tenth is taken.
        """
        order = np.random.default_rng(0).permutation(len(task.train))
        if task.shape != "tag":
            order = order[np.argsort(task.targets(task.train)[order], kind="stable")]
        share = min(self.selection, self.selection_most / len(order))
        stride = max(2, round(1 / share))
        chosen = np.zeros(len(order), bool)
        chosen[stride // 2 :: stride] = True
        return _take(task.train, order[~chosen]), _take(task.train, order[chosen])

    def searched(self, examples: list[Example]) -> list[Example]:
        """The part of the training examples that the search for the learning rate uses."""
        order = np.random.default_rng(0).permutation(len(examples))
        return _take(examples, order[: self.search_most])


def _take(items: Sequence[_T], places: np.ndarray) -> list[_T]:
    return [items[i] for i in places.tolist()]
