"""How this process was started, as launchers such as torchrun say it in the environment."""

from __future__ import annotations

import os
import sys

from cloze.errors import SharedError


def launched() -> int:
    """Number of processes that were started for this run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this process shows how the run goes: the main one."""
    return int(os.environ.get("RANK", "0")) == 0


def is_silent(error: BaseException) -> bool:
    """Whether another process shows this error as well.

    One that is known to all is shown by the main one. Before the processes are joined, all of a machine meet
    the same ones, and its first shows them. Any other error is that of one process, which shows it.
    """
    if isinstance(error, SharedError):
        return not speaks()
    torch = sys.modules.get("torch")  # is not imported before there is something to train
    joined = torch is not None and torch.distributed.is_initialized()
    return not joined and int(os.environ.get("LOCAL_RANK", "0")) != 0
