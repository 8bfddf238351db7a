"""Recipes from YAML: the shipped ones by name, a user's by path, with `extends` and dotted overrides."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from cloze.errors import ClozeError
from cloze.recipes.plain import DEPTH, parse
from cloze.recipes.schema import MAIN, Recipe

log = logging.getLogger("cloze")


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(
        p.name.removesuffix(".yaml") for p in files(__package__).iterdir() if p.name.endswith(".yaml")
    )


def list_recipes() -> list[Recipe]:
    """The shipped recipes."""
    return [load_recipe(name) for name in shipped()]


def recipe_text(name: str) -> str:
    """The commented YAML of a recipe: a shipped name or a path.

    Errors: unknown name (with the nearest one), unreadable file.
    """
    if name in shipped():
        return files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if not os.path.isfile(path) and path.suffix not in (".yaml", ".yml"):
        near = get_close_matches(name, shipped(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(shipped())}"
        raise ClozeError(f"no recipe {name!r}: {hint} (or give the path of a .yaml file)")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ClozeError(f"{name}: cannot be read as a recipe: {error}") from error


def _tree(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    if name in seen:
        raise ClozeError(f"recipe {seen[0]!r} extends itself: {' -> '.join((*seen, name))}")
    tree = parse(recipe_text(name), name)
    if not isinstance(tree, dict):
        raise ClozeError(f"{name}: a recipe is a mapping of names to values; this file is not")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ClozeError(f"{name}: extends must be the name or path of a recipe, not {base!r}")
    beside = Path(name).parent / base  # a path is meant from the file that names it
    below = _tree(str(beside) if base not in shipped() and os.path.isfile(beside) else base, (*seen, name))
    below.pop("name", None)  # another recipe, another name and folder
    return lay(below, tree)


def _without_store(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """A recipe's file may come from anywhere, so it writes into the folder of its run and the cache alone."""
    data = tree.get("data")
    if not isinstance(data, dict) or data.get("store") is None:
        return tree
    log.warning(
        "%s: its data.store is left out, a file does not choose where is written: --set data.store=…", name
    )
    return {**tree, "data": {key: value for key, value in data.items() if key != "store"}}


def lay(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`merge`, of recipes: where `over` names stages, the variants below that are in none of them go."""
    merged = merge(below, over)
    stages, variants = over.get("stages"), merged.get("variants")
    if not isinstance(stages, list) or not isinstance(variants, Mapping):
        return merged
    uses = [stage.get("use", MAIN) for stage in stages if isinstance(stage, Mapping)]
    named = {str(name) for use in uses for name in (use if isinstance(use, Mapping) else [use])}
    if not named <= {MAIN, *variants}:  # a mistake, of which the recipe's check knows more
        return merged
    own = over.get("variants") or ()
    return merged | {"variants": {name: x for name, x in variants.items() if name in named or name in own}}


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, mapping by mapping; a mapping of another `kind` replaces the base's."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            other_kind = "kind" in value and "kind" in below and value["kind"] != below["kind"]
            merged[key] = dict(value) if other_kind else merge(below, value)
        else:
            merged[key] = value
    return merged


def override(tree: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """The tree with each `some.field=value` laid over it; another kind first, for it replaces its fields."""
    for text in sorted(texts, key=lambda t: not t.partition("=")[0].strip().endswith("kind")):
        tree = _override(tree, text)
    return tree


def _override(tree: dict[str, Any], text: str) -> dict[str, Any]:
    path, sign, value = text.partition("=")
    keys = path.strip().split(".")
    if not sign or not all(keys) or len(keys) > DEPTH:
        raise ClozeError(f"--set {text}: write it as some.field=value, for example masking.rate=0.3")
    kind = parsed = parse(value, f"--set {text[:200]}")
    for key in reversed(keys):
        parsed = {key: parsed}
    below: Any = tree
    for key in keys[:-1]:
        below = below.get(key) if isinstance(below, dict) else None
    if (
        keys[-1] == "kind"
        and isinstance(below, dict)
        and isinstance(kind, str)
        and below.get("kind") not in (None, kind)
    ):
        # Every masking has a rate; that of none is 0, and that of rest is its own.
        fixed = any(x in ("none", "rest") for x in (kind, below["kind"]))
        keep = {k: v for k, v in below.items() if k == "rate" and not fixed}
        parsed_leaf: Any = keep | {"kind": kind}
        for key in reversed(keys[:-1]):
            parsed_leaf = {key: parsed_leaf}
        return merge(tree, parsed_leaf)
    return lay(tree, parsed)


def load_recipe(name: str, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> Recipe:
    """A validated recipe.

    Args:
        name: a shipped recipe or the path of a YAML file.
        overrides: `some.field=value` each, the value in YAML.
        values: a tree that is laid over all of it, such as what the command's options say.

    Errors: one line that names the field, what is wrong and what is allowed.
    """
    tree = lay(override(_without_store(_tree(name), name), overrides), values or {})
    tree.setdefault("name", Path(name).stem)
    return validate(tree, name)


def validate(tree: Mapping[str, Any], origin: str) -> Recipe:
    """The recipe of a tree; `origin` is named in errors."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ClozeError(f"{origin}: {_explain(error)}") from error


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` takes."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def filled(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A dumped recipe of perhaps an earlier version, with the defaults of the fields that it lacks."""
    try:
        return Recipe.model_validate(tree).model_dump(mode="json")
    except ValidationError:
        return tree


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two dumped recipes, as "field: old -> new"."""
    lines: list[str] = []
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Configuration classes that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, UnionType, tuple, dict):
        return [m for a in get_args(annotation) if a not in (NoneType, ...) for m in _models(a)]
    return []


def _explain(error: ValidationError) -> str:
    """The first mistake, in one line."""
    # Of a union's branches, report the one that got furthest.
    first = max(error.errors(), key=lambda e: (e["type"] == "extra_forbidden", len(e["loc"])))
    models: list[type[BaseModel]] = [Recipe]
    fields: list[str] = []
    named = False  # the part is a key that the user chose
    for part in first["loc"]:
        if named:
            fields.append(str(part))
            named = False
            continue
        known = [m for m in models if str(part) in m.model_fields]
        kinds = {m.model_fields["kind"].default: m for m in models if "kind" in m.model_fields}
        if known:
            fields.append(str(part))
            annotations = [m.model_fields[str(part)].rebuild_annotation() for m in known]
            models = [m for a in annotations for m in _models(a)]
            named = any(get_origin(a) is dict for a in annotations)
        elif part in kinds:
            models = [kinds[part]]
        elif part in (classes := {m.__name__: m for m in models}):  # a branch of a union without kinds
            models = [classes[str(part)]]
        elif isinstance(part, int):
            fields.append(str(part))
        elif first["type"] == "extra_forbidden":
            fields.append(str(part))
            break
    field = ".".join(fields) or "recipe"
    if first["type"] == "extra_forbidden":
        allowed = sorted({name for m in models for name in m.model_fields})
        near = get_close_matches(fields[-1], allowed, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown field {field}: {hint}allowed are {', '.join(allowed)}"
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        allowed = sorted(m.model_fields["kind"].default for m in models if "kind" in m.model_fields)
        given = (first.get("ctx") or {}).get("tag")
        near = get_close_matches(str(given), allowed, n=1) if given is not None else []
        hint = f"did you mean {near[0]!r}? " if near else ""
        what = f"unknown kind {given!r}" if given is not None else "no kind is given"
        return f"{field}: {what}: {hint}allowed are {', '.join(allowed)}"
    if first["type"] in ("model_type", "model_attributes_type"):
        kinds = {m.model_fields["kind"].default: m for m in models if "kind" in m.model_fields}
        names = f"{field}.kind is one of" if len(kinds) > 1 else "its fields are"
        allowed = (
            sorted(kinds) if len(kinds) > 1 else sorted({name for m in models for name in m.model_fields})
        )
        return f"{field}: must be a mapping, not {first['input']!r}: {names} {', '.join(allowed)}"
    if first["type"] == "tuple_type":
        return f"{field}: must be a list, not {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    said = isinstance(first["input"], dict | list | tuple) or repr(first["input"]) in message
    got = "" if said else f" (got {first['input']!r})"
    return f"{field}: {message[0].lower() + message[1:]}{got}"
