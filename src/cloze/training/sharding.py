"""Sharding: each process keeps a part of every weight, gradient and moment (FSDP2, `fully_shard`).

Weights are gathered when they are needed: those of a layer for the time of that layer, all others
(embeddings, heads) for a forward and backward pass, in which a method may read them wherever it likes.
Gradients are averaged as they are divided. Where rows decide which networks a process runs, as in a mixture
of methods, all weights are gathered at once: processes that wait for different layers would wait for ever.

What is no training step (evaluation, samples, variance, export) runs on whole weights, in any process by
itself: see `Sharded.whole`.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from cloze.methods.base import Method, Outcome, Work
from cloze.models.encoder import Encoder
from cloze.models.encoder_decoder import EncoderDecoder
from cloze.processes import summed


class Sharded(nn.Module):
    """A method whose parameters are divided over all processes; called as the method is.

    All processes have to call the same things in the same order, and get the main one's weights. Optimisers
    are to be built afterwards, of the parameters that the method has then.

    Args:
        method: on its device.

    Raises:
        RuntimeError: a parameter was not divided.
    """

    def __init__(self, method: Method[Any]):
        super().__init__()
        self.method = method
        device = next(method.parameters()).device
        for parameter in method.parameters():
            dist.broadcast(parameter.data, src=0)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for layer in layers(method) if method.same_passes else ():
            fully_shard(layer, mesh=mesh)
        self.root: Any = fully_shard(_Terms(method), mesh=mesh)
        plain = [n for n, p in method.named_parameters() if not isinstance(p, DTensor)]
        if plain:  # accelerate's plugin on a CPU, for one, says nothing and divides nothing
            raise RuntimeError(f"these parameters were not sharded: {', '.join(plain)}")

    def forward(self, work: Work) -> Outcome:
        """One forward pass, in all processes at once."""
        with warnings.catch_warnings():
            # Of layers whose outputs are views (T5), which nothing changes in place.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
            return Outcome(*self.root(work))

    @contextmanager
    def embeddings(self) -> Iterator[None]:
        """While it lasts, all that belongs to no layer is whole, if a policy may learn from it."""
        learns = any(m.norms for m in self.method.modules() if isinstance(m, Method))
        if learns:
            self.root.unshard()
        yield
        if learns:
            self.root.reshard()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """While it lasts, the method has plain, whole weights, and a process may run it by itself.

        All processes begin and end it together. It costs each of them 4 bytes a parameter.
        """
        parts = [m for m in self.modules() if isinstance(m, FSDPModule) and m._forward_hooks]
        if not parts:  # is whole already
            yield
            return
        kept = [(m, dict(m._parameters)) for m in self.method.modules() if m._parameters]
        hooks = [(part, part._forward_pre_hooks, part._forward_hooks) for part in parts]
        made: dict[nn.Parameter, nn.Parameter] = {}  # a tied one once
        for module, parameters in kept:
            for name, own in parameters.items():
                if own is not None and own not in made:
                    full = cast(DTensor, own.detach()).full_tensor()
                    made[own] = nn.Parameter(full, own.requires_grad)
                module._parameters[name] = None if own is None else made[own]
        for part in parts:
            part._forward_pre_hooks, part._forward_hooks = OrderedDict(), OrderedDict()
        try:
            yield
        finally:
            for part, before, after in hooks:
                part._forward_pre_hooks, part._forward_hooks = before, after
            for module, parameters in kept:
                module._parameters.update(parameters)


class _Terms(nn.Module):
    """A method that gives its outcome as plain dicts, in which FSDP finds the tensors with gradients."""

    def __init__(self, method: Method[Any]):
        super().__init__()
        self.method = method

    def forward(self, work: Work) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        outcome = self.method(work)
        sums = outcome.sums
        if not self.method.same_passes:
            sums = self._with_all_that_any_uses(sums)
        return sums, outcome.feedback

    def _with_all_that_any_uses(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same sums, with gradients of zero for parameters that only other processes use.

        A parameter that none uses keeps no gradient, as with one process.
        """
        parameters = [p for p in self.method.parameters() if p.requires_grad]
        found = leaves(sums.values())
        here = torch.tensor([p in found for p in parameters], device=parameters[0].device, dtype=torch.int32)
        (anywhere,) = summed(here)
        nothing = [
            p.flatten()[:0].sum()
            for p, own, all_ in zip(parameters, here.tolist(), anywhere.tolist(), strict=True)
            if all_ and not own
        ]
        first, *_ = sums
        return sums | {first: sum(nothing, sums[first])} if nothing else sums


def leaves(tensors: Iterable[Tensor]) -> set[Tensor]:
    """The parameters that tensors were computed from: the leaves of their graph that need gradients."""
    todo = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen, found = set(todo), set()
    while todo:
        node = todo.pop()
        if hasattr(node, "variable"):
            found.add(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return found


def layers(method: nn.Module) -> list[nn.Module]:
    """The layers of all networks of a method: members of the outermost lists of modules in their bodies."""
    bodies = {m.model.base_model: None for m in method.modules() if isinstance(m, Encoder | EncoderDecoder)}
    return [layer for body in bodies for layer in _listed(body)]


def _listed(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (layer for layer in child if any(True for _ in layer.parameters()))
        else:
            yield from _listed(child)


# -- single tensors ---------------------------------------------------------------------------------------


def full(tensor: Tensor) -> Tensor:
    """A divided tensor whole, on the CPU of the main process; others, who must ask too, get an empty one.

    Any other tensor as it is.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor()
    return whole.cpu() if dist.get_rank() == 0 else whole.new_empty(0)


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor on the device of another one, and divided as that is; no scalar is divided."""
    copy = whole.to(like.device, copy=True)
    if not isinstance(like, DTensor) or whole.ndim == 0:
        return copy
    return distribute_tensor(copy, like.device_mesh, like.placements, src_data_rank=None)
