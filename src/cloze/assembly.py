"""From a recipe to its parts: text, encoder, method, batches and held-out text, ready to run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cloze.corruption.neighbours import neighbour_vectors
from cloze.corruption.replace import Vocabulary
from cloze.data.corpus import Corpus, Progress, open_corpus
from cloze.data.loader import Loader
from cloze.data.tokenizers import add_sentinels
from cloze.errors import ClozeError
from cloze.evaluation.heldout import HeldOutSet
from cloze.methods.base import Method
from cloze.methods.build import build_method, compose, vocabulary_of
from cloze.models.build import PretrainedModelChoice, build_model
from cloze.models.encoder import Encoder
from cloze.models.encoder_decoder import EncoderDecoder, wrap
from cloze.recipes.schema import Recipe

log = logging.getLogger("cloze")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a recipe is made of.

    Attributes:
        corpus: tokenizer and text. vocabulary: what corruptions need of the tokenizer.
        encoder: the model that is trained, inside `method`.
        loaders: training batches of each phase.
        held_out: what is measured.
        counts: [vocabulary] float64, how often each token occurs in the training text.
    """

    corpus: Corpus
    vocabulary: Vocabulary
    encoder: Encoder | EncoderDecoder
    method: Method[Any]
    loaders: list[Loader]
    held_out: HeldOutSet
    counts: np.ndarray


def assemble(recipe: Recipe, corpus: Corpus, device: torch.device) -> Parts:
    """The parts of a recipe on text that is open, with the networks on `device`."""
    shared = corpus.shared()
    if shared > 0.01:
        message = "%.0f%% of the held-out text %s is in the training text as well: its loss is too good"
        log.warning(message, 100 * shared, recipe.data.heldout.path)
    encoder = _encoder(recipe, corpus)
    vocabulary = vocabulary_of(corpus.tokenizer)
    counts = corpus.counts(encoder.vocabulary.weight.shape[0])
    loaders = [_loader(recipe, corpus, encoder, phase.length) for phase in recipe.training.phases]
    vectors = _vectors(recipe, loaders[0], counts.size)
    method = method_of(recipe, encoder, vocabulary, torch.from_numpy(counts), vectors).to(device)
    if recipe.training.gradient_checkpointing:
        encoder.model.gradient_checkpointing_enable({"use_reentrant": False})
    method.train()
    evaluation = recipe.evaluation
    held_out = _loader(recipe, corpus, encoder, evaluation.length, held_out=True)
    return Parts(
        corpus,
        vocabulary,
        encoder,
        method,
        loaders=loaders,
        held_out=HeldOutSet(held_out, evaluation.rate, evaluation.tokens),
        counts=counts,
    )


def method_of(
    recipe: Recipe,
    encoder: Encoder | EncoderDecoder,
    vocabulary: Vocabulary,
    counts: Tensor | None = None,
    vectors: Tensor | None = None,
) -> Method[Any]:
    """The method of a recipe; several of them if it has variants. The rest is as for `build_method`."""
    methods = {
        name: build_method(choices, encoder, vocabulary, counts, recipe.seed, vectors)
        for name, choices in recipe.methods().items()
    }
    return compose(methods, [(stage.share, stage.shares()) for stage in recipe.stages])


def _vectors(recipe: Recipe, loader: Loader, size: int) -> Tensor | None:
    """By which tokens are clustered, if a new model is to get clusters; one that is trained has its own."""
    wanted = any(choices.corruption.kind == "clusters" for choices in recipe.methods().values())
    if not wanted or isinstance(recipe.model, PretrainedModelChoice):
        return None
    return neighbour_vectors(loader, size, recipe.seed)


def open_text(recipe: Recipe, objects: list[Any], progress: Progress | None) -> Corpus:
    """Tokenizer and text of a recipe; logs what the tokenizer makes of the text."""
    model = recipe.model
    path = model.path if isinstance(model, PretrainedModelChoice) else None
    corpus = open_corpus(recipe.data, recipe.tokenizer, path, objects, progress)
    for line in corpus.report.lines():
        log.info("%s", line)
    if recipe.infills:
        add_sentinels(corpus.tokenizer)
    return corpus


def _encoder(recipe: Recipe, corpus: Corpus) -> Encoder | EncoderDecoder:
    encoder = wrap(build_model(recipe.model, corpus.tokenizer, recipe.seed))
    if not encoder.isolates:
        name = type(encoder.model).__name__
        log.warning("%s cannot keep packed samples apart (leak probe): rows hold one sample each", name)
    return encoder


def _loader(
    recipe: Recipe, corpus: Corpus, encoder: Encoder | EncoderDecoder, length: int, held_out: bool = False
) -> Loader:
    longest = encoder.longest()
    alone = not encoder.isolates
    layout = corpus.layout(min(length, longest) if alone else length, longest, alone)
    if held_out:
        return corpus.held_out_loader(layout)
    loader = corpus.loader(layout, recipe.seed)
    for number, rows in enumerate(loader.sources, start=1):
        if len(rows) == 0:
            raise ClozeError(
                f"source {number} has no training text, all of it is held out: give more text, leave the "
                "source out, or hold out less (data.heldout)"
            )
    return loader
