"""The numbers of a run: the content of summary.json."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedConfig

from cloze.assembly import Parts
from cloze.evaluation.heldout import SEED, unigram_losses
from cloze.models.build import parameters
from cloze.models.twins import DECODERS
from cloze.recipes.schema import Recipe
from cloze.report.environment import environment
from cloze.training.precision import resolve
from cloze.training.state import State


def unigram_loss(parts: Parts) -> tuple[float | None, int]:
    """Held-out loss of the model that knows only token frequencies, and the number of tokens it is over.

    None where no tokens of the vocabulary are predicted.
    """
    method = parts.method.main
    labels = torch.cat([method.examine(*item, SEED).labels for item in parts.held_out.items()])
    if not method.predicts_tokens:
        return None, labels.numel()
    return unigram_losses(labels, parts.counts).double().mean().item(), labels.numel()


def summarise(
    recipe: Recipe,
    parts: Parts,
    state: State,
    unigram: tuple[float | None, int],
    device: torch.device,
    objects: list[Any],
) -> dict[str, Any]:
    """What summary.json holds (docs/files.md), all but the status.

    Args:
        unigram: what `unigram_loss` gave.
        objects: the `datasets` objects that were trained on.
    """
    model, rows = parts.encoder.model, parts.loaders[-1].sources
    reading = parts.method.reading
    kind = DECODERS[model.config.model_type] if reading == "causal" else type(model)
    if reading == "detection":
        kind = type(parts.method.export())
    drawn = zip(state.cursors, parts.loaders, strict=False)  # rows, without their masked copies
    read = sum(cursor * loader.layout.length * loader.fill for cursor, loader in drawn)
    return {
        "recipe": recipe.name,
        "about": recipe.about,
        "paper": recipe.paper,
        "unbiased": recipe.unbiased,
        "choices": recipe.choices(),
        "variants": {name: recipe.choices(name) for name in recipe.variants},
        "parameters": parameters(parts.method),
        "tokens_seen": state.tokens,
        "steps": state.step,
        "budget_steps": state.steps,
        "seconds": round(state.seconds, 2),
        "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
        "heldout_of": parts.method.main.measures,
        "heldout_loss_initial": state.heldout.get("loss_initial"),
        "heldout_loss": state.heldout.get("loss"),
        "heldout_accuracy": state.heldout.get("accuracy"),
        "heldout_auc": state.heldout.get("auc"),
        "heldout_replaced": state.heldout.get("replaced"),
        "heldout_rate": recipe.evaluation.rate,
        "unigram_loss": unigram[0],
        "seed": recipe.seed,
        "model": {
            "class": kind.__name__,
            "reading": reading,
            "family": cast(type[PreTrainedConfig], kind.config_class).model_type,
            "layers": model.config.num_hidden_layers,
            "width": model.config.hidden_size,
            "longest_sample": parts.encoder.longest(),
        },
        "data": {
            "sources": [s.path for s in recipe.data.sources] + [type(o).__name__ for o in objects],
            "documents": sum(s.totals["documents"] for s in parts.corpus.stores),
            "tokens_train": sum(r.tokens for r in rows),
            "tokens_heldout": sum(r.tokens for r in parts.held_out.loader.sources),
            "heldout_tokens_predicted": unigram[1],
            "vocabulary": len(parts.corpus.tokenizer),
            "fill": round(parts.loaders[-1].fill, 4),
            "passes": round(read / max(1, sum(r.used for r in rows)), 3),
        },
        "environment": environment(device, resolve(recipe.training.precision, device)),
    }
