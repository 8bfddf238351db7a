"""Step times taken in turn: every recipe for a few steps, then all of them again, in one process.

So what the machine does beside hits all alike. Runs are timed by themselves too, but one after the other,
over hours; those times are kept with each run and nothing is computed from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from accelerate import Accelerator

from cloze.assembly import Parts
from cloze.recipes.schema import Recipe
from cloze.training.loop import Trainer
from cloze.training.precision import quick_products
from cloze.training.state import State, write_json

ROUNDS, STEPS = 3, 4


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a step, for each arm one value a round.

    Attributes:
        seconds: by arm. recipes: a digest of each arm's recipe, so that old times are not taken for new.
    """

    seconds: dict[str, tuple[float, ...]]
    recipes: dict[str, str]


def time_in_turn(
    recipes: Mapping[str, Recipe], parts: Mapping[str, Parts], accelerator: Accelerator
) -> Timing:
    """Time a few steps of every arm, in turn; only the weights of those that wait are in memory."""
    found: dict[str, list[float]] = {name: [] for name in recipes}
    trainers = {
        name: Trainer(parts[name].method, parts[name].loaders, r.training, State(), r.seed, accelerator)
        for name, r in recipes.items()
    }
    with quick_products():
        for number in range(ROUNDS):
            for name, trainer in trainers.items():
                found[name].append(trainer.calibrate(STEPS, warm=2 if number == 0 else 1))
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
    return Timing({name: tuple(times) for name, times in found.items()}, digests(recipes))


def digests(recipes: Mapping[str, Recipe]) -> dict[str, str]:
    """What a recipe's time depends on, by arm."""
    return {
        name: blake2b(recipe.model_dump_json().encode(), digest_size=8).hexdigest()
        for name, recipe in recipes.items()
    }


def read_timing(file: Path, recipes: Mapping[str, Recipe]) -> Timing | None:
    """The times that were taken for these recipes, all of them together; None: take them."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        timing = Timing({k: tuple(v) for k, v in content["seconds"].items()}, dict(content["recipes"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return timing if digests(recipes).items() <= timing.recipes.items() else None


def write_timing(file: Path, timing: Timing) -> None:
    """Keep the times for when the comparison goes on."""
    write_json(file, asdict(timing))
