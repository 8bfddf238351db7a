"""Runs side by side, on several GPUs or on parts of one machine.

Each is a process of its own: the command `cloze pretrain` on a resolved recipe.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from cloze.comparison.runs import Job
from cloze.recipes.load import dump
from cloze.session import Interrupted
from cloze.training.signals import stop_requests
from cloze.training.tracking import Listener

LOOK_EVERY = 0.5  # seconds


class Process(Protocol):
    """A process that has been started, as `subprocess.Popen` gives it."""

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def send_signal(self, sig: int) -> None: ...


Place = dict[str, str]  # environment variables that keep a run to its part of the machine
Start = Callable[[Job, Place], Process]


def places(at_once: int = 1) -> list[Place]:
    """Where runs can be made at one time: `at_once` on each GPU or, without any, on the CPU's cores."""
    devices = gpus()
    if devices:
        return [{"CUDA_VISIBLE_DEVICES": device} for _ in range(at_once) for device in devices]
    return [{"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // at_once))}] * at_once


def gpus() -> list[str]:
    """Names of the GPUs as CUDA_VISIBLE_DEVICES has them; empty: there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = visible.split(",") if visible else [str(i) for i in range(count)]
    return [name.strip() for name in names[:count]]


def start(job: Job, place: Place) -> Process:
    """Begin a run, or go on with it, in its place; what it says goes to a file beside its folder."""
    recipe = job.folder.with_name(f"{job.folder.name}.yaml")
    recipe.write_text(dump(job.recipe), encoding="utf-8")
    command = [sys.executable, "-m", "cloze", "pretrain", str(recipe), "--out", str(job.folder), "--resume"]
    with log_of(job).open("w", encoding="utf-8") as log:
        # A session of its own: Ctrl-C is for the parent, which asks each run once to stop.
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | place,
            start_new_session=True,
        )


def log_of(job: Job) -> Path:
    """Where a run in a process of its own says what it says."""
    return job.folder.with_name(f"{job.folder.name}.log")


@dataclass
class _Running:
    job: Job
    place: Place
    process: Process
    listener: Listener
    read: int = -1  # bytes of its metrics.jsonl; -1: it has none yet

    def tell(self) -> None:
        """Hand what the run has recorded since to its listener."""
        path = self.job.folder / "metrics.jsonl"
        if not path.is_file():
            return
        if self.read < 0:
            self.read = 0
            self.listener.begin(self.job.steps)
        with path.open("rb") as file:
            file.seek(self.read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # the last line may be half written
        self.read += len(whole)
        for line in whole.splitlines():
            self.listener.record(json.loads(line))


def run_on(
    places: Sequence[Place],
    jobs: Sequence[Job],
    listen: Callable[[Job], Listener],
    done: Callable[[Job, str | None], None],
    start: Start = start,
    look_every: float = LOOK_EVERY,
) -> None:
    """Make all runs, one at a time in each place.

    Args:
        listen: who is told of a run. done: called when one ends, with its error in a line, or None.

    Errors: `Interrupted` after Ctrl-C or SIGTERM, when all runs have saved their state.
    """
    waiting, free, running = deque(jobs), list(places), list[_Running]()
    with stop_requests() as asked:
        try:
            while (waiting and not asked) or running:
                while waiting and free and not asked:
                    job, place = waiting.popleft(), free.pop(0)
                    running.append(_Running(job, place, start(job, place), listen(job)))
                time.sleep(look_every)
                if asked:
                    _stop(running)
                for one in list(running):
                    one.tell()
                    code = one.process.poll()
                    if code is not None:
                        running.remove(one)
                        free.append(one.place)
                        if not asked:
                            done(one.job, None if code == 0 else error_of(one.job, code))
        except BaseException:
            _stop(running)
            raise
    if asked:
        raise Interrupted(0, asked[0])


def _stop(running: Sequence[_Running]) -> None:
    """Ask every run once to save its state and end, and wait for it."""
    for one in running:
        one.process.send_signal(signal.SIGTERM)
    for one in running:
        one.process.wait()


def error_of(job: Job, code: int) -> str:
    """The line in which a run said what was wrong."""
    try:
        lines = log_of(job).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"ended with exit code {code}; see {log_of(job)}"
