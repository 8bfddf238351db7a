"""From what the user named to a recipe and text: a run with its own, or any model with text that is given."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloze import run
from cloze.assembly import open_text
from cloze.data.corpus import Corpus, Progress
from cloze.errors import ClozeError
from cloze.fill import model_folder
from cloze.recipes.load import load_recipe, validate
from cloze.recipes.schema import Recipe
from cloze.training.state import Checkpoints, damage


@dataclass(frozen=True, slots=True)
class Opening:
    """A model with a recipe, and where its text comes from.

    Attributes:
        folder: of the model, or its hub id.
        recipe: of the run, or what `mlm` would go on with.
        text: name of the text, for people.
        own: the text is the run's, and what is looked at is its held-out part.
        is_run: a run or one of its checkpoints, and not just a model.
        checkpoint: the run's state, with all that it has learnt; None: there is none.
        objects: `datasets` objects among the text.
    """

    folder: str
    recipe: Recipe
    text: str
    own: bool
    is_run: bool
    checkpoint: Path | None
    objects: list[Any]

    def corpus(self, progress: Progress | None = None) -> Corpus:
        """Read and tokenise the text. All of a text that was given is in both parts of the corpus."""
        try:
            return open_text(self.recipe, self.objects, progress)
        except ClozeError as error:
            if self.own:
                raise ClozeError(f"the run's own text cannot be read ({error}): use --data PATH") from error
            raise


def choose(
    model: str | Path, data: Any = None, text_field: str | None = None, split_text: str | None = None
) -> Opening:
    """What is to be looked at; nothing is read yet but the recipe.

    Args:
        model: a run, one of its checkpoints, a model folder or a hub id.
        data: text, as for `pretrain`; None: the run's own held-out text.
        text_field, split_text: how the given text is read, as in a recipe's `data`.

    Errors: no text for a model that is no run.
    """
    given, checkpoint = recipe_of(model)
    folder = model_folder(model)
    own = given is not None and data is None
    if data is None and not own:
        raise ClozeError(f"no text is given: use --data PATH ({model} is no run, which has held-out text)")
    sets = [
        "tokenizer.path=null",
        "tokenizer.extend=0",
        *([] if own else _reading(data, text_field, split_text)),
    ]
    base = given if given is not None else load_recipe("mlm", ["masking.rate=0.15"])
    recipe, objects = run.resolve(base, data, None, folder, sets)
    name = "held-out text of the run" if own else _names(data)
    return Opening(folder, recipe, name, own, given is not None, checkpoint, objects)


def recipe_of(model: str | Path) -> tuple[Recipe | None, Path | None]:
    """The recipe of a run or of one of its checkpoints, and the checkpoint with its tensors."""
    folder = Path(model).expanduser()
    if (folder / "recipe.yaml").is_file():
        checkpoints = Checkpoints(folder / "checkpoints", 1)
        whole = [step for step in checkpoints.steps() if damage(checkpoints.path(step)) is None]
        return load_recipe(str(folder / "recipe.yaml")), checkpoints.path(whole[-1]) if whole else None
    if (folder / "state.json").is_file() and (folder / "training.safetensors").is_file():
        problem = damage(folder)
        if problem is not None:
            raise ClozeError(f"{folder}: this checkpoint is damaged ({problem}): use another one of its run")
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
