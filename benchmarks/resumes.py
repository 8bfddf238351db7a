"""A run that is stopped after every step: does a thousand resumes lose anything, or leave anything behind?

    python benchmarks/resumes.py --resumes 1000 --json benchmarks/results/resumes.json

A tiny run of so many steps and one more, all in this process. Each start ends by an exception in the middle
of the step after the one that was saved, so a resume goes on by one step and the next one undoes the rest;
every twentieth ends by SIGTERM instead, with all that belongs to an orderly stop. In the end the weights, the
training state and the losses in metrics.jsonl must be those of the same run without a stop, bit for bit, the
files the same, and this process no larger: memory, open files and threads are counted after the first tenth
and at the end. The last line is "N resumes: nothing lost, nothing left", the exit code 0 only then.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos import write_text
from common import write_json

MEGABYTES = 32  # of growth that are no leak: caches of an allocator
SETS = (
    "model={kind: new, family: bert, layers: 1, width: 32, heads: 2, longest: 64}",
    "tokenizer.vocabulary=320",
    "training.phases=[{share: 1.0, length: 32, rows: 4}]",
    "training.precision=fp32",
    "training.log_every=1",
    "training.checkpoint_every=1",
    "data.heldout.minimum=2000",
    "evaluation={times: 1, tokens: 256, length: 32, variance: false}",
)


class Crash(Exception):
    """What ends a start."""


@dataclass
class End:
    """A listener that ends its process's run at a step, by an exception or by a signal."""

    step: int
    orderly: bool

    def begin(self, steps: int) -> None:
        """Nothing."""

    def record(self, record: dict[str, Any]) -> None:
        """End it."""
        if (record["kind"], record["step"]) != ("step", self.step):
            return
        if self.orderly:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise Crash


def counts() -> dict[str, int]:
    """What this process holds: resident memory in MB, open files, threads."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory_mb": pages * os.sysconf("SC_PAGE_SIZE") // 2**20,
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def lines(folder: Path) -> list[tuple[str, int, float]]:
    """What metrics.jsonl says that no clock is in."""
    found = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return [(x["kind"], x["step"], x.get("loss", 0.0)) for x in found]


def names(folder: Path) -> set[str]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def compare(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs."""
    from safetensors.torch import load_file

    found = [f"file {name}" for name in sorted(names(one) ^ names(other))]
    if lines(one) != lines(other):
        found.append("metrics.jsonl")
    for name in ("training", "model"):
        a, b = (load_file(max((x / "checkpoints").iterdir()) / f"{name}.safetensors") for x in (one, other))
        if a.keys() != b.keys() or not all(bool((a[key] == b[key]).all()) for key in a):
            found.append(f"{name}.safetensors")
    return found


def resume(folder: Path, resumes: int, data: Path, progress: bool = True) -> dict[str, Any]:
    """Stop and go on so many times; what was counted, and what differs from a run without a stop."""
    from cloze import pretrain
    from cloze.session import Interrupted

    def run(name: str, *listeners: End) -> None:
        pretrain(
            "mlm",
            data,
            folder / name,
            f"{resumes + 1}steps",
            overrides=SETS,
            resume=True,
            listeners=listeners,
        )

    run("whole")
    cache = Path(os.environ["CLOZE_CACHE"])
    first, before, cached = max(1, resumes // 10), {}, names(cache)
    starts: list[float] = []
    for number in range(resumes):
        began = time.perf_counter()
        # A crash loses the step in which it is; a signal does not.
        orderly = number % 20 == 19
        try:
            run("stopped", End(number + (1 if orderly else 2), orderly))
        except (Crash, Interrupted):
            pass
        else:
            return {"failed": [f"start {number} went to the end"]}
        saved = {path.name for path in (folder / "stopped" / "checkpoints").iterdir()}
        if f"step-{number + 1:08d}" not in saved or len(saved) > 2:
            return {"failed": [f"start {number} left {sorted(saved)}"]}
        starts.append(time.perf_counter() - began)
        if number + 1 == first:
            before = counts()
        if progress and number % 50 == 49:
            print(f"{number + 1} resumes, {counts()}", flush=True)
    after = counts()
    run("stopped")
    failed = compare(folder / "whole", folder / "stopped")
    failed += [f"cache {name}" for name in sorted(names(cache) ^ cached)]
    if after["memory_mb"] > before["memory_mb"] + MEGABYTES:
        failed.append("memory")
    failed += [name for name in ("open_files", "threads") if after[name] > before[name]]
    return {
        "resumes": resumes,
        "counted_first_after": first,
        "before": before,
        "after": after,
        "failed": failed,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resumes", type=int, default=1000)
    parser.add_argument("--text", type=Path, help="a text file; default: generated")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CLOZE_CACHE"] = f"{folder}/cache"
        began = time.perf_counter()
        text = args.text or write_text(Path(folder) / "text.txt", random.Random(0))
        found = resume(Path(folder), args.resumes, text)
        seconds = time.perf_counter() - began
    write_json(args.json, found | {"seconds": round(seconds)})
    print(f"before {found.get('before')}, after {found.get('after')}; {seconds:.0f} s")
    if found["failed"]:
        print("failed: " + ", ".join(found["failed"]))
        sys.exit(1)
    print(f"{args.resumes:,} resumes: nothing lost, nothing left")


if __name__ == "__main__":
    main()
