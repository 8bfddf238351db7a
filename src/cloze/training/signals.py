"""SIGINT and SIGTERM as a request to stop after the present step."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("cloze")


@contextmanager
def stop_requests(patient: bool = False) -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM instead of dying of it; a second one works as usual.

    Args:
        patient: a second one is ignored as well, for a scheduler and a launcher may both send theirs.
    """
    asked: list[int] = []

    def ask(number: int, _frame: Any) -> None:
        asked.append(number)
        if patient:
            if len(asked) > 1:
                return
        else:
            signal.signal(number, before[number])
        log.warning("stopping after this step; the state will be saved")

    before: dict[int, Any] = {}
    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread
        pass
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
