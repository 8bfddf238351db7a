"""What the terminal shows: a progress bar, or plain lines when it is not a terminal."""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text


def duration(seconds: float) -> str:
    """Such as "45s", "12m 05s", "3h 20m"."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"


def amount(number: float) -> str:
    """Such as "950", "12.3 k", "4.56 M", "1.2 G"."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * size:  # what three digits round up to it
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


class Terminal:
    """Listens to a run and to the tokenising before it.

    Args:
        console: where to write.
        every: seconds between plain lines.
    """

    def __init__(self, console: Console, every: float = 10.0):
        self.console, self.every = console, every
        self.plain = not console.is_terminal or console.is_dumb_terminal
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._held = ""
        self._last = -every
        self._done: dict[str, list[int]] = {}
        self.total: int | None = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def reading(self, name: str, characters: int, tokens: int) -> None:
        """Progress of `prepare`: characters and tokens since the last call."""
        done = self._done.setdefault(name, [0, 0])
        done[0] += characters
        done[1] += tokens
        self.show(f"reading {_short(name)}: {amount(done[0])} characters, {amount(done[1])} tokens", None)

    def begin(self, steps: int) -> None:
        """A run of so many steps begins."""
        self._stop()
        self.total = steps

    def record(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        kind = record["kind"]
        if kind == "note":
            self.say(record["message"])
        elif kind == "heldout":
            self._held = f"  held-out {record['loss']:.3f}"
            if self.plain:
                found = (
                    f"AUC {record['auc']:.3f}" if "auc" in record else f"accuracy {record['accuracy']:.1%}"
                )
                self.console.print(
                    f"step {record['step']:>6}  held-out loss {record['loss']:.3f}  {found}",
                    highlight=False,
                )
        elif kind == "step":
            speed = record["tokens_per_second"]
            left = ""
            if self.total and record["step"]:
                left = (
                    f"  {duration(record['seconds'] / record['step'] * (self.total - record['step']))} left"
                )
            line = f"loss {record['loss']:.3f}{self._held}  {amount(speed)} tok/s{left}"
            self.show(line, record["step"])

    def say(self, text: str) -> None:
        """A line of its own."""
        console = self._bar.console if self._bar is not None else self.console
        console.print(Text(text), soft_wrap=True)

    def show(self, line: str, step: int | None) -> None:
        """A line that replaces the last one, with the bar at `step`."""
        if self.plain:
            now = time.monotonic()
            if now - self._last >= self.every or (step is not None and step == self.total):
                self._last = now
                place = f"step {step:>6}  " if step is not None else ""
                self.console.print(place + line, highlight=False, soft_wrap=True)
            return
        if self._bar is None:
            columns = [
                SpinnerColumn(),
                BarColumn(bar_width=16),
                TextColumn("{task.description}", markup=False),
            ]
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total)
        assert self._task is not None
        self._bar.update(self._task, description=line, completed=step or 0, total=self.total)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Says(Protocol):
    """Whoever writes lines."""

    def say(self, text: str) -> None: ...


class LogLines(logging.Handler):
    """Shows the package's log through the terminal, warnings marked as such."""

    def __init__(self, terminal: Says, level: int = logging.INFO):
        super().__init__(level)
        self.terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        self.terminal.say(mark + record.getMessage())


def _short(name: str, most: int = 30) -> str:
    return name if len(name) <= most else "…" + name[-most + 1 :]
