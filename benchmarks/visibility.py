"""From one visibility to another: adapting models, and causal steps before masked ones.

    python benchmarks/visibility.py --data BOOKS/train-04-of-05.jsonl.gz --heldout BOOKS/valid.jsonl.gz \\
        --domain BIOMED_LINES --out benchmarks/results/visibility

`scratch-*`: a causal and a masked model from new weights. `to-*`: each goes on as the other, with 1/8, 1/4
and 1/2 of the steps and a schedule of its own; the last lines are the share of the steps after which it is
as good as the model from new weights, between two budgets on a straight line over the logarithm of the steps.
`clm-*`, `mlm-*`: a quarter of the steps causal against none, at three rates, and what is done at the switch.
`detour-*`: the masked model goes on with the domain's text, with causal steps first or without.
ModernBERT 4 x 128, vocabulary 4,096, 8 rows of 128, Muon at 0.004. A JSON file per run; finished runs are
not made again (`--most N` stops after N new ones, `--table` only prints).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from common import write_json

import cloze
from cloze.comparison.statistics import mean_interval

SHARES = (0.125, 0.25, 0.5)  # of the steps from new weights
COMMON = (
    "training.phases=[{share: 1.0, length: 128, rows: 8}]",
    "training.optimizer.learning_rate=0.004",
    "training.precision=bf16",
    "evaluation={times: 8, tokens: 40000, variance: false}",
)
NEW = ("tokenizer.vocabulary=4096", "model={kind: new, layers: 4, width: 128}")
SWITCH = {"kept": "", "rewarmed": ", warmup: 0.1", "fresh": ", fresh_optimizer: true"}
SWITCH["fresh-rewarmed"] = SWITCH["fresh"] + SWITCH["rewarmed"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One kind of run: its recipe, its share of the budget, its settings, and the run it starts from."""

    recipe: str
    share: float = 1.0
    sets: tuple[str, ...] = ()
    start: str | None = None
    domain: bool = False


def stages(begin: str = "") -> str:
    """The stages of `clm-then-mlm`, with what is done at the switch."""
    return f"stages=[{{share: 0.25, use: causal}}, {{share: 0.75, use: main{begin}}}]"


def arms() -> dict[str, Arm]:
    """All arms by name, in an order in which a run comes after the one that it starts from."""
    found = {"scratch-masked": Arm("mlm"), "scratch-causal": Arm("causal")}
    for share in SHARES:
        found[f"to-masked-{share:g}"] = Arm("mlm", share, start="scratch-causal")
        found[f"to-causal-{share:g}"] = Arm("causal", share, start="scratch-masked")
    for name, begin in SWITCH.items():
        found[f"clm-0.3-{name}"] = Arm("clm-then-mlm", sets=(stages(begin),))
    found["detour-masked"] = Arm("mlm", 0.5, start="scratch-masked", domain=True)
    found["detour-causal"] = Arm("clm-then-mlm", 0.5, start="scratch-masked", domain=True)
    for rate in (0.15, 0.5):
        found[f"mlm-{rate:g}"] = Arm("mlm", sets=(f"masking.rate={rate}",))
        found[f"clm-{rate:g}-kept"] = Arm("clm-then-mlm", sets=(f"masking.rate={rate}",))
    return found


def train(name: str, seed: int, arguments: argparse.Namespace) -> None:
    """One run; its curve goes to a JSON file, its folder stays beside it where others start from it."""
    arm = arms()[name]
    folder = arguments.runs / f"{name}-{seed}"
    model = None if arm.start is None else str(arguments.runs / f"{arm.start}-{seed}" / "model")
    data, heldout = (arguments.domain, None) if arm.domain else (arguments.data, arguments.heldout)
    sets = [*COMMON, f"seed={seed}", *arm.sets, *(NEW if model is None else ())]
    text = [f"data.heldout={{path: {heldout}}}"] if heldout else ["data.split_text=lines"]
    tokens = f"{arm.share * arguments.million:g}Mtok"
    run = cloze.pretrain(arm.recipe, data, folder, tokens, model=model, overrides=[*sets, *text], resume=True)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    curve = [{k: r[k] for k in ("step", "tokens", "loss")} for r in lines if r["kind"] == "heldout"]
    content = {"arm": name, "seed": seed, "budget": tokens, "settings": sets, "steps": run.summary["steps"],
               "heldout_of": run.summary["heldout_of"], "loss": run.summary["heldout_loss"],
               "accuracy": run.summary["heldout_accuracy"], "seconds": run.summary.get("seconds"),
               "curve": curve}  # fmt: skip
    write_json(arguments.out / f"{name}-{seed}.json", content, precision="bf16")


def fraction(losses: list[tuple[float, float]], target: float) -> float:
    """Share of the steps at which (share, loss) pairs, ascending, come down to the target; inf: never."""
    before: tuple[float, float] | None = None
    for share, loss in losses:
        if loss <= target:
            if before is None or before[1] == loss:
                return share
            part = (before[1] - target) / (before[1] - loss)
            return math.exp(math.log(before[0]) + part * (math.log(share) - math.log(before[0])))
        before = share, loss
    return math.inf


def table(folder: Path) -> list[str]:
    """What is there, as Markdown."""
    runs = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    loss: dict[str, dict[int, float]] = {}
    for run in runs:
        loss.setdefault(run["arm"], {})[run["seed"]] = run["loss"]

    def line(name: str, against: str) -> str:
        own, other = loss.get(name, {}), loss.get(against, {})
        both = sorted(own.keys() & other.keys())
        if not both:
            return f"| {name} | | | |"
        mean, low, high = mean_interval([own[s] - other[s] for s in both]).as_dict().values()
        losses = [own[s] for s in both]
        spread = f" ± {statistics.stdev(losses):.3f}" if len(both) > 1 else ""
        start = f"| {name} | {len(both)} | {statistics.fmean(losses):.3f}{spread} "
        brackets = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
        return f"{start}| {mean:+.3f}{brackets} |"

    lines = ["| run | seeds | held-out loss | difference, 95% |", "|---|---|---|---|"]
    against = {n: f"scratch-{n.split('-')[1]}" for n in arms() if n.startswith(("scratch", "to"))}
    against |= {n: "scratch-masked" for n in arms() if n.startswith("clm-0.3")}
    against |= {f"clm-{rate}-kept": f"mlm-{rate}" for rate in ("0.15", "0.5")}
    against |= {"detour-causal": "detour-masked"}
    lines += [line(name, other) for name, other in against.items()]
    lines.append("")
    for kind in ("masked", "causal"):
        found = []
        for seed, target in sorted(loss.get(f"scratch-{kind}", {}).items()):
            points = [(s, loss.get(f"to-{kind}-{s:g}", {}).get(seed)) for s in SHARES]
            known = [(s, value) for s, value in points if value is not None]
            if known:
                reached = fraction(known, target)
                first = reached == known[0][0]
                found.append(f"{'at most ' if first else ''}{reached:.2f}")
        lines.append(f"to {kind}: as good as from new weights after {', '.join(found)} of the steps")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="text")
    parser.add_argument("--heldout", help="held-out text")
    parser.add_argument("--domain", help="text of another kind, a document a line")
    parser.add_argument("--million", type=float, default=1.0, help="million tokens of a run from new weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(arms()), default=list(arms()))
    parser.add_argument("--most", type=int, default=10**6, help="new runs in this call")
    parser.add_argument("--runs", type=Path, default=Path("runs/visibility"), help="where runs are kept")
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    if not arguments.table:
        if not (arguments.data and arguments.heldout and arguments.domain):
            parser.error("--data, --heldout and --domain are needed, or --table")
        torch.set_num_threads(1)
        wanted = [(name, seed) for name in arguments.arms for seed in arguments.seeds]
        left = [w for w in wanted if not (arguments.out / f"{w[0]}-{w[1]}.json").exists()]
        for name, seed in left[: arguments.most]:
            train(name, seed, arguments)
            print(f"{name} {seed} done", flush=True)
    print("\n".join(table(arguments.out)))


if __name__ == "__main__":
    main()
