"""What a step of a trainer gives: gradients, parameters, and how far two of them are apart."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from cloze.methods.base import Method
from cloze.training.loop import Trainer


class Capture:
    """Stands for an optimiser: keeps the gradients that it is given, and changes nothing."""

    param_groups: tuple[Any, ...] = ()

    def __init__(self, method: Method) -> None:
        self.method = method
        self.gradients: dict[str, Tensor] = {}

    def step(self) -> None:
        parameters = self.method.named_parameters()
        self.gradients = {n: whole(p.grad).clone() for n, p in parameters if p.grad is not None}

    def zero_grad(self) -> None:
        self.method.zero_grad()


def whole(tensor: Tensor) -> Tensor:
    """A divided tensor whole, in every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gradients(trainer: Trainer) -> tuple[dict[str, Tensor], float]:
    capture = Capture(trainer.method)
    trainer.optimizers = [capture]  # type: ignore[list-item]
    (result,) = trainer.run(1)
    return capture.gradients, result.loss


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def parameters(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.method.named_parameters()}
