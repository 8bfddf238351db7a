"""Minutes of training to the held-out loss that the stock path reaches in twenty, with the ablation.

    python benchmarks/time_to_loss.py --data 'BOOKS/train-*.jsonl.gz' --heldout BOOKS/valid.jsonl.gz --out DIR

Stock: BERT 4 layers x 256, Trainer, AdamW, its linear schedule over --minutes (a short trial gives the
number of steps), for each of --learning-rates; the best of them is the target. Ours: `cloze pretrain mlm`
with the overrides below and each of --budgets as its whole horizon, for a schedule depends on it; the answer
is the shortest run that reaches the target. The same text, tokenizer and cores, one run at a time; all models
are measured on the same held-out rows with fixed uniform masks of 15%. Seconds are those of training, on
both sides without evaluations, start and preparation of the text; ours have the measurement of the
gradient's variance in them. Each run leaves a JSON file as it ends and is not run again; --table only prints.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import first, make_tokenizer, pretrain, script, texts, whole_speed, write_json

# Each arm adds to the one before; a later value of a field replaces an earlier one. The first is stock's
# setting in our loop: logits at the predicted tokens only, packed rows for blocks (both are full).
LIKE_STOCK = "{kind: adamw, learning_rate: LR, weight_decay: 0.0, beta2: 0.999}"
CHAIN: dict[str, dict[str, str]] = {
    "sparse": {
        "model.family": "bert",
        "masking": "{kind: uniform, rate: 0.15}",
        "training.optimizer": LIKE_STOCK,
        "training.schedule": "{kind: linear, warmup: 0.0}",
        "training.precision": "fp32",
    },
    "rate": {"masking": "{kind: uniform, rate: 0.3}"},
    "muon": {"training.optimizer": "{kind: muon, learning_rate: 0.002, beta2: 0.98}"},
    "schedule": {"training.schedule": "{kind: wsd, warmup: 0.05, decay: 0.3}"},
    "modernbert": {"model.family": "modernbert"},
    "smaller_steps": {"training.phases": "[{share: 1.0, length: 128, rows: 16}]"},
    "learning_rate": {"training.optimizer": "{kind: muon, learning_rate: 0.004, beta2: 0.98}"},
    "bf16": {"training.precision": "bf16"},
}


def overrides(arm: str, learning_rate: float) -> dict[str, str]:
    """The fields of an arm, with those of all before it."""
    found: dict[str, str] = {}
    for name, fields in CHAIN.items():
        found |= {field: value.replace("LR", str(learning_rate)) for field, value in fields.items()}
        if name == arm:
            break
    return found


def shared(chosen: argparse.Namespace) -> list[str]:
    """What all of our runs have, and the measurement of every model."""
    return [
        f"tokenizer={{kind: load, path: {chosen.tokenizer}}}",
        f"data.heldout={{path: {chosen.heldout}}}",
        f"model={{kind: new, layers: {chosen.layers}, width: {chosen.width}}}",
        f"evaluation.tokens={chosen.heldout_tokens}",
    ]


def held_out_loss(model: Path, chosen: argparse.Namespace) -> tuple[float, int]:
    """Loss of a model folder on the fixed masks, and how many tokens it is the mean of."""
    from cloze.assembly import open_text
    from cloze.evaluation.heldout import HeldOutSet
    from cloze.methods.build import Choices, build_method, vocabulary_of
    from cloze.models.build import load_masked_lm
    from cloze.models.encoder import isolate
    from cloze.run import resolve

    recipe, _ = resolve("mlm", chosen.data, overrides=shared(chosen))
    corpus = open_text(recipe, [], None)
    encoder = isolate(load_masked_lm(str(model)))
    evaluation = recipe.evaluation
    loader = corpus.held_out_loader(corpus.layout(evaluation.length, encoder.longest(), False))
    held_out = HeldOutSet(loader, evaluation.rate, evaluation.tokens)
    result = held_out.evaluate(build_method(Choices(), encoder, vocabulary_of(corpus.tokenizer)))
    return result.loss, result.losses.numel()


def run_stock(learning_rate: float, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """One stock run."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["--data", chosen.data, "--tokenizer", chosen.tokenizer, "--out", folder]
        command += ["--minutes", chosen.minutes, "--learning-rate", learning_rate, "--seed", seed]
        for field in ("layers", "width", "dropout"):
            command += [f"--{field}", getattr(chosen, field)]
        found = script("stock.py", *command)
        loss, count = held_out_loss(Path(folder), chosen)
    return {"learning_rate": learning_rate, **outcome(found["points"], loss, count)}


def run_ours(arm: str, budget: str, seed: int, rate: float, chosen: argparse.Namespace) -> dict[str, Any]:
    """One run of ours; `rate` is the learning rate of the arm that is like stock."""
    fields = overrides(arm, rate)
    sets = [*shared(chosen), *(f"{k}={v}" for k, v in fields.items()), f"seed={seed}", *chosen.set]
    with tempfile.TemporaryDirectory() as folder:
        found = pretrain("mlm", chosen.data, budget, sets, Path(folder) / "run")
        loss, count = held_out_loss(Path(folder) / "run" / "model", chosen)
    result = outcome(found["points"], loss, count)
    return {"budget": budget, "overrides": fields, "set": chosen.set, **result}


def outcome(points: list[Any], loss: float, count: int) -> dict[str, Any]:
    """What is kept of a run; `step_seconds`: quartiles over its steps (ours: over the lines of its log)."""
    steps = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(points)]
    return {
        "heldout_loss": loss,
        "masked_tokens": count,
        "seconds": points[-1][1],
        "steps": points[-1][0],
        "tokens": points[-1][2],
        "tokens_per_second": whole_speed(points) if len(points) > 1 else None,
        "step_seconds": statistics.quantiles(steps, n=4) if len(steps) > 1 else steps,
    }


def table(folder: Path) -> dict[str, Any]:
    """Print each run, and what reaches the target; the numbers."""
    runs = [json.loads(f.read_text("utf-8")) for f in sorted(folder.glob("run-*.json"))]
    stock = [r for r in runs if r["arm"] == "stock"]
    print(f"{'arm':<16}{'horizon':>9}{'seed':>5}{'seconds':>9}{'steps':>8}{'tokens':>12}{'loss':>9}")
    order = ["stock", *CHAIN]
    for r in sorted(runs, key=lambda r: (order.index(r["arm"]), r["seconds"])):
        how = f"{r['learning_rate']:g}" if r["arm"] == "stock" else r["budget"]
        print(
            f"{r['arm']:<16}{how:>9}{r['seed']:>5}{r['seconds']:>9.0f}{r['steps']:>8,}"
            f"{r['tokens']:>12,}{r['heldout_loss']:>9.4f}"
        )
    result: dict[str, Any] = {"arms": {}}
    for seed in sorted({r["seed"] for r in stock}):
        best = min((r for r in stock if r["seed"] == seed), key=lambda r: r["heldout_loss"])
        print(f"seed {seed}: stock reaches {best['heldout_loss']:.4f} in {best['seconds']:.0f} s")
        found = {"target": best["heldout_loss"], "stock_seconds": best["seconds"]}
        result[f"seed_{seed}"] = found
        for arm in CHAIN:
            mine = [r for r in runs if (r["arm"], r["seed"]) == (arm, seed)]
            if not mine:
                continue
            reach = [r["seconds"] for r in mine if r["heldout_loss"] <= best["heldout_loss"]]
            if not reach:
                print(f"  {arm:<16}not reached")
                continue
            ratio, least = best["seconds"] / min(reach), min(reach) == min(r["seconds"] for r in mine)
            found = {"seconds": min(reach), "ratio": ratio, "shortest_budget": least}
            result["arms"].setdefault(arm, {})[f"seed_{seed}"] = found
            more = " (the shortest budget: or less)" if least else ""
            print(f"  {arm:<16}{min(reach):,.0f} s, {ratio:.1f} x less{more}")
    return result


def keep(
    name: str, arm: str, seed: int, work: Callable[[], dict[str, Any]], chosen: argparse.Namespace
) -> None:
    """Do a run and write its file, unless it is there."""
    file = chosen.out / f"run-{name}-{seed}.json"
    if file.exists():
        return
    settings = {k: getattr(chosen, k) for k in ("minutes", "vocabulary", "layers", "width", "dropout")}
    content = {"arm": arm, "seed": seed, **work(), "settings": settings}
    write_json(file, content)
    print(f"{file.name}: {content['heldout_loss']:.4f}", flush=True)


def tokenizer_for(data: str, vocabulary: int) -> Path:
    """The folder of the tokenizer that both sides use, beside the tokenised text."""
    from cloze.data.corpus import cache_folder
    from cloze.data.sources import Source, fingerprint

    name = f"benchmark-{fingerprint(Source.parse(data))[:16]}-{vocabulary}"
    return make_tokenizer(first(texts(data), 50_000_000), vocabulary, cache_folder() / "tokenizers" / name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="text, as for cloze pretrain --data")
    parser.add_argument("--heldout", help="held-out text, the same for all")
    parser.add_argument("--minutes", type=float, default=20, help="of the stock path")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[5e-4], help="of the stock path")
    parser.add_argument("--budgets", nargs="+", default=["2.5m", "5m"], help="of our runs, each a horizon")
    parser.add_argument("--arms", nargs="*", choices=list(CHAIN), default=list(CHAIN))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--dropout", type=float, default=0.0, help="of the stock model; the library's is 0.1")
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heldout-tokens", type=int, default=200_000)
    parser.add_argument("--set", action="append", default=[], help="for our arms, as for cloze pretrain")
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    chosen = parser.parse_args()
    if not chosen.table and not (chosen.data and chosen.heldout):
        parser.error("--data and --heldout are needed, or --table")
    chosen.out.mkdir(parents=True, exist_ok=True)

    if not chosen.table:
        chosen.tokenizer = tokenizer_for(chosen.data, chosen.vocabulary)
        for seed in chosen.seeds:
            for rate in chosen.learning_rates:
                name = f"stock-{chosen.minutes:g}m-{rate:g}"
                keep(name, "stock", seed, partial(run_stock, rate, seed, chosen), chosen)
            rate = best_rate(chosen.out, seed)
            for budget in chosen.budgets:
                for arm in chosen.arms:
                    keep(
                        f"{arm}-{budget}",
                        arm,
                        seed,
                        partial(run_ours, arm, budget, seed, rate, chosen),
                        chosen,
                    )
    write_json(chosen.out / "summary.json", table(chosen.out))


def best_rate(folder: Path, seed: int) -> float:
    """The learning rate of the best stock run of a seed."""
    runs = [json.loads(f.read_text("utf-8")) for f in folder.glob(f"run-stock-*-{seed}.json")]
    return min(runs, key=lambda r: r["heldout_loss"])["learning_rate"]


if __name__ == "__main__":
    main()
