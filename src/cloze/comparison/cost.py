"""What a step of a recipe costs, counted on real batches with their masks drawn."""

from __future__ import annotations

from typing import Any

import numpy as np

from cloze.assembly import Parts
from cloze.comparison.budget import Cost
from cloze.diagnosis.parameters import counted
from cloze.methods.base import Work
from cloze.models.operations import operations, seen
from cloze.recipes.schema import Recipe
from cloze.training.settings import Phase

ROWS = 16
MOMENTS = (0.125, 0.375, 0.625, 0.875)  # of the run: masking rates may move


def cost_of(recipe: Recipe, parts: Parts) -> Cost:
    """The mean over the phases of a run, and within each over a few of its moments."""
    costs = [
        (phase.share, _phase(parts, number, phase)) for number, phase in enumerate(recipe.training.phases)
    ]
    return Cost(
        tokens=sum(share * cost.tokens for share, cost in costs),
        predicted=sum(share * cost.predicted for share, cost in costs),
        operations=sum(share * cost.operations for share, cost in costs),
    )


def _phase(parts: Parts, number: int, phase: Phase) -> Cost:
    loader, method, model = parts.loaders[number], parts.method, parts.encoder.model
    device = next(method.parameters()).device
    body, head = counted(model)
    reaches = reaches_of(model.config)
    tokens = predicted = attended = 0.0
    for place, moment in enumerate(MOMENTS):
        batch = loader.batch(place * ROWS, ROWS).to(device).repeat(method.copies)
        work = method.prepare(batch, moment)
        lengths = lengths_of(work)
        tokens += sum(lengths)
        predicted += int((work.token_weights > 0).sum())
        attended += sum(lengths) * seen(lengths, reaches) * len(reaches) * model.config.hidden_size
    # What a step has of them, by the tokens that the run's budget counts with.
    each = phase.rows * phase.length * loader.fill / tokens
    return Cost(each * tokens, each * predicted, each * operations(body, head, tokens, predicted, attended))


def lengths_of(work: Work) -> list[int]:
    """Tokens of each sample, special ones included."""
    segments = work.batch.segments.cpu().numpy()
    return np.bincount(segments[segments >= 0]).tolist()


def reaches_of(config: Any) -> list[int | None]:
    """Of each layer, how many tokens it sees on each side; None: the whole sample."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
