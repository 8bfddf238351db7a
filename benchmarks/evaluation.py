"""Held-out loss of a million tokens: time and peak memory, ours against the stock Trainer.

    python benchmarks/evaluation.py --json benchmarks/results/evaluation.json

The same BERT (random weights, 4 layers x 256, vocabulary 30,522) and the same text, repeated until there is
enough of it, in rows of 128; each arm in a process of its own, in turn:
  ours             `HeldOutSet.evaluate`: loss and accuracy; logits at the masked tokens only
  stock, example   `Trainer.evaluate` as the well-known example has it: loss and accuracy, with a
                   `preprocess_logits_for_metrics` that takes the arg-max of each batch
  stock, loss      no metrics: the loss alone, nothing kept
  stock, metrics   `compute_metrics` alone, the plainest way to an accuracy: the logits of all tokens are kept
  loss only        the same with `prediction_loss_only=True`, which users must know to set; also with all
                   that cloze sets for a process
All take as many rows at a time as ours. `stock, metrics` is run at --sizes under a limit of address space,
and its memory per token is the slope.
Seconds are those of the evaluation; memory is the peak of the process and its growth during it.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    SETTINGS,
    alternate,
    first,
    make_tokenizer,
    run,
    spread,
    texts,
    words,
    write_json,
    write_texts,
)

WAYS = ("ours", "stock, example", "stock, loss", "loss only", "loss only, our settings")
LENGTH, FORWARD_TOKENS = 128, 8192


def ours(folder: Path, tokens: int) -> tuple[Callable[[], float], int]:
    """Our evaluation, ready to run, and its number of slots."""
    from cloze.assembly import open_text
    from cloze.evaluation.heldout import HeldOutSet
    from cloze.methods.build import Choices, build_method, vocabulary_of
    from cloze.models.build import load_masked_lm
    from cloze.models.encoder import isolate
    from cloze.run import resolve

    file = folder / "texts.jsonl"
    sets = (f"data.heldout={{path: {file}}}", f"data.store={folder / 'store'}")
    recipe, _ = resolve("mlm", str(file), model=str(folder / "model"), overrides=sets)
    corpus = open_text(recipe, [], None)
    encoder = isolate(load_masked_lm(str(folder / "model")))
    loader = corpus.held_out_loader(corpus.layout(LENGTH, encoder.longest(), False))
    held_out = HeldOutSet(loader, 0.15, tokens)
    method = build_method(Choices(), encoder, vocabulary_of(corpus.tokenizer))
    slots = min(tokens // LENGTH, sum(map(len, loader.sources))) * LENGTH
    return lambda: held_out.evaluate(method).loss, slots


def stock(folder: Path, tokens: int, way: str) -> tuple[Callable[[], float], int]:
    """The same of the stock path."""
    from stock import dataset
    from transformers import (
        AutoModelForMaskedLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    enough = first(texts(str(folder / "texts.jsonl")), 8 * tokens)
    rows = dataset(list(enough), tokenizer, "blocks", LENGTH)
    rows = rows.select(range(min(len(rows), tokens // LENGTH)))

    def accuracy(found: Any) -> dict[str, float]:
        guesses, labels = found
        guesses = guesses.argmax(-1) if guesses.ndim == 3 else guesses
        return {"accuracy": float((guesses == labels)[labels != -100].mean())}

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        report_to=[],
        use_cpu=True,
        per_device_eval_batch_size=FORWARD_TOKENS // LENGTH,
        prediction_loss_only=way.startswith("loss only"),
    )
    trainer = Trainer(
        AutoModelForMaskedLM.from_pretrained(folder / "model"),
        arguments,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        eval_dataset=rows,
        compute_metrics=None if way == "stock, loss" else accuracy,
        preprocess_logits_for_metrics=(lambda x, _: x.argmax(-1)) if way == "stock, example" else None,
    )
    return lambda: trainer.evaluate()["eval_loss"], len(rows) * LENGTH


def set_as_ours(way: str) -> bool:
    """Whether the process of an arm is set up as cloze does it."""
    return way == "ours" or way.endswith("our settings")


def _peak() -> float:
    """Greatest resident memory of this program in GiB (ru_maxrss would have its parent's in it)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def one(way: str, folder: Path, tokens: int, limit_gib: float, file: Path) -> None:
    """An arm in this process; its numbers go to a file."""
    if limit_gib:
        resource.setrlimit(resource.RLIMIT_AS, (int(limit_gib * 2**30),) * 2)
    from cloze.training.precision import quick_products

    evaluate, slots = ours(folder, tokens) if way == "ours" else stock(folder, tokens, way)
    before, begin = _peak(), time.perf_counter()
    with quick_products() if set_as_ours(way) else nullcontext():
        loss = evaluate()
    seconds, peak = time.perf_counter() - begin, _peak()
    found = {"seconds": seconds, "loss": loss, "tokens": slots, "peak_gib": peak, "grown_gib": peak - before}
    file.write_text(json.dumps(found), "utf-8")


def start(way: str, folder: Path, tokens: int, limit_gib: float) -> dict[str, Any]:
    """An arm in a fresh process; `died`: it did not end well, with its last error."""
    file = folder / "result.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--one", way, folder, tokens, limit_gib, file]
    done = run(command, SETTINGS if set_as_ours(way) else None, check=not limit_gib)
    if done.code:
        last = [line for line in done.errors.splitlines() if "Error" in line] or ["killed"]
        return {"died": True, "tokens": tokens, "peak_gib": done.peak_gib, "error": last[-1][:120]}
    return {"died": False, **json.loads(file.read_text("utf-8"))}


def describe(found: dict[str, Any]) -> str:
    """A result in a few words."""
    if found["died"]:
        return f"died at {found['tokens']:,} tokens: {found['error'][:30]}"
    return f"{found['seconds']:>8.1f} s {found['peak_gib']:>7.2f} GiB, loss {found['loss']:.3f}"


def slope(runs: list[dict[str, Any]]) -> tuple[float, float]:
    """(bytes per token, bytes at none) of the line through the peaks, by least squares."""
    points = [(r["tokens"], r["peak_gib"] * 2**30) for r in runs if not r["died"]]
    if len(points) < 2:
        return math.nan, math.nan
    x = sum(p[0] for p in points) / len(points)
    y = sum(p[1] for p in points) / len(points)
    rise = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return rise, y - rise * x


def repeated(data: str, tokens: int) -> Iterator[str]:
    """The documents again and again, up to 8 characters a token, more than a token has."""
    found = list(first(texts(data), 8 * tokens))
    for _ in range(-(-8 * tokens // sum(map(len, found)))):
        yield from found


def make_model(chosen: argparse.Namespace, folder: Path) -> None:
    """A stock BERT of random weights, with its tokenizer."""
    from stock import new_model

    from cloze.data.tokenizers import load_tokenizer

    make_tokenizer(first(texts(chosen.data), 20_000_000), chosen.vocabulary, folder)
    model = new_model(load_tokenizer(folder), chosen.layers, chosen.width, dropout=0.0, seed=0)
    model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cloze:books", help="text, as for cloze pretrain --data")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--sizes", type=int, nargs="*", default=[20_000, 50_000, 100_000, 200_000])
    parser.add_argument("--limit-gib", type=float, default=16.0, help="address space where logits are kept")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        way, place, tokens, limit, file = chosen.one
        return one(way, Path(place), int(tokens), float(limit), Path(file))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(folder / "texts.jsonl", repeated(chosen.data, chosen.tokens))
        make_model(chosen, folder / "model")
        begin = partial(start, folder=folder)
        arms = {way: partial(begin, way, tokens=chosen.tokens, limit_gib=0.0) for way in chosen.ways}
        found = alternate(arms, chosen.repeats, describe)
        kept = []
        for tokens in chosen.sizes:
            kept.append(begin("stock, metrics", tokens=tokens, limit_gib=chosen.limit_gib))
            print(f"   stock, metrics {tokens:>10,}   {describe(kept[-1])}", flush=True)
    rise, base = slope(kept)
    result: dict[str, Any] = {"arms": {}, "logits_kept": {"runs": kept, "limit_gib": chosen.limit_gib}}
    print(f"\n{'':<18}{'tokens':>10}{'seconds':>24}{'peak GiB':>10}{'grown':>8}")
    for way, runs in found.items():
        seconds = spread([r["seconds"] for r in runs])
        peak, grown = (max(r[k] for r in runs) for k in ("peak_gib", "grown_gib"))
        result["arms"][way] = {"seconds": seconds, "peak_gib": peak, "grown_gib": grown}
        result["arms"][way] |= {name: runs[0][name] for name in ("loss", "tokens")}
        print(f"{way:<18}{runs[0]['tokens']:>10,}{words(seconds, '.1f'):>24}{peak:>10.2f}{grown:>8.2f}")
    if math.isfinite(rise):
        whole = (base + rise * chosen.tokens) / 2**30
        dies = (chosen.limit_gib * 2**30 - base) / rise
        result["logits_kept"] |= {"bytes_per_token": rise, "gib_at_all_tokens": whole}
        print(f"logits kept: {rise / 1000:,.0f} kB a token, so {whole:,.0f} GiB for {chosen.tokens:,};")
        print(f"resident memory would pass {chosen.limit_gib:g} GiB at {dies:,.0f} tokens")
    settings = {k: v for k, v in vars(chosen).items() if k not in ("json", "data", "one")}
    write_json(chosen.json, result | {"settings": settings | {"data": Path(chosen.data).name}})


if __name__ == "__main__":
    main()
