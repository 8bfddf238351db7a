"""Optimisers: AdamW, or Muon for the 2-D weights of the body with AdamW for the rest."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from cloze.config import Config
from cloze.models.detector import Detector
from cloze.training.muon import ShardedMuon


class OptimizerChoice(Config):
    """Which optimiser, and its settings.

    `muon` orthogonalises the momentum of every 2-D weight of the body (torch.optim.Muon, scaled so that
    AdamW's learning rates carry over); embeddings, the vocabulary head, biases and norms stay with AdamW.
    Weight decay is decoupled and spares biases and norms.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0.0)
    weight_decay: float = Field(0.01, ge=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.98, ge=0.0, lt=1.0)
    epsilon: float = Field(1e-8, gt=0.0)
    momentum: float = Field(0.95, ge=0.0, lt=1.0, description="muon only")


def groups(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Trainable parameters by treatment: `matrices` (2-D, of the body), `decayed` (embeddings), `plain`."""
    tables = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }  # a tied vocabulary head is one of them
    heads = {id(m.output.weight) for m in model.modules() if isinstance(m, Detector)}
    heads |= {
        id(layer.weight)
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and (layer := module.get_output_embeddings()) is not None
    }
    found: dict[str, list[tuple[str, nn.Parameter]]] = {"matrices": [], "decayed": [], "plain": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            found["plain"].append((name, parameter))
        elif parameter.ndim > 2 or id(parameter) in tables | heads:
            found["decayed"].append((name, parameter))
        else:
            found["matrices"].append((name, parameter))
    return found


def build_optimizers(model: nn.Module, choice: OptimizerChoice) -> list[torch.optim.Optimizer]:
    """The optimisers of a run; each group keeps the names of its parameters under `names`."""
    found = groups(model)

    def group(*kinds: str, decay: float) -> dict[str, object]:
        members = [m for kind in kinds for m in found[kind]]
        return {
            "params": [p for _, p in members],
            "names": [n for n, _ in members],
            "weight_decay": decay,
            "lr": choice.learning_rate,
        }

    muon = choice.kind == "muon" and bool(found["matrices"])
    decayed = group("decayed", *(() if muon else ("matrices",)), decay=choice.weight_decay)
    adamw = torch.optim.AdamW(
        [g for g in (decayed, group("plain", decay=0.0)) if g["params"]],
        lr=choice.learning_rate,
        betas=(choice.beta1, choice.beta2),
        eps=choice.epsilon,
        fused=True,
    )
    if not muon:
        return [adamw]
    matrices = group("matrices", decay=choice.weight_decay)
    if isinstance(found["matrices"][0][1], DTensor):
        return [adamw, ShardedMuon([matrices], choice.learning_rate, choice.weight_decay, choice.momentum)]
    return [
        adamw,
        torch.optim.Muon(
            [matrices],
            lr=choice.learning_rate,
            weight_decay=choice.weight_decay,
            momentum=choice.momentum,
            adjust_lr_fn="match_rms_adamw",
        ),
    ]
