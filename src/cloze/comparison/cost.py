"""What a step of a recipe costs, counted on real batches with their masks drawn."""

from __future__ import annotations

from typing import Any

import numpy as np

from cloze.assembly import Parts
from cloze.comparison.budget import Cost
from cloze.corruption.view import View
from cloze.diagnosis.parameters import counted
from cloze.methods.base import Pass
from cloze.models.operations import operations, seen
from cloze.progress import part_at, stretches
from cloze.recipes.schema import Recipe

ROWS = 16
MOMENTS = (0.125, 0.375, 0.625, 0.875)  # of a stretch of the run: masking rates may move


def cost_of(recipe: Recipe, parts: Parts) -> Cost:
    """The mean over the run: over the stretches with one phase and one method, and a few moments of each."""
    shares = [phase.share for phase in recipe.training.phases]
    costs = [
        (end - start, _cost(recipe, parts, start, end))
        for start, end in stretches(shares, parts.method.stages)
    ]
    return Cost(
        tokens=sum(share * cost.tokens for share, cost in costs),
        predicted=sum(share * cost.predicted for share, cost in costs),
        operations=sum(share * cost.operations for share, cost in costs),
    )


def _cost(recipe: Recipe, parts: Parts, start: float, end: float) -> Cost:
    number = part_at([phase.share for phase in recipe.training.phases], (start + end) / 2)
    phase, loader = recipe.training.phases[number], parts.loaders[number]
    method = parts.method
    device = next(method.parameters()).device
    tokens = predicted = counted_ = 0.0
    for place, moment in enumerate(MOMENTS):
        batch = loader.batch(place * ROWS, ROWS).to(device).repeat(method.copies)
        work = method.prepare(batch, start + moment * (end - start))
        tokens += int(work.tokens)
        predicted += int(work.predicted)
        counted_ += sum(operations_of(one) for one in method.passes(work))
    # What a step has of them, by the tokens that the run's budget counts with.
    each = phase.rows * phase.length * loader.fill / tokens
    return Cost(each * tokens, each * predicted, each * counted_)


def operations_of(one: Pass) -> float:
    """Of a forward pass with the backward pass through it."""
    model, view, lengths = one.network.model, one.view, lengths_of(one.view)
    body, head = counted(model)
    reaches = reaches_of(model.config)
    sees = seen(lengths, reaches, prefixes_of(view) if view.causal else None) if lengths else 0.0
    attended = sum(lengths) * sees * len(reaches) * model.config.hidden_size
    return operations(one.share * body, head, sum(lengths), one.predicted, attended)


def lengths_of(view: View) -> list[int]:
    """Tokens of each sample, special ones included."""
    segments = view.segments.cpu().numpy()
    return np.bincount(segments[segments >= 0]).tolist()


def prefixes_of(view: View) -> list[int]:
    """Tokens of each sample that its whole sample sees, of a causal view."""
    if view.open is None:
        return []
    return np.bincount(view.segments[view.open].cpu().numpy()).tolist()


def reaches_of(config: Any) -> list[int | None]:
    """Of each layer, how many tokens it sees on each side; None: the whole sample."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
