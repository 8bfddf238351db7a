"""Muon for matrices that are divided over processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cloze.training.sharding import part_of


class ShardedMuon(torch.optim.Optimizer):
    """`torch.optim.Muon` (`match_rms_adamw`, Nesterov) on matrices that are divided by rows.

    Orthogonalising needs the whole matrix: it is gathered, one at a time, and every process does the same
    work on it, as with DDP. Momentum, decay and the update itself are each process's own part. State and
    names are those of torch's class, so a checkpoint of either goes on in the other.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, weight_decay: float, momentum: float):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have gradients; in all processes at once."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: DTensor, gradient: DTensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[parameter], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        kept, own = state["momentum_buffer"].to_local(), gradient.to_local()
        kept.lerp_(own, 1.0 - momentum)
        direction = DTensor.from_local(
            own.lerp(kept, momentum), gradient.device_mesh, gradient.placements,
            run_check=False, shape=gradient.shape, stride=gradient.stride(),
        )  # fmt: skip
        change = part_of(_orthogonal(direction.full_tensor(), group["lr"]), parameter)
        local = parameter.to_local()
        local.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(change.to_local())  # type: ignore[attr-defined]


def _orthogonal(matrix: Tensor, rate: float) -> Tensor:
    """The change that torch's Muon makes for a gradient without momentum: −rate' · its orthogonal factor."""
    change = nn.Parameter(torch.zeros_like(matrix))
    change.grad = matrix
    torch.optim.Muon([change], rate, weight_decay=0.0, momentum=0.0, adjust_lr_fn="match_rms_adamw").step()
    return change.detach()
