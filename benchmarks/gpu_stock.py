"""Speed and memory of the stock path on one GPU: `Trainer` with SDPA and bf16, each arm at its best batch.

    python benchmarks/gpu_stock.py --data TEXT --tokenizer FOLDER --json FILE

ModernBERT and BERT (12 layers), with texts of natural lengths: `lines`, a text a row, cut off and padded to
the longest of its batch; `blocks`, joined and chopped. Batches grow until memory ends; the fastest is run
again for longer. Useful tokens are neither padding nor special. Batches are made by worker processes, which
is more than the example script has. Each result is written as it is made. gpu.py runs this file.
"""

from __future__ import annotations

import argparse
import os
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import WARM, attempt, grow, spread, texts, words, write_json

BERT = 12  # layers of a BERT base


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="text, as for cloze pretrain --data")
    parser.add_argument("--tokenizer", required=True, help="its folder")
    parser.add_argument("--families", nargs="+", default=["modernbert", "bert"])
    parser.add_argument("--layers", type=int, default=22, help="of ModernBERT")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 32, 64, 128, 256], help="tried in turn")
    parser.add_argument("--rate", type=float, default=0.15)
    parser.add_argument("--workers", type=int, default=8, help="processes that make batches")
    parser.add_argument("--steps", type=int, default=20, help="of a trial, the first 10 are warm-up")
    parser.add_argument("--longer", type=int, default=50, help="steps at the best batch")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try the script")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def trial(rows: int, steps: int, family: str, data: Any, tokenizer: Any, chosen: argparse.Namespace) -> Any:
    """Tokens per second in windows of ten steps after the warm-up."""
    import torch
    from stock import train

    on_gpu = chosen.device == "cuda"
    if on_gpu:
        torch.cuda.init()  # the first trial has nothing there yet
        torch.cuda.reset_peak_memory_stats()
    layers = min(BERT, chosen.layers) if family == "bert" else chosen.layers
    more = {
        "rows": rows,
        "family": family,
        "layers": layers,
        "dropout": 0.0,
        "learning_rate": 1e-4,
        "seed": 0,
    }
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        trainer, run = train(data, tokenizer, argparse.Namespace(**vars(chosen) | more), steps)
    ends = [*range(WARM, steps, 10), steps]
    seconds = [run["seconds"][b - 1] - run["seconds"][a - 1] for a, b in pairwise(ends)]

    def speed(kind: str) -> dict[str, Any]:
        return spread([sum(run[kind][a:b]) / s for (a, b), s in zip(pairwise(ends), seconds, strict=True)])

    return {
        "tokens_per_second": speed("tokens"),
        "useful_tokens_per_second": speed("useful"),
        "slots_per_second": speed("slots"),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "attention": trainer.model.config._attn_implementation,
    }


def main() -> None:
    chosen = options()
    from stock import dataset

    from cloze.data.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(chosen.tokenizer)
    documents = list(texts(chosen.data))
    settings = {k: v for k, v in vars(chosen).items() if k not in ("json", "data", "tokenizer")}
    result: dict[str, Any] = {"settings": settings, "arms": {}}
    for grouping in ("lines", "blocks"):
        data = dataset(documents * (4 if grouping == "blocks" else 1), tokenizer, grouping, chosen.length)
        for family in chosen.families:
            name = f"{family}, {grouping}"
            arm = result["arms"][name] = {"trials": {}}

            def note(
                rows: int, steps: int, family: str = family, data: Any = data, name: str = name
            ) -> dict[str, Any]:
                found = attempt(partial(trial, rows, steps, family, data, tokenizer, chosen))
                speed = found.get("useful_tokens_per_second")
                said = f"{words(speed)} useful tokens/s" if speed else found["error"]
                print(f"stock {name}, {rows} rows, {steps} steps: {said}", flush=True)
                result["arms"][name]["trials"][f"{rows} rows, {steps} steps"] = found
                write_json(chosen.json, result, chosen.device)
                return found

            best, found = grow(chosen.rows, partial(note, steps=chosen.steps))
            arm |= {"best_rows": best, "best": found}  # should the longer run not come to its end
            if best is not None and "error" not in (longer := note(best, chosen.longer)):
                arm["best"] = longer
            write_json(chosen.json, result, chosen.device)


if __name__ == "__main__":
    main()
