"""Tagging by a decoder with its causal mask removed in groups of layers, in 16 ways (2401.14556).

    python benchmarks/layerwise.py --json benchmarks/results/layerwise.json

Pretrains a small causal model on the embedded books, then fine-tunes it on two made-up tasks of random words:
all tags of a sentence are decided by one word, which is its last (`right`: 0000 cannot know it, and can only
guess between two tags) or its first (`left`: nothing later helps). One learning rate, no search.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from common import pretrain, write_json

WORDS = ("the", "of", "and", "to", "in", "that", "was", "he", "it", "his", "is", "with", "as", "for", "had")
DECIDING = ("yes", "no")
SIZE = 12


def sentence(draw: random.Random, side: int) -> dict[str, list[str]]:
    """Random words whose tag is the deciding word's: the last one (side 1) or the first (side -1)."""
    kind = draw.choice(DECIDING)
    words = [draw.choice(WORDS) for _ in range(SIZE)]
    words, tags = ([*words, kind], [*([kind] * SIZE), "none"])
    return {"tokens": words[::side], "tags": tags[::side]}


def write_task(folder: Path, side: int, train: int, test: int) -> Path:
    """A task of the suite `tag`."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    for name, size in (("train", train), ("test", test)):
        lines = [json.dumps(sentence(draw, side)) + "\n" for _ in range(size)]
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    return folder


def scores(model: Path, data: Path, groups: str, chosen: argparse.Namespace) -> list[float]:
    """Accuracy on the test sentences, by seed."""
    from cloze.evaluation.finetuning.protocol import Protocol
    from cloze.evaluation.finetuning.tasks import find_tasks
    from cloze.evaluation.finetuning.train import finetune
    from cloze.evaluation.subject import Subject

    (task,) = find_tasks("tag", str(data))
    protocol = Protocol(learning_rates=(chosen.learning_rate,), epochs=chosen.epochs, length=64)
    return finetune(Subject(model, groups), task, protocol, chosen.seeds)["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--groups", nargs="+", default=[f"{number:04b}" for number in range(16)])
    parser.add_argument("--budget", default="300ktok", help="of the causal pretraining")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--train", type=int, default=2000, help="sentences")
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sets = [
            f"model={{kind: new, layers: {chosen.layers}, width: {chosen.width}, heads: 2, longest: 128}}",
            "tokenizer.vocabulary=4096",
            "evaluation.variance=false",
        ]
        pretrain("causal", "cloze:books", chosen.budget, sets, folder / "run")
        for name, side in (("right", 1), ("left", -1)):
            task = write_task(folder / name / "task", side, chosen.train, chosen.test)
            result[name] = {}
            for groups in chosen.groups:
                found = result[name][groups] = scores(folder / "run" / "model", task, groups, chosen)
                print(f"{name:<8}{groups:<8}" + "".join(f"{x:>8.3f}" for x in found), flush=True)
    kept = {k: v for k, v in vars(chosen).items() if k not in ("json", "groups")}
    write_json(chosen.json, {"accuracy": result, "settings": kept})


if __name__ == "__main__":
    main()
