"""One run of a comparison: what is to be run, and what is kept of it as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from cloze.errors import ClozeError
from cloze.evaluation.suites import SUITES
from cloze.evaluation.suites.base import Scores
from cloze.recipes.load import difference, filled
from cloze.recipes.schema import Recipe
from cloze.report.reading import read_run
from cloze.training.state import write_json

# Fields of a recipe that change nothing of what is compared.
_FREE = (
    "about",
    "data.store",
    "training.workers",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep",
    "training.trackers",
)
MetricName = Literal["heldout_loss", "bits_per_character"]
PROBED = " (probe)"  # ends the name of a suite whose scores are of a frozen encoder


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is to be made.

    Attributes:
        arm: name of its recipe in this comparison. seed: of weights, order and masks.
        recipe: with that seed, and with the budget in steps.
        folder: of the run; `file`, beside it, is what is kept of it when it has finished.
        operations: of one token, counted. bits: of one nat of held-out loss, per character.
        text: digests of the text and the tokenizer.
    """

    arm: str
    seed: int
    recipe: Recipe
    folder: Path
    operations: float
    bits: float
    text: dict[str, str]

    @property
    def file(self) -> Path:
        """The JSON file."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def steps(self) -> int:
        """Its budget."""
        return int(self.recipe.training.budget.removesuffix("steps"))


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluation on the held-out text during a run."""

    step: int
    tokens: int
    loss: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that has been made.

    Attributes:
        recipe: name of the arm. budget: in steps.
        status: finished, or diverged where the loss was not finite; then the last three numbers are None.
        operations: counted (`cloze.models.operations`). seconds: as the run logged them.
        curve: held-out loss in nats, from before the first step.
        suites: scores of the downstream suites that were asked for.
        settings: the resolved recipe. text: digests of the text and the tokenizer.
        environment: hardware and versions.
    """

    recipe: str
    seed: int
    budget: str
    status: Literal["finished", "diverged"]
    steps: int
    tokens: int
    operations: float
    seconds: float
    heldout_loss: float | None
    heldout_accuracy: float | None
    bits_per_character: float | None
    curve: tuple[Point, ...]
    suites: dict[str, Scores] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def value(self, metric: MetricName) -> float | None:
        """The final value of a held-out metric."""
        return self.heldout_loss if metric == "heldout_loss" else self.bits_per_character

    def points(self, metric: MetricName) -> list[tuple[int, int, float]]:
        """(step, tokens, value) of its curve."""
        bits = metric == "bits_per_character" and self.heldout_loss and self.bits_per_character
        factor = self.bits_per_character / self.heldout_loss if bits else 1.0  # type: ignore[operator]
        return [(p.step, p.tokens, p.loss * factor) for p in self.curve]


def finish(job: Job, diverged: bool = False) -> Finished:
    """Keep what a run has left in its folder: its numbers and its curve."""
    run = read_run(job.folder)
    heldout = run.heldout
    columns = (heldout[key].tolist() for key in ("step", "tokens", "loss"))
    curve = tuple(Point(int(s), int(t), x) for s, t, x in zip(*columns, strict=True))
    loss, accuracy = (None if diverged else run.number(k) for k in ("heldout_loss", "heldout_accuracy"))
    tokens = int(run.number("tokens_seen") or 0)
    found = Finished(
        recipe=job.arm,
        seed=job.seed,
        budget=job.recipe.training.budget,
        status="diverged" if diverged else "finished",
        steps=int(run.number("steps") or 0),
        tokens=tokens,
        operations=tokens * job.operations,
        seconds=run.number("seconds") or 0.0,
        heldout_loss=loss,
        heldout_accuracy=accuracy,
        bits_per_character=None if loss is None else loss * job.bits,
        curve=curve,
        settings=job.recipe.model_dump(mode="json"),
        text=job.text,
        environment=run.part("environment"),
    )
    write(job.file, found)
    return found


def write(file: Path, run: Finished) -> None:
    """Write the JSON file of a run."""
    write_json(file, asdict(run))


def measured_as(suite: str, probe: bool) -> str:
    """The name that a suite's scores are kept by: those of a frozen encoder are others."""
    return f"{suite}{PROBED}" if probe and SUITES[suite].trains else suite


def add_scores(file: Path, run: Finished, suites: dict[str, Scores]) -> Finished:
    """Keep the scores of more suites with a run."""
    found = replace(run, suites=run.suites | suites)
    write(file, found)
    return found


def read(file: Path) -> Finished:
    """Read the JSON file of a run. Errors: it is not one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        curve = tuple(Point(**p) for p in content.pop("curve"))
        return Finished(
            curve=curve, **{f.name: content[f.name] for f in fields(Finished) if f.name != "curve"}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClozeError(
            f"{file}: not a run of a comparison ({type(error).__name__}): delete it to run again"
        ) from error


def made_before(jobs: Sequence[Job]) -> dict[tuple[str, int], Finished]:
    """The runs that have been made. Errors: one was made with other settings or on another text."""
    found = {}
    for job in jobs:
        if not job.file.is_file():
            continue
        run = read(job.file)
        lines = difference(filled(run.settings), job.recipe.model_dump(mode="json"))
        changed = [line for line in lines if not line.startswith(_FREE)]
        if run.text != job.text:
            changed.append("the text or its tokenizer is another one")
        if changed:
            raise ClozeError(
                f"{job.file} was made with other settings ({'; '.join(changed)}): use another --out folder"
            )
        found[job.arm, job.seed] = run
    return found
