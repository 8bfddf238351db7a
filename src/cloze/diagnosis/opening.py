"""From what the user named to what is measured: a method with its model, and sequences of text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from cloze.assembly import method_of
from cloze.data.batch import Batch
from cloze.data.corpus import Corpus, Progress
from cloze.data.loader import Loader
from cloze.data.tokenizers import load_tokenizer
from cloze.diagnosis.text import sequences_of, spread
from cloze.errors import ClozeError
from cloze.methods.base import Method
from cloze.methods.build import vocabulary_of
from cloze.models.build import build_model, check_head
from cloze.models.encoder import Encoder, isolate
from cloze.opening import choose
from cloze.recipes.schema import Recipe
from cloze.training.state import restore_tensors

LENGTH, SHORTEST = 128, 16  # tokens of a sequence, specials included


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured; networks and batches are on one device, dropout is off.

    Attributes:
        model, data: names for people.
        recipe: of the run, or what `mlm` would go on with.
        method: makes the losses (of several the main one), and has what the run has learnt.
        encoder: the model in it.
        corpus: the text. sequences: one row each. spare: others, for what must not be measured on them.
        rate: at the end of the run, unless the user gave one.
        passes: how often the run saw its text; None: not known.
        is_run: a run, and not just a model.
    """

    model: str
    data: str
    recipe: Recipe
    method: Method[Any]
    encoder: Encoder
    corpus: Corpus
    sequences: list[Batch]
    spare: list[Batch]
    rate: float
    passes: float | None
    is_run: bool


def open_subject(
    model: str | Path,
    data: Any,
    *,
    count: int,
    spare: int = 0,
    length: int | None,
    rate: float | None,
    text_field: str | None = None,
    split_text: str | None = None,
    progress: Progress | None = None,
) -> Subject:
    """Load the model, read the text, and choose `count` sequences of `length` tokens, and `spare` others.

    Without a length it is 128, or what the model takes.

    Errors: no model or text there, a model without a masked-LM head, a length that it does not take.
    """
    opening = choose(model, data, text_field, split_text)
    recipe = opening.recipe
    if rate is not None and recipe.masking.kind == "none":
        raise ClozeError(f"--rate {rate:g}: {model} hides nothing, so there is no rate; leave it out")
    encoder = _encoder(recipe, opening.folder)
    longest = encoder.longest()
    length = min(LENGTH, longest) if length is None else length
    if not SHORTEST <= length <= longest:
        raise ClozeError(f"--length {length}: the model takes {SHORTEST} to {longest:,} tokens")
    corpus = opening.corpus(progress)
    loader = _loader(corpus, encoder, length, opening.own)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method = _method(recipe, corpus, encoder, opening.checkpoint, device)
    chosen = [batch.to(device) for batch in sequences_of(loader, count + spare)]
    if len(chosen) < count + spare:  # short text: a part for each
        spare = min(spare, len(chosen) // 3)
    apart = set(spread(len(chosen), spare))
    return Subject(
        model=str(model),
        data=opening.text,
        recipe=recipe,
        method=method,
        encoder=encoder,
        corpus=corpus,
        sequences=[batch for i, batch in enumerate(chosen) if i not in apart],
        spare=[chosen[i] for i in sorted(apart)] or chosen[-1:],
        rate=method.rate(1.0) if rate is None else rate,
        passes=_passes(Path(model)),
        is_run=opening.is_run,
    )


def _encoder(recipe: Recipe, folder: str) -> Encoder:
    model = build_model(recipe.model, load_tokenizer(folder), recipe.seed)
    if recipe.objective.kind != "detection":  # whose head comes with the run's state
        check_head(model, folder)
    return isolate(model)


def _loader(corpus: Corpus, encoder: Encoder, length: int, own: bool) -> Loader:
    """One sample a row: the held-out text of a run, or the given text."""
    layout = corpus.layout(length, encoder.longest(), alone=True)
    return corpus.held_out_loader(layout) if own else corpus.loader(layout, 0)


def _method(
    recipe: Recipe, corpus: Corpus, encoder: Encoder, state: Path | None, device: torch.device
) -> Method[Any]:
    """The main method of the recipe as the run left it, with the norms of the vocabulary loss switched on."""
    counts = torch.from_numpy(corpus.counts(encoder.vocabulary.weight.shape[0]))
    vocabulary = vocabulary_of(corpus.tokenizer)
    method = method_of(recipe, encoder, vocabulary, counts).to(device).eval()
    if state is not None:
        _restore(method, state)
    method.main.norms = True
    return method.main


def _restore(method: Method[Any], folder: Path) -> None:
    """What a checkpoint knows of a method beside the model itself: a proposal, for example."""
    with safe_open(folder / "training.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(("model.", "buffer."))]  # noqa: SIM118
        restore_tensors({name: file.get_tensor(name) for name in names}, method, [])
    content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    method.load_learned_state(content["learned"])


def _passes(folder: Path) -> float | None:
    try:
        summary = json.loads((folder.expanduser() / "summary.json").read_text(encoding="utf-8"))
        return float(summary["data"]["passes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
