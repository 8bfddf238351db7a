"""What an evaluation suite is: from a model and data to scores of tasks.

A suite is one file here with a `Suite` in it, named in `SUITES` (`suites/__init__.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from cloze.evaluation.subject import Subject

Scores: TypeAlias = dict[str, dict[str, list[float]]]
"""Task, metric, and a value for each seed: one value where nothing is drawn at random."""

Meter: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, how far it is, and of how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user chose, the same for all suites.

    Attributes:
        data: place of the suite's data: a file, a folder, or a hub id where a suite says so; None: not given.
        seeds: how many seeds, 0 to seeds - 1, where something is drawn or trained.
        tasks: only these; empty: all that are found.
        columns: names of the text columns and then of the label's, where they cannot be guessed.
        probe: a frozen encoder with a logistic regression in place of fine-tuning.
        epochs, learning_rate: of fine-tuning; None: the protocol's.
        length: most tokens of a sequence; None: the suite's own.
        unmask: for causal models, each in turn: groups of layers that are opened (`cloze.models.opened`).
        reading: how a language model is read: masked, replaced, causal or prefix; None: its own way.
        meter: is told how far the suite is.
    """

    data: str | None = None
    seeds: int = 5
    tasks: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    probe: bool = False
    epochs: int | None = None
    learning_rate: float | None = None
    length: int | None = None
    unmask: tuple[str, ...] = ()
    reading: str | None = None
    meter: Meter = lambda what, done, total: None


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite.

    Attributes:
        name: as on the command line. about: one line for people.
        run: measures; raises `ClozeError` in one line for every mistake that the user can mend.
        main: the metric that tables show first, and whose mean over tasks is told, for each task.
        trains: whether `Options.probe` and `unmask` mean something to it. brings: whether a run has its data.
        common: whether all models are measured by the same thing, whatever they predict.
        reads: whether it needs a model that predicts tokens (`Method.readings`).
    """

    name: str
    about: str
    run: Callable[[Subject, Options], Scores]
    main: str
    trains: bool = False
    brings: bool = False
    common: bool = True
    reads: bool = False
