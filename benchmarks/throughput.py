"""Training speed of the whole `cloze pretrain` loop against the stock path, and against the machine.

    python benchmarks/throughput.py --json benchmarks/results/throughput.json

fp32, 4 layers x 256, vocabulary 30,522, 32 full rows of 128 tokens, the same text and tokenizer on both
sides, AdamW unless an arm says Muon, every arm a process of its own, in turn. Speed is tokens over seconds
from step 10 to the last step, with logging; runs this short are not measured for the gradient's variance (at
most 2% of a longer one). Stock runs in the environment that its users have; one arm gives it all that cloze
sets for a process: how threads wait, large pages, and products by oneDNN on AMD CPUs.
Keys: `ratio_15`, `ratio_30` are ModernBERT to stock BERT at these rates, `same_architecture_15` BERT to BERT.
`limit_share_15` is ModernBERT's share at 15% of what PyTorch's matrix products, as they are by default, allow
at their best: its speed times operations per token, over the rate of the fastest product (limits.py: large
squares, or one of the model's); `limit_shares_15` has it also over the rate of all the model's own products,
and (`quick`) over the products that cloze lets PyTorch use (training/precision.py), which can be twice as
fast. Limits count products only.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    SETTINGS,
    alternate,
    first,
    make_tokenizer,
    paired,
    pretrain,
    script,
    spread,
    texts,
    whole_speed,
    words,
    write_json,
)
from limits import family_shape, operations

# (family or None for stock, predicted share, optimiser)
ARMS: dict[str, tuple[str | None, float, str]] = {
    "stock BERT, 15%": (None, 0.15, "adamw"),
    "stock BERT, 15%, our settings": (None, 0.15, "adamw"),
    "ModernBERT, 15%": ("modernbert", 0.15, "adamw"),
    "BERT, 15%": ("bert", 0.15, "adamw"),
    "stock BERT, 30%": (None, 0.30, "adamw"),
    "ModernBERT, 30%": ("modernbert", 0.30, "adamw"),
    "BERT, 30%": ("bert", 0.30, "adamw"),
    "ModernBERT, 15%, Muon": ("modernbert", 0.15, "muon"),
    "ModernBERT, 30%, Muon": ("modernbert", 0.30, "muon"),
}
RATIOS = {  # key: (ours, stock)
    "ratio_15": ("ModernBERT, 15%", "stock BERT, 15%"),
    "ratio_30": ("ModernBERT, 30%", "stock BERT, 30%"),
    "same_architecture_15": ("BERT, 15%", "stock BERT, 15%"),
    "same_architecture_30": ("BERT, 30%", "stock BERT, 30%"),
    "ratio_15_muon": ("ModernBERT, 15%, Muon", "stock BERT, 15%"),
    "ratio_15_our_settings": ("ModernBERT, 15%", "stock BERT, 15%, our settings"),
    "same_architecture_15_our_settings": ("BERT, 15%", "stock BERT, 15%, our settings"),
    "ratio_30_muon": ("ModernBERT, 30%, Muon", "stock BERT, 30%"),
}


def arm(name: str, tokenizer: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """One run of an arm."""
    family, rate, optimizer = ARMS[name]
    if family is None:
        command = ["--data", chosen.data, "--tokenizer", tokenizer, "--rate", rate, "--steps", chosen.steps]
        for field in ("length", "rows", "layers", "width", "dropout"):
            command += [f"--{field}", getattr(chosen, field)]
        ours = name.endswith("our settings")
        command += ["--quick-products"] if ours else []
        return script("stock.py", *command, extra=SETTINGS if ours else None)
    sets = [
        f"tokenizer={{kind: load, path: {tokenizer}}}",
        f"model={{kind: new, family: {family}, layers: {chosen.layers}, width: {chosen.width}}}",
        f"masking={{kind: uniform, rate: {rate}}}",
        f"training.phases=[{{share: 1.0, length: {chosen.length}, rows: {chosen.rows}}}]",
        f"training.optimizer={{kind: {optimizer}, learning_rate: 0.001}}",
        "training.precision=fp32",
    ]
    return pretrain("mlm", chosen.data, f"{chosen.steps}steps", [*sets, *chosen.set])


def needed(name: str, chosen: argparse.Namespace) -> float:
    """Operations per token of an arm; stock makes logits for every token."""
    family, rate, _ = ARMS[name]
    shape = family_shape(family or "bert", chosen.width)
    share = rate if family else 1.0
    return operations(chosen.layers, chosen.width, vocabulary=chosen.vocabulary, share=share,
                      length=chosen.length, **shape)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cloze:books", help="text, as for cloze pretrain --data")
    parser.add_argument("--steps", type=int, default=110, help="of each run; the first 10 are warm-up")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.0, help="of the stock model; the library's is 0.1")
    parser.add_argument("--set", action="append", default=[], help="for our arms, as for cloze pretrain")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(
            first(texts(chosen.data), 20_000_000), chosen.vocabulary, Path(folder) / "tokenizer"
        )
        arms = {name: partial(arm, name, tokenizer, chosen) for name in chosen.arms}
        size = [str(w) for f in ("layers", "width", "length", "rows", "vocabulary")
                for w in (f"--{f}", getattr(chosen, f))]  # fmt: skip
        before = script("limits.py", *size)
        found = alternate(arms, chosen.repeats, lambda r: f"{whole_speed(r['points']):>9,.0f} tokens/s")
        after = script("limits.py", *size)
    peaks = {
        f"{kind}_{which}": 1e9 * max(before[kind][which], after[kind][which])
        for kind in ("default", "quick")
        for which in ("at_best", "at_shapes")
    }
    copy = max(before["copy_gb_per_second"], after["copy_gb_per_second"])
    runs = {name: [whole_speed(r["points"]) for r in results] for name, results in found.items()}
    result: dict[str, Any] = {"ratios": {}}
    for key, (ours, theirs) in RATIOS.items():
        if ours in runs and theirs in runs:
            result["ratios"][key] = paired(runs[ours], runs[theirs])
            result[key] = result["ratios"][key]["median"]
    result["arms"] = {}
    print(f"\n{'':<30}{'tokens/s':>24}{'MFLOP':>7}{'of limits':>18}")
    for name, speeds in runs.items():
        each, cost = spread(speeds), needed(name, chosen)
        share = {kind: each["median"] * cost / peak for kind, peak in peaks.items()}
        memory = max(r["peak_gib"] for r in found[name])
        result["arms"][name] = {
            "tokens_per_second": each,
            "operations_per_token": cost,
            "limit_shares": share,
            "peak_gib": memory,
        }
        percent = " ".join(f"{value:.0%}" for value in share.values())
        print(f"{name:<30}{words(each):>24}{cost / 1e6:>7.1f}{percent:>18}")
    if "ModernBERT, 15%" in runs:
        shares = result["arms"]["ModernBERT, 15%"]["limit_shares"]
        result |= {"limit_share_15": shares["default_at_best"], "limit_shares_15": shares}
    kinds = ", ".join(f"{kind.replace('_', ' ')} {peak / 1e9:.0f}" for kind, peak in peaks.items())
    print(f"limits in GFLOP/s: {kinds}; copy {copy:.0f} GB/s")
    for key, ratio in result["ratios"].items():
        print(f"{key:<36}{words(ratio, '.2f')}")
    settings = {k: v for k, v in vars(chosen).items() if k not in ("json", "data", "arms")}
    limits = {"before": before, "after": after}
    result |= {"limits": limits, "settings": settings | {"data": Path(chosen.data).name}}
    write_json(chosen.json, result)


if __name__ == "__main__":
    main()
