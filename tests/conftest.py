"""What all tests share: no network, caches of their own, a little text, and runs of a second."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
os.environ |= {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that spin starve each other on a busy machine

if TYPE_CHECKING:
    from cloze.run import Run

# A run of these takes about a second; what is not said here is the recipe's.
TINY = (
    "tokenizer.vocabulary=320",
    "data.heldout={share: 0.05, minimum: 2000}",
    "model={kind: new, family: bert, layers: 1, width: 32, heads: 2, longest: 64}",
    "training.phases=[{share: 1.0, length: 64, rows: 8}]",
    "training.budget=6steps",
    "training.precision=fp32",  # whatever this machine is good at
    "training.log_every=2",
    "training.checkpoint_every=3",
    "evaluation.tokens=2000",
    "evaluation.times=2",
)


def small(recipe: str) -> tuple[str, ...]:
    """TINY for a recipe; one that starts from a model has that model's size and tokenizer.

    A mixture needs a row for each method in a step.
    """
    more = {
        "gpt-bert": ("training.phases=[{share: 1.0, length: 64, rows: 16}]",),
        "electra": ("model.family=electra",),  # whose generator is narrower than the model
        "mcl": ("model.family=electra",),
        "enc-dec": ("model.family=t5",),
    }.get(recipe, ())
    return (*(t for t in TINY if recipe != "adapt" or not t.startswith(("tokenizer", "model"))), *more)


_NOUNS = (
    "river",
    "stone",
    "lantern",
    "harbour",
    "widow",
    "carpenter",
    "orchard",
    "letter",
    "winter",
    "fiddle",
    "mountain",
    "sparrow",
)
_VERBS = ("carried", "followed", "forgot", "mended", "watched", "painted", "buried", "answered")
_KINDS = ("old", "quiet", "broken", "silver", "narrow", "patient", "distant", "crooked")
_ENDS = ("at dawn", "without a word", "beyond the hill", "for seven years", "in the rain", "once more")


def story(number: int, sentences: int = 100) -> str:
    """One made-up document, a pure function of its number; subjects have verbs of their own."""
    draw = random.Random(number)
    paragraphs, lines = [], []
    for _ in range(sentences):
        subject = draw.randrange(len(_NOUNS))
        verb = _VERBS[(subject + draw.randrange(2)) % len(_VERBS)]
        thing = _NOUNS[(subject + 1 + draw.randrange(4)) % len(_NOUNS)]
        lines.append(
            f"The {_KINDS[subject % len(_KINDS)]} {_NOUNS[subject]} {verb} the {draw.choice(_KINDS)} {thing} "
            f"{draw.choice(_ENDS)}."
        )
        if draw.random() < 0.25:
            paragraphs.append(" ".join(lines))
            lines = []
    return "\n\n".join([*paragraphs, " ".join(lines)]).strip()


@pytest.fixture(scope="session", autouse=True)
def _own_world(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Stores and tokenizers are cached in a temporary folder, never in the home of who runs the tests."""
    os.environ["CLOZE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["MPLCONFIGDIR"] = str(tmp_path_factory.mktemp("matplotlib"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .txt file of about 300,000 characters, more than 60,000 tokens of a vocabulary of 320."""
    path = tmp_path_factory.mktemp("corpus") / "stories.txt"
    path.write_text("\n\n".join(story(i) for i in range(50)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Overrides that make any recipe's run tiny."""
    return TINY


@pytest.fixture(scope="session")
def train(corpus: Path) -> Callable[..., Run]:
    """`train(out, *overrides, recipe="mlm", data=corpus, **options)`: `cloze.pretrain` of a tiny run."""

    def run(out: Path, *overrides: str, recipe: str = "mlm", data: Any = None, **options: Any) -> Run:
        from cloze import pretrain

        text = corpus if data is None else data
        return pretrain(recipe, text, out, overrides=[*small(recipe), *overrides], **options)

    return run


@pytest.fixture(scope="session")
def trained(train: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One finished run, to be looked at and copied, never changed."""
    return train(tmp_path_factory.mktemp("trained") / "run")


@dataclass(frozen=True)
class Result:
    """What a command did: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def cloze(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`cloze("pretrain", "mlm", ...)`: the command, in this process."""

    def run(*arguments: object) -> Result:
        from cloze.cli import main

        monkeypatch.setattr(sys, "argv", ["cloze", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        captured = capfd.readouterr()
        assert isinstance(end.value.code, int)
        return Result(end.value.code, captured.out, captured.err)

    return run
