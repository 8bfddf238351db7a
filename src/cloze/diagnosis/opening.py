"""From what the user named to what is measured: a method with its model, and sequences of text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from cloze import run
from cloze.assembly import open_text
from cloze.data.batch import Batch
from cloze.data.corpus import Corpus, Progress
from cloze.data.loader import Loader
from cloze.data.tokenizers import load_tokenizer
from cloze.diagnosis.text import sequences_of, spread
from cloze.errors import ClozeError
from cloze.fill import model_folder
from cloze.methods.base import Method
from cloze.methods.build import build_method, vocabulary_of
from cloze.models.build import build_model, check_head
from cloze.models.encoder import Encoder, isolate
from cloze.recipes.load import load_recipe, validate
from cloze.recipes.schema import Recipe
from cloze.training.state import Checkpoints, restore_tensors

LENGTH, SHORTEST = 128, 16  # tokens of a sequence, specials included


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured; networks and batches are on one device, dropout is off.

    Attributes:
        model, data: names for people.
        recipe: of the run, or what `mlm` would go on with.
        method: makes the losses, and has what the run has learnt. encoder: the model in it.
        corpus: the text. sequences: one row each. spare: others, for what must not be measured on them.
        rate: at the end of the run, unless the user gave one.
        passes: how often the run saw its text; None: not known.
        is_run: a run, and not just a model.
    """

    model: str
    data: str
    recipe: Recipe
    method: Method
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
    given, state = _recipe_of(model)
    folder = model_folder(model)
    own = given is not None and data is None
    if data is None and not own:
        raise ClozeError(f"no text is given: use --data PATH ({model} is no run, which has held-out text)")
    sets = ["tokenizer.path=null", *([] if own else _reading(data, text_field, split_text))]
    base = given if given is not None else load_recipe("mlm", ["masking.rate=0.15"])
    recipe, objects = run.resolve(base, data, None, folder, sets)
    encoder = _encoder(recipe, folder)
    longest = encoder.longest()
    length = min(LENGTH, longest) if length is None else length
    if not SHORTEST <= length <= longest:
        raise ClozeError(f"--length {length}: the model takes {SHORTEST} to {longest:,} tokens")
    corpus = _open(recipe, objects, own, progress)
    loader = _loader(corpus, encoder, length, own)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method = _method(recipe, corpus, encoder, state, device)
    chosen = [batch.to(device) for batch in sequences_of(loader, count + spare)]
    apart = set(spread(len(chosen), spare)) if len(chosen) == count + spare else set()
    return Subject(
        model=str(model),
        data="held-out text of the run" if own else _names(data),
        recipe=recipe,
        method=method,
        encoder=encoder,
        corpus=corpus,
        sequences=[batch for i, batch in enumerate(chosen) if i not in apart],
        spare=[chosen[i] for i in sorted(apart)] or chosen,
        rate=method.rate(1.0) if rate is None else rate,
        passes=_passes(Path(model)),
        is_run=given is not None,
    )


def _recipe_of(model: str | Path) -> tuple[Recipe | None, Path | None]:
    """The recipe of a run or of one of its checkpoints, and the checkpoint with its tensors."""
    folder = Path(model).expanduser()
    if (folder / "recipe.yaml").is_file():
        checkpoints = Checkpoints(folder / "checkpoints", 1)
        steps = checkpoints.steps()
        return load_recipe(str(folder / "recipe.yaml")), checkpoints.path(steps[-1]) if steps else None
    if (folder / "state.json").is_file() and (folder / "training.safetensors").is_file():
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return validate(state["recipe"], str(folder / "state.json")), folder
    return None, None


def _reading(data: Any, text_field: str | None, split_text: str | None) -> list[str]:
    """How the given text is read: nothing of it is held out, for nothing is trained on."""
    given = data if isinstance(data, list | tuple) else [data]
    paths = [str(d) for d in given if isinstance(d, str | Path)]
    heldout: dict[str, Any] = {"path": paths[0]} if paths else {"share": 1e-6, "minimum": 1}
    sets = [f"data.heldout={json.dumps(heldout)}", f"data.text_field={json.dumps(text_field)}"]
    return sets + ([f"data.split_text={json.dumps(split_text)}"] if split_text is not None else [])


def _names(data: Any) -> str:
    given = data if isinstance(data, list | tuple) else [data]
    return ", ".join(str(d) if isinstance(d, str | Path) else type(d).__name__ for d in given)


def _encoder(recipe: Recipe, folder: str) -> Encoder:
    model = build_model(recipe.model, load_tokenizer(folder), recipe.seed)
    check_head(model, folder)
    return isolate(model)


def _open(recipe: Recipe, objects: list[Any], own: bool, progress: Progress | None) -> Corpus:
    try:
        return open_text(recipe, objects, progress)
    except ClozeError as error:
        if own:
            raise ClozeError(f"the run's own text cannot be read ({error}): use --data PATH") from error
        raise


def _loader(corpus: Corpus, encoder: Encoder, length: int, own: bool) -> Loader:
    """One sample a row: the held-out text of a run, or the given text."""
    layout = corpus.layout(length, encoder.longest(), alone=True)
    return corpus.held_out_loader(layout) if own else corpus.loader(layout, 0)


def _method(
    recipe: Recipe, corpus: Corpus, encoder: Encoder, state: Path | None, device: torch.device
) -> Method:
    """The method of the recipe as the run left it, with the norms of the vocabulary loss switched on."""
    counts = torch.from_numpy(corpus.counts(encoder.vocabulary.weight.shape[0]))
    vocabulary = vocabulary_of(corpus.tokenizer)
    choices = recipe.objective, recipe.masking, recipe.corruption, encoder, vocabulary, counts, recipe.seed
    method = build_method(*choices).to(device).eval()
    method.norms = True
    if state is not None:
        _restore(method, state)
    return method


def _restore(method: Method, folder: Path) -> None:
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
