"""Texts longer than those of the training: held-out loss at 128, 256 and 512 tokens after training at 128.

    python benchmarks/extrapolation.py --data TEXT --heldout TEXT --out FOLDER

Trains each family with each seed by the recipe `mlm` with rows of 128 tokens, all with room for 512, and
measures the same held-out text in rows of each length. MosaicBERT knows distances (ALiBi), ModernBERT
rotations, BERT a vector for each position, of which those beyond 128 are never trained. What FOLDER has
already is not run again; result.json there has the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from common import pretrain, write_json

from cloze.comparison.statistics import mean_interval

FAMILIES = ("mosaicbert", "bert", "modernbert")


def settings(family: str, seed: int, chosen: argparse.Namespace) -> list[str]:
    """Overrides of a run."""
    longest = max(chosen.lengths)
    return [
        f"model={{kind: new, family: {family}, layers: {chosen.layers}, width: {chosen.width}, "
        f"longest: {longest}}}",
        f"tokenizer.vocabulary={chosen.vocabulary}",
        f"data.heldout={{path: {chosen.heldout}}}",
        f"training.phases=[{{share: 1.0, length: {min(chosen.lengths)}, rows: {chosen.rows}}}]",
        f"training.optimizer.learning_rate={chosen.learning_rate}",
        f"training.precision={chosen.precision}",
        f"data.split_text={chosen.split_text}",
        "evaluation.variance=false",
        f"seed={seed}",
    ]


def losses(model: Path, sets: list[str], chosen: argparse.Namespace) -> dict[int, float]:
    """Held-out loss of a model folder in float32, by the length of rows; masks of 15%."""
    from cloze.assembly import open_text
    from cloze.evaluation.heldout import HeldOutSet
    from cloze.methods.build import Choices, build_method, vocabulary_of
    from cloze.models.build import load_masked_lm
    from cloze.models.encoder import isolate
    from cloze.run import resolve

    recipe, _ = resolve("mlm", chosen.data, overrides=sets)
    corpus = open_text(recipe, [], None)
    encoder = isolate(load_masked_lm(str(model)))
    method = build_method(Choices(), encoder, vocabulary_of(corpus.tokenizer))
    found = {}
    for length in chosen.lengths:
        loader = corpus.held_out_loader(corpus.layout(length, encoder.longest(), False))
        found[length] = HeldOutSet(loader, 0.15, chosen.tokens).evaluate(method).loss
    return found


def run(family: str, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Train and measure, unless that was done."""
    kept = chosen.out / f"{family}-{seed}.json"
    if not kept.is_file():
        sets = settings(family, seed, chosen)
        folder = chosen.out / f"{family}-{seed}"
        found = pretrain("mlm", chosen.data, chosen.budget, sets, folder)
        at = losses(folder / "model", sets, chosen)
        content = {"family": family, "seed": seed, "loss": at, "tokens": found["points"][-1][2]}
        kept.write_text(json.dumps(content), "utf-8")
    content = json.loads(kept.read_text("utf-8"))
    return content | {"loss": {int(length): loss for length, loss in content["loss"].items()}}


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, half the width of its 95% interval, and the values."""
    found = mean_interval(values)
    half = None if found.high is None else found.high - statistics.mean(values)
    return {"mean": statistics.mean(values), "half": half, "values": values}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="text, as for cloze pretrain --data")
    parser.add_argument("--heldout", required=True, help="held-out text, of documents longer than 512 tokens")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs; goes on in it")
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="1Mtok")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--learning-rate", type=float, default=0.004)
    parser.add_argument("--split-text", default="paragraphs", help="of .txt files: paragraphs, lines, file")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--tokens", type=int, default=100_000, help="held-out tokens that are measured")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[dict[int, float]]] = {family: [] for family in chosen.families}
    for seed in range(chosen.seeds):
        for family in chosen.families:
            at = run(family, seed, chosen)["loss"]
            runs[family].append(at)
            print(f"seed {seed} {family:<12}" + "".join(f"{at[n]:>9.4f}" for n in chosen.lengths), flush=True)
    base, result = min(chosen.lengths), {}
    print(f"\n{'':<12}" + "".join(f"{n:>20}" for n in chosen.lengths))
    for family, seeds in runs.items():
        mine = result[family] = {
            "loss": {n: spread([at[n] for at in seeds]) for n in chosen.lengths},
            f"above_{base}": {n: spread([at[n] - at[base] for at in seeds]) for n in chosen.lengths},
        }
        print(f"{family:<12}" + "".join(f"{mine['loss'][n]['mean']:>20.4f}" for n in chosen.lengths))
        cells = (mine[f"above_{base}"][n] for n in chosen.lengths)
        print(f"{'':<12}" + "".join(f"{c['mean']:>+11.4f} ± {c['half'] or 0.0:.4f}" for c in cells))
    kept = {k: v for k, v in vars(chosen).items() if k not in ("json", "out", "data", "heldout")}
    names = {"data": Path(chosen.data).name, "heldout": Path(chosen.heldout).name}
    write_json(chosen.json, {"families": result, "settings": kept | names}, precision=chosen.precision)


if __name__ == "__main__":
    main()
