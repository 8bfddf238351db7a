"""Replaced-token detection: cost of a step, all tokens or the hidden ones, hard or random replacements.

    python benchmarks/detection.py --data TEXT --json benchmarks/results/detection.json

1. Time of a step of rts and of mlm with the same model, in turn, medians of rounds and their ratio.
2. electra with its loss on all tokens and on the hidden ones alone, with paired seeds: AUC over all held-out
   tokens, on each arm's own fakes and on those of the first arm's generator. --start "RUNS/mlm-{seed}/model"
   goes on from trained models (with --set corruption.width=1 unless they are ELECTRA's); new ones need long.
3. rts and c-rts with paired seeds: AUC on their own replacements; and the c-rts model on random ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import cloze
from cloze.assembly import Parts, assemble, method_of, open_text
from cloze.comparison.statistics import mean_interval
from cloze.corruption.replace import Replace
from cloze.estimate import _random_batch, _stand_in
from cloze.methods.build import vocabulary_of
from cloze.methods.detection import Detection
from cloze.methods.electra import Electra
from cloze.methods.objectives import DetectionObjective
from cloze.models.build import build_model
from cloze.models.encoder import isolate
from cloze.recipes.load import load_recipe
from cloze.report.environment import environment
from cloze.training.loop import Trainer
from cloze.training.state import State, restore_tensors

NEW = ("model.layers=4", "model.width=128", "tokenizer.vocabulary=8192")
SMALL = (
    "training.precision=bf16",
    "training.phases=[{share: 1.0, length: 128, rows: 16}]",
    "evaluation.variance=false",
    "evaluation.times=1",
)
FURTHER: list[str] = []  # --set
START: list[str] = []  # --start
ROWS, LENGTH = 16, 128


def trainer(recipe: str, *sets: str) -> Trainer:
    """Of random tokens, with the model of `mini` size and a vocabulary of 16,384."""
    chosen = load_recipe(recipe, sets)
    tokenizer = _stand_in(16384)
    encoder = isolate(build_model(chosen.model, tokenizer, 0))
    method = method_of(chosen, encoder, vocabulary_of(tokenizer)).train()
    return Trainer(method, [], chosen.training, State(steps=10**6), 0, Accelerator(cpu=True))


def step_times(rounds: int) -> dict[str, Any]:
    """Seconds of a step of each arm, in turn; ratios within a round."""
    arms = {
        "rts, 15%": trainer("rts"),
        "mlm, 15%": trainer("mlm", "masking.rate=0.15"),
        "mlm, 30%": trainer("mlm"),
    }
    vocabulary = vocabulary_of(_stand_in(16384))
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 3):
        batch = _random_batch(number, ROWS, LENGTH, vocabulary, 512)
        for name, arm in arms.items():
            arm.state.step = 0
            start = time.perf_counter()
            arm.step([batch])
            if number >= 3:
                times[name].append(time.perf_counter() - start)
    found: dict[str, Any] = {"seconds": {name: statistics.median(x) for name, x in times.items()}}
    for name in ("mlm, 15%", "mlm, 30%"):
        ratios = [a / b for a, b in zip(times[name], times["rts, 15%"], strict=True)]
        found[f"{name} / rts"] = {
            "median": statistics.median(ratios),
            "quartiles": statistics.quantiles(ratios, n=4)[::2],
        }
    return found | {"rounds": rounds, "tokens": ROWS * LENGTH, "vocabulary": 16384}


def trained(recipe: str, data: str, budget: str, seed: int, *sets: str) -> tuple[Parts, Detection]:
    """A run's parts with its method as training left it."""
    model = START[0].format(seed=seed) if START else None
    overrides = [*(NEW if model is None else ()), *SMALL, *FURTHER, *sets, f"seed={seed}"]
    with tempfile.TemporaryDirectory() as folder:
        run = cloze.pretrain(recipe, data, Path(folder) / "run", budget, model=model, overrides=overrides)
        return opened(run.folder)


def opened(run: Path) -> tuple[Parts, Detection]:
    """A finished run's parts with its method."""
    tensors = load_file(max((run / "checkpoints").iterdir()) / "training.safetensors")
    chosen = load_recipe(str(run / "recipe.yaml"))
    parts = assemble(chosen, open_text(chosen, [], None), torch.device("cpu"))
    restore_tensors(tensors, parts.method, [])
    assert isinstance(parts.method, Detection)
    return parts, parts.method.eval()


def measured(parts: Parts, method: Detection) -> dict[str, float]:
    """Loss, AUC and share of replaced tokens over all held-out tokens."""
    with torch.autocast("cpu", torch.bfloat16):
        return parts.held_out.evaluate(method).scores()


def paired(a: list[float], b: list[float]) -> dict[str, Any]:
    """Mean of a − b over seeds with its 95% interval (Student's t)."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean, low, high = mean_interval(differences).as_dict().values()
    return {"mean": mean, "low": low, "high": high, "differences": differences}


def all_or_hidden(data: str, budget: str, seeds: int) -> dict[str, Any]:
    """Experiment 2."""
    found: dict[str, list[Any]] = {"all": [], "hidden": [], "hidden, fakes of all": []}
    for seed in range(seeds):
        alone = "stages=[{use: main}]"
        everywhere, first = trained("electra", data, budget, seed, alone)
        parts, second = trained("electra", data, budget, seed, alone, "objective.on=hidden")
        assert isinstance(first, Electra) and isinstance(second, Electra)
        second.objective = DetectionObjective()
        found["all"].append(measured(everywhere, first))
        found["hidden"].append(measured(parts, second))
        second.generator = first.generator
        found["hidden, fakes of all"].append(measured(parts, second))
        print({name: values[-1] for name, values in found.items()}, flush=True)
    area = {name: [value["auc"] for value in values] for name, values in found.items()}
    return {
        "runs": found,
        "auc, all − hidden": paired(area["all"], area["hidden"]),
        "auc on the same fakes, all − hidden": paired(area["all"], area["hidden, fakes of all"]),
    }


def hard_or_random(data: str, budget: str, seeds: int) -> dict[str, Any]:
    """Experiment 3."""
    found: dict[str, list[Any]] = {"rts": [], "c-rts": [], "c-rts, random tokens": [], "skew": []}
    for seed in range(seeds):
        parts, plain = trained("rts", data, budget, seed)
        found["rts"].append(measured(parts, plain))
        parts, hard = trained("c-rts", data, budget, seed)
        found["c-rts"].append(measured(parts, hard))
        found["skew"].append(hard.log()["cluster_skew"])
        del hard.corruption  # a module
        hard.corruption = Replace(mask=0.0, random=1.0)
        found["c-rts, random tokens"].append(measured(parts, hard))
        print({name: values[-1] for name, values in found.items()}, flush=True)
    result: dict[str, Any] = {"runs": found}
    for metric in ("auc", "loss"):
        value = {n: [x[metric] for x in values] for n, values in found.items() if n != "skew"}
        result[f"{metric}, c-rts − rts"] = paired(value["c-rts"], value["rts"])
        key = f"{metric} of the c-rts model, hard − random tokens"
        result[key] = paired(value["c-rts"], value["c-rts, random tokens"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="1Mtok")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--parts", default="step,all,hard")
    parser.add_argument("--set", action="append", default=[], help="a setting of the runs")
    parser.add_argument("--start", help="models that the runs of experiments 2 and 3 go on from")
    options = parser.parse_args()
    FURTHER.extend(options.set)
    START.extend([options.start] if options.start else [])
    content = json.loads(options.json.read_text("utf-8")) if options.json.exists() else {}
    content["environment"] = environment(torch.device("cpu"), "bf16")
    runs = (options.data, options.budget, options.seeds)
    settings = [*(() if START else NEW), *SMALL, *options.set]
    made = {"settings": settings, "start": options.start, "budget": options.budget, "seeds": options.seeds}
    for part in options.parts.split(","):
        if part == "step":
            content["step"] = step_times(options.rounds)
        elif part == "all":
            content["all_or_hidden"] = made | all_or_hidden(*runs)
        else:
            content["hard_or_random"] = made | hard_or_random(*runs)
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(content, indent=1)[-1500:], flush=True)


if __name__ == "__main__":
    main()
