"""Masking policies against uniform masking: same seeds, same order of text, same held-out masks.

    python benchmarks/masking.py --data 'BOOKS/train-*.jsonl.gz' --heldout BOOKS/valid.jsonl.gz \\
        --regime scarce --seeds 0 1 --out benchmarks/results/masking

Regimes: `fresh`, text that is seen less than once; `scarce`, a dozen short books of 200,000 words together,
which 4 M tokens see 12 times. Trains every arm with every seed (ModernBERT, 4 layers of the given width,
vocabulary 8,192, rows of 128), two at a time on one thread each, and writes a JSON file per run as it
finishes; a finished one is not run again. Prints the paired differences of the held-out loss to uniform
masking (`--table` only prints). On a GPU: --jobs 1, and --layers 22 --width 768 for ModernBERT base.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from common import write_json
from datasets import Dataset
from scipy.stats import t as student

import cloze

ARMS = {
    "uniform": "{kind: uniform}",
    "fully_explored": "{kind: fully_explored}",
    "same_step": "{kind: fully_explored, same_step: 2}",
    "balanced": "{kind: balanced}",
    "mapnet": "{kind: mapnet}",
    "mapnet_from_start": "{kind: mapnet, power: 1.0}",
    "mapnet_residual": "{kind: mapnet, score: residual}",
    "mapnet_product": "{kind: mapnet, score: product}",
    "mapnet_loss": "{kind: mapnet, score: loss, power: 1.0}",
    "mapnet_part": "{kind: mapnet, predict: 0.5}",
    "stratified": "{kind: stratified}",
    "auto": "{kind: auto, highest: RATE}",
    "auto_rate": "{kind: auto}",
}
MARGIN = 0.01  # nats: non-inferior to uniform when the interval lies below


def scarce_text(files: str, words: int) -> Dataset:
    """The first short books (at most 50,000 words each) of the files, in order, up to so many words."""
    found, count = [], 0
    for path in sorted(Path().glob(files) if not Path(files).is_absolute() else Path("/").glob(files[1:])):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                book = json.loads(line)
                if count < words and book["words"] <= 50_000:
                    found.append({"title": book["title"], "text": book["text"]})
                    count += book["words"]
        if count >= words:
            break
    return Dataset.from_list(found)


def settings_of(arm: str, seed: int, arguments: argparse.Namespace) -> list[str]:
    """The overrides of a run, without where its text lies."""
    return [
        f"masking={ARMS[arm].replace('RATE', str(arguments.rate))}",
        f"masking.rate={arguments.rate}",
        f"model={{kind: new, family: {arguments.family}}}",
        f"model.layers={arguments.layers}",
        f"model.width={arguments.width}",
        f"evaluation={{times: 8, tokens: {arguments.heldout_tokens}}}",
        f"seed={seed}",
        *arguments.set,
    ]


def done_before(file: Path, arm: str, seed: int, arguments: argparse.Namespace) -> bool:
    """Whether a run is there already; leaves if it was made otherwise."""
    if not file.exists():
        return False
    found = json.loads(file.read_text("utf-8"))
    if found["budget"] != arguments.budget or found["settings"] != settings_of(arm, seed, arguments):
        raise SystemExit(f"{file} was made with other settings: use another --out folder")
    return True


def train(arm: str, seed: int, file: Path, arguments: argparse.Namespace) -> None:
    """One run; its summary and held-out curve go to `file`."""
    torch.set_num_threads(arguments.threads)
    scarce = arguments.regime == "scarce"
    data: Any = scarce_text(arguments.data, 200_000) if scarce else arguments.data
    settings = settings_of(arm, seed, arguments)
    overrides = [f"data.heldout={{path: {arguments.heldout}}}", *settings]
    with tempfile.TemporaryDirectory() as folder:
        run = cloze.pretrain("demo", data, Path(folder) / "run", arguments.budget, overrides=overrides)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    curve = [{k: r[k] for k in ("step", "tokens", "loss")} for r in records if r["kind"] == "heldout"]
    steps = [r for r in records if r["kind"] == "step"][::10]
    policy = [
        {k: r[k] for k in ("step", *r) if k.startswith(("step", "proposal_", "effective"))} for r in steps
    ]
    notes = [r["message"] for r in records if r["kind"] == "note"]
    summary = {k: v for k, v in run.summary.items() if k not in ("recipe", "folder")}
    if "data" in summary:
        summary["data"] = {k: v for k, v in summary["data"].items() if k != "sources"}
    content = {"arm": arm, "seed": seed, "regime": arguments.regime, "rate": arguments.rate,
               "width": arguments.width, "layers": arguments.layers, "family": arguments.family,
               "budget": arguments.budget, "settings": settings, "curve": curve, "policy": policy,
               "notes": notes}  # fmt: skip
    write_json(file, content | {"summary": summary}, precision=summary["environment"]["precision"])


def interval(differences: list[float], level: float) -> float:
    """Half width of the t interval of the mean."""
    n = len(differences)
    if n < 2:
        return math.inf
    return float(student.ppf((1 + level) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)


def model_of(width: int, layers: int, family: str) -> str:
    """A name for the model: its width, and what is not as usual."""
    return f"{width}{f'x{layers}' if layers != 4 else ''}{f'-{family}' if family != 'modernbert' else ''}"


def cell_of(run: dict[str, Any]) -> tuple[str, float, str]:
    """Regime, rate and model of a result; the first ones do not name layers and family."""
    model = model_of(run["width"], run.get("layers", 4), run.get("family", "modernbert"))
    return run["regime"], run["rate"], model


def check_pairs(runs: list[dict[str, Any]]) -> None:
    """Leave if runs of a seed begin with different losses: their text, tokenizer or weights differ."""
    first: dict[int, tuple[str, float]] = {}
    for run in runs:
        loss = run["curve"][0]["loss"]
        arm, other = first.setdefault(run["seed"], (run["arm"], loss))
        if abs(loss - other) > 1e-3:
            raise SystemExit(f"{run['arm']} and {arm}, seed {run['seed']}: not the same start, no pair")


def table(folder: Path) -> list[str]:
    """Paired differences of every cell (regime, rate, width), as rows of a Markdown table."""
    runs = [json.loads(f.read_text()) for f in sorted(folder.glob("*.json"))]
    lines = [
        "| regime | rate | width | arm | seeds | held-out loss | difference to uniform | 95% | corrected |"
    ]
    lines.append("|---" * 9 + "|")
    for cell in sorted({cell_of(r) for r in runs}):
        mine = [r for r in runs if cell_of(r) == cell]
        loss = {(r["arm"], r["seed"]): r["curve"][-1]["loss"] for r in mine}
        arms = [arm for arm in ARMS if any(a == arm for a, _ in loss)]
        check_pairs(mine)
        for arm in arms:
            seeds = sorted(s for a, s in loss if a == arm and ("uniform", s) in loss)
            own = [loss[arm, s] for s in seeds]
            start = f"| {cell[0]} | {cell[1]:.3g} | {cell[2]} | {arm} | {len(seeds)} "
            mean = f"| {statistics.mean(own):.4f} " if own else "| - "
            if arm == "uniform" or not own:
                lines.append(start + mean + "| | | |")
                continue
            d = [a - loss["uniform", s] for a, s in zip(own, seeds, strict=True)]
            start = f"{start}{mean}| {statistics.mean(d):+.4f} "
            if len(d) < 2:
                lines.append(start + "| one seed | |")
                continue
            plain, corrected = interval(d, 0.95), interval(d, 1 - 0.05 / (len(arms) - 1))
            most = statistics.mean(d) + corrected
            verdict = "better" if most < 0 else "not inferior" if most < MARGIN else "open"
            lines.append(f"{start}| ± {plain:.3f} | ± {corrected:.3f}, {verdict} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="books: .jsonl.gz files with the keys title, text, words")
    parser.add_argument("--heldout", help="held-out text, the same for all")
    parser.add_argument("--regime", choices=["fresh", "scarce"], default="scarce")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--budget", default="4Mtok")
    parser.add_argument("--rate", type=float, default=1 / 7, help="1/7 or 1/3: a whole number of segments")
    parser.add_argument("--family", choices=["modernbert", "bert"], default="modernbert")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heldout-tokens", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=2, help="runs at one time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--set", action="append", default=[], help="for all arms, as for cloze pretrain")
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    if not arguments.table and not (arguments.data and arguments.heldout):
        parser.error("--data and --heldout are needed, or --table")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        model = model_of(arguments.width, arguments.layers, arguments.family)
        cell = f"{arguments.regime}-{round(100 * arguments.rate)}-{model}"
        wanted = [
            (arm, seed, arguments.out / f"{cell}-{arm}-{seed}.json")
            for seed in arguments.seeds
            for arm in arguments.arms
        ]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.jobs, context, max_tasks_per_child=1) as pool:
            left = {
                pool.submit(train, *w, arguments): w
                for w in wanted
                if not done_before(w[2], w[0], w[1], arguments)
            }
            for done in as_completed(left):
                done.result()
                arm, seed, file = left[done]
                print(
                    f"{cell} {arm} {seed}: {json.loads(file.read_text())['curve'][-1]['loss']:.4f}",
                    flush=True,
                )
    print("\n".join(table(arguments.out)))


if __name__ == "__main__":
    main()
