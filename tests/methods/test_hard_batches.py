"""Every recipe takes a step on batches that nobody plans: tiny, all special, all masked, nothing maskable."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import small
from helpers import Sample, pack

from cloze import ClozeError, Run
from cloze.assembly import assemble, open_text
from cloze.data.batch import Batch
from cloze.data.writer import PARAGRAPH, SENTENCE, UNIT
from cloze.recipes.load import load_recipe, shipped
from cloze.training.loop import Diverged, Trainer
from cloze.training.state import State


def sample(count: int, key: int, fixed: bool = False) -> Sample:
    """A sample of so many tokens, three to a word."""
    ids = tuple(100 + (key * 31 + 7 * i) % 150 for i in range(count))
    return Sample(
        key, ids, tuple(i // 3 for i in range(count)), 0, frozenset(range(count)) if fixed else frozenset()
    )


def with_sentences(batch: Batch) -> Batch:
    """The batch with a sentence at every seventh token, a paragraph at every fourteenth."""
    text = batch.index >= 0
    flags = torch.where(text & (batch.index % 7 == 0), SENTENCE | UNIT, 0)
    flags |= torch.where(text & (batch.index % 14 == 0), PARAGRAPH, 0)
    return replace(batch, flags=flags.to(torch.uint8), documents=batch.keys.clone())


def batches() -> dict[str, Batch]:
    """Batches of 16 rows by what is hard about them; "one row" has one."""
    usual = [sample(20, 1), sample(30, 2)]
    return {
        "usual": pack([usual] * 16, 64),
        "one row": pack([usual], 64),
        "length 2": pack([[sample(0, key)] for key in range(16)], 2),
        "length 3": pack([[sample(1, key)] for key in range(16)], 3),
        "one row of length 2": pack([[sample(0, 5)]], 2),
        "rows without text": pack([[sample(0, key), sample(0, key + 50)] for key in range(16)], 64),
        "rows of padding": pack([[] for _ in range(15)] + [usual], 64),
        "nothing maskable": pack([[sample(40, key, fixed=True)] for key in range(16)], 64),
        "one maskable": pack([[sample(40, key, fixed=True)] for key in range(15)] + [[sample(1, 99)]], 64),
        "samples of one token": pack([[sample(1, 20 * key + i) for i in range(20)] for key in range(16)], 64),
        "one long word": pack([[replace(sample(62, key), units=(0,) * 62)] for key in range(16)], 64),
    }


@pytest.fixture
def trainer(train: Callable[..., Run], trained: Run, corpus: Path) -> Callable[..., Trainer]:
    """`trainer(recipe, *overrides)`: that of a tiny run which has not begun."""

    def make(name: str, *overrides: str) -> Trainer:
        values: dict[str, Any] = {"data": {"sources": [str(corpus)]}}
        if name == "adapt":
            values["model"] = {"path": str(trained.folder / "model")}
        recipe = load_recipe(name, [*small(name), *overrides], values)
        parts = assemble(recipe, open_text(recipe, [], None), torch.device("cpu"))
        state, accelerator = State(steps=100), Accelerator(cpu=True)
        return Trainer(parts.method, parts.loaders, recipe.training, state, 0, accelerator, recipe.stages)

    return make


def assert_takes(trainer: Trainer, refused: set[str]) -> None:
    """A step on each batch, alone and after the ones before; some may be refused in a line."""
    for what, batch in batches().items():
        try:
            loss = trainer.step([with_sentences(batch)]).loss
        except ClozeError as error:
            assert what in refused, error
            assert not isinstance(error, Diverged)
            continue
        assert what not in refused
        assert math.isfinite(loss), what
        assert loss > 0 or what != "usual"
        assert all(p.isfinite().all() for p in trainer.method.parameters()), what


@pytest.mark.parametrize("name", shipped())
def test_a_recipe_takes_a_step_on_any_batch(name: str, trainer: Callable[..., Trainer]) -> None:
    assert_takes(trainer(name), set())


@pytest.mark.parametrize("kind", ["uniform", "words", "spans", "balanced", "mapnet"])
def test_every_token_masked(kind: str, trainer: Callable[..., Trainer]) -> None:
    assert_takes(trainer("mlm", f"masking={{kind: {kind}, rate: 1.0}}"), set())


@pytest.mark.parametrize("algorithm", ["wordpiece", "characters"])
def test_a_vocabulary_of_64(algorithm: str, train: Callable[..., Run], tmp_path: Path) -> None:
    text, dice = tmp_path / "text.txt", random.Random(0)
    text.write_text("\n\n".join("".join(dice.choices("abcde ", k=1000)) for _ in range(60)), encoding="utf-8")
    choice = f"tokenizer={{kind: train, algorithm: {algorithm}, vocabulary: 64}}"
    run = train(tmp_path / "run", choice, data=text)
    assert run.model.config.vocab_size == 64
    assert math.isfinite(run.summary["heldout_loss"])


@pytest.mark.parametrize("masking", ["uniform", "words", "spans", "balanced"])
def test_text_of_all_kinds(masking: str, train: Callable[..., Run], corpus: Path, tmp_path: Path) -> None:
    """Words longer than a row, right-to-left, combining and surrogate characters, between usual text."""
    odd = [
        "x" * 5000,
        "שלום עולם",
        "مرحبا بالعالم",
        "👩‍👩‍👧‍👦🇺🇳" * 40,
        "e\u0301" * 200,
        "\u202eabc\u202c",
        "\u200b" * 300,
        "\ufeff",
    ]
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(odd) + "\n\n" + corpus.read_text("utf-8"), encoding="utf-8")
    run = train(tmp_path / "run", f"masking.kind={masking}", data=text)
    assert run.summary["heldout_loss"] < run.summary["heldout_loss_initial"]
