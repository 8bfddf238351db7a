"""Useful tokens per second on real text of varied lengths: ours packed, stock padded, stock grouped.

    python benchmarks/natural_text.py --data ABSTRACTS.jsonl --json benchmarks/results/natural_text.json

Useful is what is neither padding nor a special token. `stock, padded`: a text a row, cut off at --length,
padded to the longest of its batch; `stock, grouped`: texts joined and chopped, so that unrelated ones see
each other, also with all that cloze sets for a process; `ours`: `cloze pretrain`, packed, kept apart. Model,
tokenizer, AdamW and the 15% are the same (BERT 4 layers x 256, and ModernBERT). Without --data, the
paragraphs of the embedded books.
A padded batch holds fewer tokens than a full one, so its steps are shorter, and more are needed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
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
    write_texts,
)

STOCK = {"stock, padded": "lines", "stock, grouped": "blocks", "stock, grouped, our settings": "blocks"}
OURS = {"ours, BERT": "bert", "ours, ModernBERT": "modernbert"}


def sets(family: str, data: Path, tokenizer: Path, chosen: argparse.Namespace) -> list[str]:
    """Overrides of the recipe `mlm` for one of our arms."""
    return [
        f"data.store={data.parent / 'store'}",
        f"tokenizer={{kind: load, path: {tokenizer}}}",
        f"model={{kind: new, family: {family}, layers: {chosen.layers}, width: {chosen.width}}}",
        "masking={kind: uniform, rate: 0.15}",
        f"training.phases=[{{share: 1.0, length: {chosen.length}, rows: {chosen.rows}}}]",
        "training.optimizer={kind: adamw, learning_rate: 0.001}",
        "training.precision=fp32",
    ]


def ours(family: str, data: Path, tokenizer: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """A run of one of our arms; its useful tokens are the share of text in all packed rows."""
    from cloze.assembly import open_text
    from cloze.run import resolve

    settings = sets(family, data, tokenizer, chosen)
    run = pretrain("mlm", str(data), f"{chosen.steps}steps", settings)
    recipe, _ = resolve("mlm", str(data), overrides=settings)
    corpus = open_text(recipe, [], None)
    rows = corpus.rows(corpus.layout(chosen.length, recipe.model.longest, False))[0]  # type: ignore[union-attr]
    text = rows.tokens / rows.used
    points = [(step, seconds, tokens * text) for step, seconds, tokens in run["points"]]
    slots = chosen.rows * chosen.length * run["points"][-1][0]
    return {"useful_points": points, "useful_share": points[-1][2] / slots, "peak_gib": run["peak_gib"]}


def stock(name: str, data: Path, tokenizer: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """A run of a stock arm."""
    command = ["--data", data, "--tokenizer", tokenizer, "--grouping", STOCK[name], "--steps", chosen.steps]
    command += ["--quick-products"] if name.endswith("our settings") else []
    for field in ("length", "rows", "layers", "width"):
        command += [f"--{field}", getattr(chosen, field)]
    return script("stock.py", *command, extra=SETTINGS if name.endswith("our settings") else None)


def lengths(documents: Sequence[str], tokenizer: Path, longest: int) -> dict[str, float]:
    """Tokens of a text: quartiles, and the share of all that cutting off at `longest` loses."""
    from cloze.data.tokenizers import load_tokenizer

    encoded = load_tokenizer(tokenizer)(list(documents), add_special_tokens=False)["input_ids"]
    sizes = [len(ids) for ids in encoded]
    low, middle, high = statistics.quantiles(sizes, n=4)
    lost = sum(max(0, n - (longest - 2)) for n in sizes) / max(1, sum(sizes))
    return {"quartile_1": low, "median": middle, "quartile_3": high, "lost_by_truncation": lost}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="text, as for cloze pretrain --data")
    parser.add_argument("--text-field", help="column of the text, where it cannot be guessed")
    parser.add_argument("--split-text", default="paragraphs", help="of .txt files: paragraphs, lines, file")
    parser.add_argument("--megabytes", type=float, default=20, help="millions of characters that are used")
    parser.add_argument("--length", type=int, default=128, help="128 or 512, tokens of a row at most")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=110, help="of each run; the first 10 are warm-up")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    from cloze.data.sections import split_paragraphs

    found = texts(chosen.data or "cloze:books", chosen.text_field, chosen.split_text)
    if chosen.data is None:
        found = (part for book in found for part in split_paragraphs(book) if part.strip())
    documents = [text for text in first(found, round(chosen.megabytes * 1e6)) if text.strip()]
    with tempfile.TemporaryDirectory() as folder:
        data = write_texts(Path(folder) / "texts.jsonl", documents)
        tokenizer = make_tokenizer(documents, chosen.vocabulary, Path(folder) / "tokenizer")
        sizes = lengths(documents, tokenizer, chosen.length)
        print(
            f"{len(documents):,} texts, tokens {sizes['quartile_1']:.0f}, {sizes['median']:.0f}, "
            f"{sizes['quartile_3']:.0f} (quartiles), {sizes['lost_by_truncation']:.1%} lost by truncation"
        )
        arms = {name: partial(stock, name, data, tokenizer, chosen) for name in STOCK}
        arms |= {name: partial(ours, family, data, tokenizer, chosen) for name, family in OURS.items()}
        runs = alternate(arms, chosen.repeats, lambda r: f"{whole_speed(r['useful_points']):>9,.0f} tokens/s")
    speeds = {name: [whole_speed(r["useful_points"]) for r in results] for name, results in runs.items()}
    result: dict[str, Any] = {"arms": {}, "ratios": {}, "lengths": sizes | {"texts": len(documents)}}
    print(f"\n{'':<20}{'useful tokens/s':>26}{'useful slots':>14}")
    for name, values in speeds.items():
        share = statistics.median(r["useful_share"] for r in runs[name])
        result["arms"][name] = {"useful_tokens_per_second": spread(values), "useful_share_of_slots": share}
        print(f"{name:<20}{words(spread(values)):>26}{share:>14.1%}")
    for mine in OURS:
        for theirs in STOCK:
            ratio = result["ratios"][f"{mine} / {theirs}"] = paired(speeds[mine], speeds[theirs])
            print(f"{mine + ' / ' + theirs:<50}{words(ratio, '.2f')}")
    settings = {k: v for k, v in vars(chosen).items() if k not in ("json", "data")}
    name = Path(chosen.data).name if chosen.data else "paragraphs of cloze:books"
    write_json(chosen.json, result | {"settings": settings | {"data": name}})


if __name__ == "__main__":
    main()
