"""How many tokens one core makes into training batches: reading, packing, special tokens, no network.

    python benchmarks/loader.py --data CORPUS --json benchmarks/results/loader.json

Counts CPU time of this process, not the clock, so a busy machine changes little. The store lies in memory, as
a small one does after its first pass; a larger one is read at the disk's rate.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from common import write_json

ROUNDS, BATCHES = 5, 40


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    import torch

    from cloze.assembly import open_text
    from cloze.run import resolve

    torch.set_num_threads(1)
    recipe, objects = resolve("mlm", args.data)
    corpus = open_text(recipe, objects, None)
    loader = corpus.loader(corpus.layout(args.length, args.length, False), 0)
    rates, cursor = [], 0
    for _ in range(ROUNDS):
        begin, tokens = time.process_time(), 0
        for _ in range(BATCHES):
            tokens += int((loader.batch(cursor, args.rows).segments >= 0).sum())
            cursor += args.rows
        rates.append(tokens / (time.process_time() - begin))
    middle = statistics.median(rates)
    print(f"{middle:,.0f} tokens a core-second, {min(rates):,.0f} to {max(rates):,.0f}")
    content = {"tokens_per_core_second": middle, "values": rates, "rows": args.rows, "length": args.length}
    write_json(args.json, content)


if __name__ == "__main__":
    main()
