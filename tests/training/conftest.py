"""A tokenised corpus, and trainers of a tiny encoder on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from cloze.assembly import method_of
from cloze.data.corpus import Corpus, open_corpus
from cloze.methods.build import vocabulary_of
from cloze.models.build import build_model
from cloze.models.encoder import isolate
from cloze.recipes.load import load_recipe
from cloze.training.loop import Trainer
from cloze.training.state import State


@pytest.fixture(scope="session")
def text(corpus: Path, tiny: tuple[str, ...]) -> Corpus:
    """The tokenised corpus."""
    recipe = load_recipe("mlm", tiny, {"data": {"sources": [str(corpus)]}})
    return open_corpus(recipe.data, recipe.tokenizer)


@pytest.fixture
def make(text: Corpus, tiny: tuple[str, ...]) -> Callable[..., Trainer]:
    """A trainer of so many steps, from the tiny recipe and overrides."""

    def trainer(*overrides: str, steps: int = 10) -> Trainer:
        recipe = load_recipe("mlm", [*tiny, *overrides])
        encoder = isolate(build_model(recipe.model, text.tokenizer, recipe.seed))
        words = vocabulary_of(text.tokenizer)
        counts = torch.ones(encoder.vocabulary.weight.shape[0])
        method = method_of(recipe, encoder, words, counts)
        layouts = [text.layout(phase.length, encoder.longest(), False) for phase in recipe.training.phases]
        loaders = [text.loader(layout, recipe.seed) for layout in layouts]
        return Trainer(
            method.train(),
            loaders,
            recipe.training,
            State(steps=steps),
            recipe.seed,
            Accelerator(cpu=True),
            recipe.stages,
        )

    return trainer
