"""Masking policies against uniform masking: same seeds, same order of text, same held-out masks.

    python benchmarks/masking.py --out benchmarks/results/masking --seeds 3

Without `--data` the text is scarce: the three shortest of the embedded books, 90,500 words.

Trains every arm with every seed by the demo's model, and writes a JSON file per run as it finishes (a
finished one is not run again). Prints the paired differences of the held-out loss to the first arm.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
from pathlib import Path

from datasets import Dataset

import cloze
from cloze.data.embedded import books

ARMS = {
    "uniform": ["masking={kind: uniform, rate: 0.142857}"],
    "fully_explored": ["masking={kind: fully_explored, rate: 0.142857, units: tokens}"],
}


def shortest_books(number: int) -> Dataset:
    """The shortest books that ship with the package."""
    with gzip.open(books(), "rt", encoding="utf-8") as lines:
        found = sorted((json.loads(line) for line in lines), key=lambda book: book["words"])
    return Dataset.from_list(found[:number])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="text, as for cloze pretrain --data")
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--budget", default="1.8Mtok")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], help="for all arms, as for cloze pretrain")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = arguments.data or shortest_books(3)
    losses: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(arguments.seeds):
        for arm, overrides in ARMS.items():
            file = arguments.out / f"{arm}-{seed}.json"
            if not file.exists():
                with tempfile.TemporaryDirectory() as folder:
                    settings = [*overrides, f"seed={seed}", *arguments.set]
                    out = Path(folder) / "run"
                    run = cloze.pretrain("demo", data, out, arguments.budget, overrides=settings)
                summary = run.summary | {"arm": arm, "settings": settings}
                file.write_text(json.dumps(summary, indent=1) + "\n")
            summary = json.loads(file.read_text())
            losses[arm].append(summary["heldout_loss"])
            print(
                f"seed {seed}  {arm:<16} {losses[arm][-1]:.4f}  {summary['data']['passes']} passes",
                flush=True,
            )
    first, *others = ARMS
    for arm in others:
        differences = [a - b for a, b in zip(losses[arm], losses[first], strict=True)]
        spread = (
            f" ± {statistics.stdev(differences):.4f} (standard deviation)" if len(differences) > 1 else ""
        )
        print(f"{arm} - {first}: {statistics.mean(differences):+.4f}{spread}, {len(differences)} seeds")


if __name__ == "__main__":
    main()
