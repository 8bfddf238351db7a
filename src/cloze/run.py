"""The public entry: `pretrain` by a recipe, and the `Run` that it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cloze.data.corpus import Progress
from cloze.data.tokenizers import load_tokenizer
from cloze.errors import ClozeError
from cloze.fill import model_folder
from cloze.models import families
from cloze.models.build import PretrainedModelChoice
from cloze.recipes.load import load_recipe, merge, override, validate
from cloze.recipes.schema import Recipe
from cloze.session import Session
from cloze.training.tracking import Listener


@dataclass(frozen=True)
class Run:
    """A run's folder, and the numbers of summary.json."""

    folder: Path
    summary: dict[str, Any]

    @property
    def model(self) -> PreTrainedModel:
        """The model, loaded from OUT/model with stock attention."""
        kind = getattr(transformers, self.summary["model"]["class"], None) or getattr(
            families, self.summary["model"]["class"]
        )
        return kind.from_pretrained(self.folder / "model", trust_remote_code=False, use_safetensors=True)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Its tokenizer."""
        return load_tokenizer(self.folder / "model")


def pretrain(
    recipe: str | Recipe = "mlm",
    data: Any = None,
    out: str | Path | None = None,
    budget: str | None = None,
    *,
    model: str | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    force: bool = False,
    listeners: Sequence[Listener] = (),
    progress: Progress | None = None,
) -> Run:
    """Pretrain an encoder by a recipe.

    Args:
        recipe: a shipped name, the path of a YAML file, or a `Recipe`.
        data: a path, glob, hub id or `datasets` object, or a list of them; paths may be weighted as in
            "news=0.7:news.jsonl". None: what the recipe names (demo: the embedded books).
        out: folder of the run; by default runs/<recipe>.
        budget: such as "30m", "10Mtok", "5000steps"; None: the recipe's.
        model: checkpoint to start from: the folder of a run or a model, or a hub id.
        overrides: each "some.field=value".
        resume: go on with the run in `out` (or start it, if there is none).
        force: resume although the recipe has changed.
        listeners: are told every record of metrics.jsonl.
        progress: is told how far reading and tokenising is.

    Returns:
        The run; its folder holds the model, the report and all numbers (docs/files.md).

    Errors: `ClozeError` for every mistake that the user can mend; `Interrupted` after Ctrl-C.
    """
    chosen, objects = resolve(recipe, data, budget, model, overrides)
    folder = Path(out) if out is not None else Path("runs") / chosen.name
    session = Session(chosen, objects, folder, list(listeners), progress)
    return Run(folder, session.run(resume, force))


def resolve(
    recipe: str | Recipe,
    data: Any = None,
    budget: str | None = None,
    model: str | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Recipe, list[Any]]:
    """The recipe with what the caller says laid over it, and the `datasets` objects among the data."""
    given = data if isinstance(data, list | tuple) else [] if data is None else [data]
    paths = [str(d) for d in given if isinstance(d, str | Path)]
    objects = [d for d in given if not isinstance(d, str | Path)]
    over: dict[str, Any] = {}
    if given:
        over["data"] = {"sources": paths}
    if budget is not None:
        over["training"] = {"budget": str(budget)}
    if model is not None:
        over["model"] = {"kind": "pretrained", "path": model_folder(model)}
        overrides = ["tokenizer.kind=load", *overrides]  # its own, unless they say otherwise
    if isinstance(recipe, Recipe):
        chosen = validate(merge(override(recipe.model_dump(), overrides), over), recipe.name)
    else:
        chosen = load_recipe(recipe, overrides, over)
    if isinstance(chosen.model, PretrainedModelChoice) and not chosen.model.path:
        raise ClozeError(f"recipe {chosen.name} starts from a model: use --model with a folder or hub id")
    return chosen, objects
