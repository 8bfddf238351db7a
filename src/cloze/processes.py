"""Several processes that train one run: what is added up, who does what, and how one's error ends all.

With one process every function here does nothing. Sums that training needs go through the default group (NCCL
between GPUs). Everything else, such as errors and requests to stop, goes through a group of its own on CPUs,
in which a process may wait for days while another one tokenises.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn

from cloze.errors import ClozeError, SharedError
from cloze.launch import launched

PATIENCE = timedelta(days=30)  # that a process waits for the main one to read and tokenise

T = TypeVar("T")


def summed(*values: Tensor) -> list[Tensor]:
    """Each tensor added up over all processes, in one message; all have to call it, with equal shapes.

    Values of several types travel as float64, so integers beyond 2^53 would lose digits.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return list(values)
    kinds = {value.dtype for value in values}
    kind = kinds.pop() if len(kinds) == 1 else torch.float64
    flat = torch.cat([value.detach().to(kind).flatten() for value in values])
    dist.all_reduce(flat)
    parts = flat.split([value.numel() for value in values])
    return [part.view_as(value).to(value.dtype) for part, value in zip(parts, values, strict=True)]


def lost_another(error: RuntimeError) -> bool:
    """Whether the error says that another process has ended in the middle of a sum."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection closed" in str(error)


def _leave() -> None:
    """Part in order: threads of a group that is still there when Python ends may abort the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def on_cpu() -> bool:
    """Whether runs are on the CPU: accelerate has to be told, or it does not join processes there.

    So they are on a Mac too: masks and sums need float64, which MPS has not.
    """
    return torch.backends.mps.is_available() or not torch.accelerator.is_available()


class Processes:
    """The processes of a run, joined.

    Attributes:
        number: how many there are. index: of this one; 0 is the main one, which writes all files.
    """

    def __init__(self) -> None:
        if launched() > 1:
            PartialState(cpu=on_cpu())
        joined = dist.is_available() and dist.is_initialized()
        self.number = dist.get_world_size() if joined else 1
        self.index = dist.get_rank() if joined else 0
        if self.number != launched():
            raise ClozeError(f"{launched()} processes were started, and {self.number} could be joined")
        self._control = dist.new_group(backend="gloo", timeout=PATIENCE) if self.number > 1 else None
        if self.number > 1:
            atexit.register(_leave)

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.index == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait for all at the end; what goes wrong inside in any of them ends all (`SharedError`)."""
        problem: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.number == 1:
                raise
            problem = error
        if self.number == 1:
            return
        own = problem if problem is None or isinstance(problem, ClozeError) else repr(problem)
        found = self._gather(None if own is None else " ".join(str(own).split()))
        first = next(((i, text) for i, text in enumerate(found) if text is not None), None)
        if problem is not None and not isinstance(problem, ClozeError):
            raise problem
        if first is not None:
            where = f"process {first[0]}: " if first[0] else ""
            raise SharedError(f"{where}{first[1]}") from problem

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do it in the main process, then in one of each other machine, then in the rest.

        So what the first ones leave in a cache, shared or a machine's own, the others find.
        """
        turn = 0 if self.is_main else 1 if int(os.environ.get("LOCAL_RANK", "0")) == 0 else 2
        found: list[T] = []
        for now in range(3 if self.number > 1 else 1):
            with self.together():
                if turn == now:
                    found.append(work())
        return found[0]

    def from_main(self, value: T) -> T:
        """The main process's value."""
        if self.number == 1:
            return value
        box = [value if self.is_main else None]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return cast(T, box[0])

    def tensors_from_main(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The main process's tensors (on the CPU), so that no other one has to see its files."""
        if self.number == 1:
            return tensors
        shapes = self.from_main([(n, tuple(t.shape), t.dtype) for n, t in tensors.items()])
        found = {}
        for name, shape, kind in shapes:
            value = tensors[name].cpu().contiguous() if self.is_main else torch.empty(shape, dtype=kind)
            dist.broadcast(value.view(-1).view(torch.uint8), src=0, group=self._control)
            found[name] = value
        return found

    def same_buffers(self, module: nn.Module) -> None:
        """Give all processes the main one's buffers."""
        if self.number > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def equal(self, value: Any, what: str) -> None:
        """Make sure that all have the same value. Errors: one has not."""
        values = self._gather(value)
        other = next((i for i, x in enumerate(values) if x != values[0]), None)
        if other is not None:
            raise SharedError(f"process {other} has {what} than process 0")

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.number == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self._control)
        return int(value)

    def _gather(self, value: Any) -> list[Any]:
        if self.number == 1:
            return [value]
        found: list[Any] = [None] * self.number
        dist.all_gather_object(found, value, group=self._control)
        return found
