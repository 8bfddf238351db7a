"""The recipes that are compared: by name, with one or several fields swept, all held to the same ruler."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cloze.errors import ClozeError
from cloze.recipes.load import difference, validate
from cloze.recipes.plain import parse
from cloze.recipes.schema import Recipe
from cloze.run import resolve

log = logging.getLogger("cloze")

# What must be the same for all, because it is what they are measured with, or belongs to the comparison.
_RULER = ("data", "evaluation", "seed", "training.budget", "name", "about")


@dataclass(frozen=True, slots=True)
class Arm:
    """A recipe in a comparison.

    Attributes:
        name: its own among the arms. folder: the same, fit for a file name.
        recipe: resolved, with the text and the evaluation that all arms share.
    """

    name: str
    recipe: Recipe

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.=+-]+", "-", self.name).strip("-.")


@dataclass(frozen=True, slots=True)
class Sweep:
    """A field and the values that it takes."""

    field: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> Sweep:
        """From masking.rate=0.15,0.3,0.5; values may be mappings: masking={kind: uniform},{kind: mapnet}."""
        path, sign, values = text.partition("=")
        path = path.strip()
        if not sign or not path or not values.strip():
            raise ClozeError(
                f"--sweep {text}: write it as some.field=a,b,c, for example masking.rate=0.15,0.3"
            )
        if any(path == fixed or path.startswith(f"{fixed}.") for fixed in _RULER):
            raise ClozeError(
                f"--sweep {text}: {path} must be the same in all runs of a comparison; use --set for all"
            )
        parsed = parse(f"[{values}]", f"--sweep {text}: values with commas between")
        if len({json.dumps(v) for v in parsed}) < len(parsed):
            raise ClozeError(f"--sweep {text}: a value is there twice")
        return cls(path, tuple(parsed))

    def settings(self) -> list[tuple[str, str]]:
        """(words for a name, override) of each value."""
        short = self.field.rpartition(".")[2]
        kinds = [v.get("kind") if isinstance(v, dict) else None for v in self.values]
        found = []
        for value, kind in zip(self.values, kinds, strict=True):
            shown = str(kind) if kind and kinds.count(kind) == 1 else yaml_text(value)
            found.append((f"{short}={shown}", f"{self.field}={json.dumps(value)}"))
        return found


def yaml_text(value: Any) -> str:
    """A value as it is written in YAML, in one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def make_arms(
    recipes: Sequence[str | Recipe],
    data: Any = None,
    model: str | None = None,
    sweeps: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> list[Arm]:
    """Every recipe with every combination of the swept values; the first one is the baseline.

    Args:
        recipes: names, YAML files or recipes. data, model: as for `pretrain`.
        sweeps: each "some.field=a,b,c". overrides: each "some.field=value", for all arms.

    Errors: fewer than two arms, or two of one name.
    """
    grid = [parsed.settings() for parsed in map(Sweep.parse, sweeps)]
    found: list[Arm] = []
    for recipe in recipes:
        for combination in itertools.product(*grid):
            sets = [*overrides, *(setting for _, setting in combination)]
            chosen, objects = resolve(recipe, data, None, model, sets)
            if objects:
                raise ClozeError("a comparison reads its text from files: give paths, not datasets objects")
            found.append(Arm(" ".join([chosen.name, *(words for words, _ in combination)]), chosen))
    if len(found) < 2:
        raise ClozeError(
            "there is one recipe: name another one too, or vary a field with --sweep some.field=a,b,c"
        )
    for one, other in itertools.combinations(found, 2):
        if one.folder == other.folder:
            raise ClozeError(
                f"two recipes are named {one.name}: give one of the YAML files another name, or compare "
                "values of a field with --sweep"
            )
    return [_measured_alike(arm, found[0]) for arm in found]


def _measured_alike(arm: Arm, first: Arm) -> Arm:
    """The arm on the text of the first one, evaluated as that."""
    mine, common = arm.recipe, first.recipe
    for section in ("data", "evaluation"):
        old, new = (r.model_dump(mode="json")[section] for r in (mine, common))
        if changed := difference(old, new, f"{section}."):
            log.info("%s: as for %s: %s", arm.name, first.name, "; ".join(changed))
    same = {"data": common.data.model_dump(), "evaluation": common.evaluation.model_dump()}
    return Arm(arm.name, validate(mine.model_dump() | same, arm.name))


def differences(arm: Arm, baseline: Arm) -> list[str]:
    """What an arm has otherwise than the baseline: "field: theirs -> its own"."""
    old, new = (
        {
            k: v
            for k, v in a.recipe.model_dump(mode="json").items()
            if k not in ("name", "about", "paper", "seed")
        }
        for a in (baseline, arm)
    )
    return difference(old, new)


def path_of(folder: Path, arm: Arm, seed: int) -> Path:
    """Folder of a run."""
    return folder / "runs" / f"{arm.folder}-{seed}"
