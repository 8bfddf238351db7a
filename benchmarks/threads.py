"""How OpenMP threads should wait: training speed when idle, and beside a process that computes.

    python benchmarks/threads.py

Runs the demo recipe for some steps under several settings of libgomp, in turn, and prints tokens per second.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from common import pretrain

WAYS = (
    "GOMP_SPINCOUNT=300000",  # libgomp's own default; the command's is 1000
    "OMP_WAIT_POLICY=PASSIVE",
    "GOMP_SPINCOUNT=10000",
    "GOMP_SPINCOUNT=1000",
    "GOMP_SPINCOUNT=100",
)


def speed(way: str, steps: int) -> float:
    """Median tokens per second of the log lines of one run."""
    run = pretrain("demo", None, f"{steps}steps", extra=dict([way.split("=")]))
    return statistics.median(run["speeds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    for busy in (False, True):
        rival = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        try:
            for _ in range(arguments.repeats):
                for way in WAYS:
                    found = speed(way, arguments.steps)
                    print(f"{'busy' if busy else 'idle'}  {way:<24} {found:>8,.0f} tokens/s", flush=True)
        finally:
            if rival is not None:
                rival.kill()


if __name__ == "__main__":
    main()
