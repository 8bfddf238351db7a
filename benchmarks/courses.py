"""The courses of mcl, each left out in turn, at equal operations; and the mean of their weights (soups).

    python benchmarks/courses.py --data TEXT --start "RUNS/scratch-masked-{seed}/model" --json FILE

Every arm goes on from the same masked language model of its seed, with the same number of operations:
electra, mcl, and mcl without one of its courses. All judge the same held-out text with the same fakes,
those that the generator of electra writes: AUC over all tokens. The soup is the mean of the weights of mcl
and of mcl without each course, its ingredients. Differences are paired by seed, with 95% intervals.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import write_json
from detection import SMALL, measured, opened, paired
from torch import Tensor, nn

import cloze
from cloze.comparison.arms import make_arms
from cloze.comparison.budget import Allowance
from cloze.comparison.run import plan_in
from cloze.methods.electra import Electra
from cloze.run import resolve

ALONE = "stages=[{use: main}]"  # they start from masked language models
GENERATOR = "{width: 1.0, depth: 0.25, temperature: 1.0}"
ARMS = {
    "electra": ("electra", f"corruption={{kind: generator, {GENERATOR[1:]}"),
    "mcl": ("mcl", f"corruption.generator={GENERATOR}"),
    "no-swapped": ("mcl", f"corruption.generator={GENERATOR}", "corruption.swapped=0"),
    "no-inserted": ("mcl", f"corruption.generator={GENERATOR}", "corruption.inserted=0"),
    "no-corrections": ("mcl", f"corruption.generator={GENERATOR}", "corruption.corrections=[]"),
}
INGREDIENTS = tuple(name for name in ARMS if name != "electra")


def seed_of(data: str, start: str, sets: list[str], budget: str, seed: int) -> dict[str, dict[str, float]]:
    """Scores of each arm and of the soup."""
    found: dict[str, dict[str, float]] = {}
    weights: dict[str, list[Tensor]] = {}
    generator: nn.Module | None = None
    with tempfile.TemporaryDirectory() as name:
        recipes = []
        for arm, (recipe, *own) in ARMS.items():
            chosen, _ = resolve(recipe, data, None, start.format(seed=seed), [*SMALL, ALONE, *sets, *own])
            recipes.append(chosen.model_copy(update={"name": arm}))
        folder = Path(name)
        plan = plan_in(folder, make_arms(recipes), Allowance.parse(budget), [seed], folder / "times.json")
        for job in plan.jobs:
            cloze.pretrain(job.recipe, out=job.folder)
            parts, judge = opened(job.folder)
            assert isinstance(judge, Electra)
            lines = map(json.loads, (job.folder / "metrics.jsonl").read_text("utf-8").splitlines())
            last = [line for line in lines if line["kind"] == "step"][-1]
            generator = generator or judge.generator
            judge.generator = generator
            found[job.arm] = measured(parts, judge) | {"tokens": last["tokens"]}
            found[job.arm] |= {
                f"last step, {k}": v for k, v in last.items() if k.endswith(("auc", "positive"))
            }
            print(seed, job.arm, found[job.arm], flush=True)
            for key, tensor in judge.state_dict().items():
                if job.arm in INGREDIENTS and key.startswith(("encoder.", "detector.")):
                    weights.setdefault(key, []).append(tensor.double())
    own_types = judge.state_dict()
    mean = {key: torch.stack(values).mean(0).to(own_types[key].dtype) for key, values in weights.items()}
    judge.load_state_dict(mean, strict=False)
    judge.generator = generator
    found["soup"] = measured(parts, judge)
    print(seed, "soup", found["soup"], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--start", required=True, help="model folders, with {seed}")
    parser.add_argument("--budget", default="4e12flop")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="a setting of all runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        runs.append(seed_of(options.data, options.start, options.set, options.budget, seed))
        area = {name: [run[name]["auc"] for run in runs] for name in runs[0]}
        mean = [statistics.fmean(run[name]["auc"] for name in INGREDIENTS) for run in runs]
        differences = {f"{n} - mcl": paired(area[n], area["mcl"]) for n in area if n != "mcl"}
        differences["soup - mean of its ingredients"] = paired(area["soup"], mean)
        settings = {"budget": options.budget, "set": options.set}
        write_json(options.json, {"settings": settings, "runs": runs, "auc": differences})
    for name, found in differences.items():
        print(f"AUC, {name}: {found['mean']:+.4f} [{found['low']}, {found['high']}]")


if __name__ == "__main__":
    main()
