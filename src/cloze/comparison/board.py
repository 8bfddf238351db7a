"""What the terminal shows while the runs of a comparison are made: a table, or a line for each run."""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cloze.comparison.plan import Plan
from cloze.comparison.runs import Finished, Job
from cloze.comparison.verdict import signed
from cloze.terminal import LogLines, duration

NAME = 34  # columns


class Board:
    """Listens to all runs.

    Args:
        console: where to write; 80 columns are enough.
        plan: of the comparison.
    """

    def __init__(self, console: Console, plan: Plan):
        self.console, self.jobs = console, plan.jobs
        self.arms = [planned.arm.name for planned in plan.arms]
        self.seconds = {planned.arm.name: planned.steps * planned.seconds for planned in plan.arms}
        self.losses: dict[tuple[str, int], float | None] = {}
        self.shares: dict[tuple[str, int], float] = {}
        self.latest: dict[tuple[str, int], float] = {}
        self._live: Live | None = None
        self._shown = 0.0
        self._log = LogLines(self, logging.WARNING)  # the rest is said by every run again

    def __enter__(self) -> Board:
        logging.getLogger("cloze").addHandler(self._log)
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(self.table(), console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        else:
            self.say(self._title())
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("cloze").removeHandler(self._log)
        if self._live is not None:
            self._live.stop()
            self._live = None

    def listen(self, job: Job) -> RunListener:
        """A listener for one run."""
        return RunListener(self, job)

    def say(self, text: str) -> None:
        """A line of its own."""
        self.console.print(Text(text), soft_wrap=True)

    def done(self, run: Finished) -> None:
        """A run has ended, now or before."""
        key = (run.recipe, run.seed)
        self.losses[key] = run.heldout_loss
        self.shares.pop(key, None)
        if self._live is None:
            loss = "diverged" if run.heldout_loss is None else f"held-out loss {run.heldout_loss:.4f}"
            self.say(f"{len(self.losses)}/{len(self.jobs)}  {run.recipe}, seed {run.seed}: {loss}")
        self.refresh(force=True)

    def refresh(self, force: bool = False) -> None:
        """Draw the table again, a few times a second at most."""
        now = time.monotonic()
        if self._live is not None and (force or now - self._shown > 0.2):
            self._shown = now
            self._live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """A row for each recipe: runs that are done, how far the present one is, means so far."""
        table = Table(
            box=None, pad_edge=False, width=80, title=self._title(), title_justify="left", title_style="dim"
        )
        table.add_column("recipe", width=NAME, no_wrap=True, overflow="ellipsis")
        for name in ("runs", "now", "loss", "to first"):
            table.add_column(name, justify="right", no_wrap=True)
        for arm in self.arms:
            table.add_row(*(Text(cell) for cell in self._row(arm)))
        return table

    def _row(self, arm: str) -> tuple[str, ...]:
        seeds = [job.seed for job in self.jobs if job.arm == arm]
        ended = [s for s in seeds if (arm, s) in self.losses]
        losses = {s: x for s in ended if (x := self.losses[arm, s]) is not None}
        now = [f"{share:.0%}{self._loss(arm, s)}" for (a, s), share in self.shares.items() if a == arm]
        first = {s: x for s in losses if (x := self.losses.get((self.arms[0], s))) is not None}
        gap = statistics.fmean(losses[s] - first[s] for s in first) if first and arm != self.arms[0] else None
        return (
            arm,
            f"{len(ended)}/{len(seeds)}",
            " ".join(now[:2]) + ("…" if len(now) > 2 else ""),
            f"{statistics.fmean(losses.values()):.4f}" if losses else "",
            "" if gap is None else signed(gap, 4),
        )

    def _loss(self, arm: str, seed: int) -> str:
        loss = self.latest.get((arm, seed))
        return "" if loss is None else f" {loss:.3f}"

    def _title(self) -> str:
        left = sum(
            self.seconds[j.arm] * (1.0 - self.shares.get((j.arm, j.seed), 0.0))
            for j in self.jobs
            if (j.arm, j.seed) not in self.losses
        )
        return f"{len(self.losses)} of {len(self.jobs)} runs, {duration(left)} of training left"


class RunListener:
    """Tells the board of one run."""

    def __init__(self, board: Board, job: Job):
        self.board, self.key, self.steps = board, (job.arm, job.seed), job.steps

    def begin(self, steps: int) -> None:
        """The first step is next, of so many."""
        self.board.shares[self.key] = 0.0
        self.board.refresh()

    def record(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        self.board.shares[self.key] = record["step"] / max(1, self.steps)
        if record["kind"] == "heldout":
            self.board.latest[self.key] = record["loss"]
        self.board.refresh()
