"""Writes configuration.md from the configuration classes: `python docs/make_configuration.py`."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cloze.masking import POLICIES
from cloze.models.build import SIZES
from cloze.recipes.schema import Recipe

HEAD = """# Configuration

Every field of a recipe, with its type, its default and what it means. This page is written from the
classes by `python docs/make_configuration.py`; a test compares the two.

A default here is that of the class. A shipped recipe may set another one: `cloze recipes show NAME` prints
it, and all of them extend `mlm`. In a YAML file a field is nested under its section; on the command line it
is `--set SECTION.FIELD=VALUE`, the value in YAML. An unknown field is an error that names the allowed ones.

A section with several kinds takes the fields of the kind that it names. A mapping of another `kind` replaces
the one it is laid over, and what it does not say is the class's default again. This holds for
`training.optimizer` and `training.schedule` too.

`extends: NAME` at the top of a YAML file takes everything from a shipped recipe or from another file, and
only what the file itself says is changed. It is not a field: the `recipe.yaml` of a run is resolved.
"""
PLAIN = {"str": "text", "int": "whole number", "float": "number", "bool": "yes or no"}
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def classes_of(annotation: Any) -> list[type[BaseModel]]:
    """The configuration classes in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [cls for part in get_args(annotation) for cls in classes_of(part)]


def type_text(annotation: Any, metadata: list[Any]) -> str:
    """A type for people: choices by name, numbers with their limits."""
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        parts = [type_text(part, metadata) for part in get_args(annotation) if part is not NoneType]
        return " or ".join([*dict.fromkeys(parts), *(["`null`"] if NoneType in get_args(annotation) else [])])
    if get_origin(annotation) is dict:
        return f"mapping of names to {type_text(get_args(annotation)[1], [])}"
    if get_origin(annotation) is tuple:
        return f"list of {type_text(get_args(annotation)[0], [])}"
    if hasattr(annotation, "__metadata__"):  # Annotated
        inner = [m for f in annotation.__metadata__ for m in getattr(f, "metadata", [f])]
        return type_text(annotation.__origin__, inner)
    if classes_of(annotation):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    bounds = ((sign, getattr(m, key, None)) for m in metadata for key, sign in LIMITS.items())
    limits = [f"{sign} {bound:g}" for sign, bound in bounds if bound is not None]
    return " ".join([PLAIN[annotation.__name__], *limits])


def default_text(field: FieldInfo) -> str:
    """The default as YAML would have it; empty for a section of its own."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return f"`kind: {value.kind}`" if hasattr(value, "kind") else "see there"
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower().replace('none', 'null')}`"
    if value == {}:
        return "none"
    if isinstance(value, tuple):
        return f"one {type(value[0]).__name__}" if value else "`[]`"
    return f"`{value}`" if value != "" else "empty"


def meanings(cls: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """The docstring without its list of attributes, and the attributes."""
    text = inspect.cleandoc(cls.__doc__ or "")
    about, _, listed = text.partition("\n\nAttributes:\n")
    found: dict[str, str] = {}
    for line in listed.splitlines():
        name, colon, rest = line.strip().partition(": ")
        if colon and name in cls.model_fields and line.startswith("    ") and line[4:5] != " ":
            found[name] = rest
        elif found:
            found[list(found)[-1]] += f" {line.strip()}"
    return about, found


def section(cls: type[BaseModel], place: str) -> str:
    """One class: where it stands in a recipe, what it is, its fields."""
    about, found = meanings(cls)
    for base in cls.__mro__[1:]:  # fields that it has from another class
        if issubclass(base, BaseModel):
            found = meanings(base)[1] | found
    rows = []
    for name, field in cls.model_fields.items():
        meaning = (
            found.get(name)
            or field.description
            or MEANINGS.get(f"{cls.__name__}.{name}")
            or MEANINGS.get(name)
        )
        if meaning is None:
            raise SystemExit(
                f"{cls.__name__}.{name} has no meaning: describe it in its class or in {__file__}"
            )
        cells = (
            f"`{name}`",
            type_text(field.annotation, field.metadata),
            default_text(field),
            meaning.rstrip("."),
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    table = "\n".join(["| field | type | default | meaning |", "| --- | --- | --- | --- |", *rows])
    return f"## {cls.__name__}\n\n{place}\n\n{about}\n\n{table}\n"


# Fields whose class says nothing about them.
MEANINGS = {
    "kind": "which of the kinds of this section",
    "rate": "share of each sample's units that is hidden; a number, or a schedule over the run",
    "Recipe.name": "name of the recipe, and of the run's folder",
    "Recipe.about": "one sentence for tables and the report",
    "Recipe.paper": "where the method is from",
    "Recipe.seed": "of weights, order, masks, replacements and dropout",
    "Recipe.data": "what is trained on",
    "Recipe.tokenizer": "trained on the text, or loaded",
    "Recipe.model": "from scratch, or from a checkpoint",
    "Recipe.masking": "which tokens are hidden and predicted",
    "Recipe.corruption": "what stands in the place of a hidden token",
    "Recipe.visibility": "which token sees which",
    "Recipe.objective": "what is predicted and how it is scored",
    "Recipe.variants": "other methods for the same model, each with a name that `stages` uses",
    "Recipe.stages": "which methods are trained when, one after the other",
    "Recipe.training": "steps, batch, optimiser, files",
    "Recipe.evaluation": "the held-out loss",
    "Source.path": "file, folder, glob, address (`s3://…`), saved or hub data set, store, or `cloze:books` "
    "(in the package)",
    "Source.name": "a label for mixtures",
    "Source.weight": "share of rows that come from here, relative to the other sources",
    "Source.config": "configuration of a hub dataset",
    "Source.split": "split of a saved or hub dataset",
    "Source.text_field": "column of the text here, before `data.text_field`",
    "TrainTokenizer.algorithm": "byte-level BPE, BERT's WordPiece, or single characters",
    "TrainTokenizer.lowercase": "lower-case the text",
    "LoadTokenizer.path": "folder or hub id; `null`: the model's folder",
    "LoadTokenizer.add_mask_token": "add `[MASK]` and `[PAD]` to a tokenizer that lacks them",
    "Variant.masking": "as in the recipe; `null`: the recipe's own",
    "Variant.corruption": "likewise",
    "Variant.visibility": "likewise",
    "Variant.objective": "likewise",
    "MapNet.learning_rate": "of the small network, by an Adam of its own",
    "NewModel.family": "architecture",
    "NewModel.size": "layers × width: "
    + ", ".join(f"{n} {a} × {b}" for n, (a, b) in SIZES.items())
    + " (modernbert: 22 × 768)",
    "NewModel.layers": "instead of the size's",
    "NewModel.width": "instead of the size's",
    "NewModel.heads": "attention heads; `null`: one per 64 of width",
    "NewModel.dropout": "in embeddings, attention and feed-forward layers",
    "PretrainedModelChoice.path": "the folder or hub id; `--model` fills it",
    "RateSchedule.start": "rate at the first step",
    "RateSchedule.end": "rate at the last step",
    "RateSchedule.shape": "of the way between them",
    "Replace.mask": "share that becomes the mask token",
    "Replace.random": "share that becomes a random token; the rest of the hidden tokens stays",
    "Training.budget": "`30m`, `2h`, `10Mtok` or `5000steps`; becomes a number of steps once",
    "Training.phases": "row length and batch, one after the other",
    "Training.optimizer": "AdamW or Muon",
    "Training.schedule": "of the learning rate",
    "Training.precision": "of forward passes; `auto` is bf16 on a GPU or CPU that multiplies it, else fp32",
    "Training.compile": "compile the method with torch.compile",
    "Training.gradient_checkpointing": "make activations again in the backward pass: less memory, more time",
    "Training.trackers": "besides metrics.jsonl; install the extra `trackers`",
    "OptimizerChoice.kind": "which optimiser",
    "OptimizerChoice.learning_rate": "the highest of the schedule",
    "OptimizerChoice.weight_decay": "decoupled; not on biases and norms",
    "OptimizerChoice.beta1": "AdamW",
    "OptimizerChoice.beta2": "AdamW",
    "OptimizerChoice.epsilon": "AdamW",
    "Schedule.kind": "the shape after the warm-up",
    "Schedule.warmup": "share of the steps in which the rate rises",
    "Schedule.decay": "`wsd` only: share of the steps, at the end, in which it falls",
    "Evaluation.rate": "share of tokens that is masked, uniformly",
}


def page() -> str:
    """The whole page, one section per class, in the order of a recipe."""
    todo: list[tuple[type[BaseModel], str]] = [(Recipe, "The whole file.")]
    done: dict[type[BaseModel], str] = {}
    while todo:
        cls, place = todo.pop(0)
        if cls in done:
            continue
        done[cls] = section(cls, place)
        below = []
        for name, field in cls.model_fields.items():
            path = name if cls is Recipe else f"{place.split('`')[1]}.{name}"
            if name == "masking" and cls is Recipe:
                members: list[type[BaseModel]] = sorted(POLICIES.values(), key=lambda policy: policy.__name__)
            else:
                members = classes_of(field.annotation)
            for member in members:
                below.append((member, f"`{path}`" + (" (one of its kinds)" if len(members) > 1 else "")))
        todo = below + todo
    return HEAD + "\n" + "\n".join(done.values())


if __name__ == "__main__":
    Path(__file__).with_name("configuration.md").write_text(page(), encoding="utf-8")
