"""What is recorded: metrics.jsonl always, trackers when asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator


class Listener(Protocol):
    """Who is told what happens in a run, such as the terminal."""

    def begin(self, steps: int) -> None:
        """The first step is next, of so many."""

    def record(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl: its `kind` is step, heldout or note."""


class Metrics:
    """Appends records to metrics.jsonl, trackers and listeners.

    Args:
        path: the file. After a resume it is cut to `length` bytes, where the checkpoint was saved.
        length: bytes of the file that are kept.
        accelerator: with its trackers, if any.
        listeners: who is told.
    """

    def __init__(self, path: Path, length: int, accelerator: Accelerator, listeners: list[Listener]):
        self.path, self.accelerator, self.listeners = path, accelerator, listeners
        self._main = accelerator.is_main_process
        if self._main:
            path.touch()
            with path.open("r+b") as file:
                file.truncate(min(length, path.stat().st_size))

    @property
    def length(self) -> int:
        """Bytes written so far; 0 in a process that does not write."""
        return self.path.stat().st_size if self._main else 0

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """The records of a kind that are in the file."""
        found = map(json.loads, self.path.read_text(encoding="utf-8").splitlines()) if self._main else ()
        return [line for line in found if line["kind"] == kind]

    def record(self, kind: str, step: int, **values: Any) -> None:
        """Write one record."""
        if not self._main:
            return
        line = {"kind": kind, "step": step} | {k: _short(v) for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        for listener in self.listeners:
            listener.record(line)
        numbers = {f"{kind}/{k}": v for k, v in line.items() if isinstance(v, float | int) and k != "step"}
        if self.accelerator.trackers:
            self.accelerator.log(numbers, step=step)


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
