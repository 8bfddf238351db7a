"""How much the whole training loop costs beside a bare forward-backward-step of the same model and shapes.

    python benchmarks/loop.py --data CORPUS --json benchmarks/results/loop.json

Runs `cloze pretrain` (own process, logging and all) and a bare loop over one fixed batch in turn, A B A B,
and prints the median ratio of their tokens per second, and the peak memory of the whole process.
Evaluations and checkpoints are not part of either. Both are in float32, with what the command sets for its
process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from common import SETTINGS, pretrain, write_json


def bare_loop(recipe: str, data: str, steps: int, sets: list[str]) -> float:
    """Tokens per second of forward, backward and optimiser step on one batch (median step)."""
    code = f"""
import json, time, statistics, torch
from cloze.training.precision import quick_products
from cloze.run import resolve
from cloze.data.corpus import open_corpus
from cloze.assembly import method_of
from cloze.methods.build import vocabulary_of
from cloze.models.build import build_model
from cloze.models.encoder import Encoder
from cloze.training.optimisers import build_optimizers
recipe, _ = resolve({recipe!r}, {data!r}, overrides={sets!r})
corpus = open_corpus(recipe.data, recipe.tokenizer)
encoder = Encoder(build_model(recipe.model, corpus.tokenizer, 0))
method = method_of(recipe, encoder, vocabulary_of(corpus.tokenizer))
phase = recipe.training.phases[0]
loader = corpus.loader(corpus.layout(phase.length, encoder.longest(), False), 0)
work = method.prepare(loader.batch(0, phase.rows), 0.0)
mass = method.weights(work)["mlm"]
optimizers = build_optimizers(method, recipe.training.optimizer)
times = []
with quick_products():
    for _ in range({steps}):
        start = time.perf_counter()
        (method(work).sums["mlm"] / mass).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        times.append(time.perf_counter() - start)
print(int((work.batch.segments >= 0).sum()) / statistics.median(times[5:]))
"""
    environment = os.environ | SETTINGS
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    return float(result.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="text, as for cloze pretrain --data")
    parser.add_argument("--recipe", default="mlm")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--store", default="", help="folder for the tokenised text; default: cloze's cache")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sets = ["training.precision=fp32", *([f"data.store={arguments.store}"] if arguments.store else [])]
    pairs, memory = [], []
    for repeat in range(arguments.repeats):
        run = pretrain(arguments.recipe, arguments.data, f"{arguments.steps}steps", sets)
        ours = statistics.median(run["speeds"][1:] or run["speeds"])
        bare = bare_loop(arguments.recipe, arguments.data, arguments.steps, sets)
        pairs.append((ours, bare))
        memory.append(run["peak_gib"])
        print(
            f"{repeat + 1}: loop {ours:,.0f} tokens/s, bare {bare:,.0f}, "
            f"ratio {ours / bare:.3f}, {memory[-1]:.2f} GiB"
        )
    ratios = sorted(a / b for a, b in pairs)
    result = {
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
        "loop_tokens_per_second": statistics.median(a for a, _ in pairs),
        "bare_tokens_per_second": statistics.median(b for _, b in pairs),
        "peak_rss_gib": max(memory),
        "recipe": arguments.recipe,
        "repeats": arguments.repeats,
    }
    print(json.dumps(result, indent=1))
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
