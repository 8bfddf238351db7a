"""A store of ten million short documents: how long it takes to open, and whether memory stays flat.

    python benchmarks/large_store.py --documents 10_000_000 --json benchmarks/results/large_store.json

Makes the store from random ids with the store's own writer (900 MB on disk; its first opening writes an index
of 300 MB more), then in fresh processes, without the time of imports:
  first     the first opening: finds the held-out part, packs rows of 128, counts tokens; all of it is kept
  open      `store`: seconds of `Store.open`; `corpus`: of all that `cloze pretrain` does with the store
            before it draws the first batch; again and again in one process
  draw      batches of random rows, nothing else: memory at the start and at the end
  train     `cloze pretrain` of a tiny model: memory at a twentieth of the steps and at the end, and between
Memory is in MB. `anonymous` is what the process itself has; `mapped` is pages of files that the system takes
back when it needs them: they grow while rows are drawn until the whole store has been seen.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import script, spread, write_json
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cloze.data.corpus import Data, LoadTokenizer, open_corpus
from cloze.data.prepare import contents, finish, part_name
from cloze.data.store import Store
from cloze.data.writer import PARAGRAPH, SECTION, SENTENCE, UNIT, PartCounts, write_part

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PART = 100_000  # documents
MEAN = 12  # tokens of a document
ROWS = 32


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Words w5, w6, …"""
    names = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), size))]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, **{f"{name}_token": token for name, token in special.items()}
    )


def write(folder: Path, documents: int, vocabulary: int) -> None:
    """A store of documents of 1 to 2 · MEAN - 1 random tokens, each a section of its own."""
    draw = np.random.default_rng(0)
    tokenizer = make_tokenizer(vocabulary)
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    parts = []
    for number, first in enumerate(range(0, documents, PART)):
        count = min(PART, documents - first)
        lengths = draw.integers(1, 2 * MEAN, count)
        ends = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
        ids = draw.integers(len(SPECIAL), vocabulary, ends[-1]).astype(np.uint16)
        flags = np.full(ends[-1], UNIT, np.uint8)
        flags[ends[:-1]] |= SENTENCE | PARAGRAPH | SECTION
        each = np.arange(count + 1, dtype=np.int32)
        columns = {
            "tokens": pa.ListArray.from_arrays(pa.array(ends), pa.array(ids)),
            "flags": pa.ListArray.from_arrays(pa.array(ends), pa.array(flags)),
            "section_hashes": pa.ListArray.from_arrays(
                pa.array(each), pa.array(draw.integers(0, 2**64, count, np.uint64))
            ),
            "section_chars": pa.ListArray.from_arrays(
                pa.array(each), pa.array((lengths * 5).astype(np.uint32))
            ),
            "document": pa.array(np.arange(count)),
            "meta": pa.array(["{}"] * count),
        }
        counts = PartCounts(count, int(ends[-1]), int(lengths.sum()) * 5, f"{number:032x}")
        write_part(columns, counts, folder / part_name(number))
        parts.append(
            {"records": count, "tokens": counts.tokens, "chars": counts.chars, "digest": counts.digest}
            | {"bytes": (folder / part_name(number)).stat().st_size, "block": number, "turn": 0, "first": 0}
        )
    done = contents(parts, {number: [part["records"], 1] for number, part in enumerate(parts)})
    finish(folder, done, "benchmark", f"benchmark {documents}", len(tokenizer))


def memory() -> dict[str, float]:
    """Resident memory of this process, MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"all": "VmRSS", "anonymous": "RssAnon", "mapped": "RssFile", "peak": "VmHWM"}
    return {name: round(int(lines[field].split()[0]) / 1024, 1) for name, field in names.items()}


def opened(folder: Path) -> Any:
    """A loader of training rows, after all that a run does before its first batch."""
    corpus = open_corpus(Data(sources=(str(folder),)), LoadTokenizer(path=str(folder / "tokenizer")))
    corpus.digests(), corpus.shared()
    corpus.counts(corpus.stores[0].vocabulary)
    layout = corpus.layout(128, 512, alone=False)
    corpus.held_out_loader(layout)
    return corpus.loader(layout, 0)


def opening(what: str, folder: Path) -> float:
    """Seconds until it is open."""
    begin = time.perf_counter()
    Store.open(folder) if what == "store" else opened(folder)
    return time.perf_counter() - begin


def measure(arm: str, folder: Path, steps: int, rounds: int) -> dict[str, Any]:
    """One arm, in this process."""
    before = memory()
    begin = time.perf_counter()
    if arm == "open":
        return {name: [opening(name, folder) for _ in range(rounds)] for name in ("store", "corpus")}
    if arm == "train":
        return train(folder, steps)
    loader = opened(folder)
    found: dict[str, Any] = {"seconds": time.perf_counter() - begin, "before": before, "after": memory()}
    if arm == "draw":
        loader.batch(0, ROWS)
        found["start"] = memory()
        begin = time.perf_counter()
        for step in range(1, steps):
            loader.batch(step * ROWS, ROWS)
        found |= {"end": memory(), "batches_per_second": (steps - 1) / (time.perf_counter() - begin)}
        found["rows"], found["passes"] = len(loader.sources[0]), steps * ROWS / len(loader.sources[0])
        found["growth"] = growth(found["start"], found["end"])
    return found


def growth(start: dict[str, float], end: dict[str, float]) -> dict[str, float]:
    """MB that memory has grown."""
    return {name: round(end[name] - start[name], 1) for name in start}


class Watch:
    """Memory at each line of the log."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def begin(self, steps: int) -> None:
        """The first step is next."""

    def record(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        if record["kind"] == "step":
            self.lines.append((record["step"], memory()))


def train(folder: Path, steps: int) -> dict[str, Any]:
    """A tiny model for some steps."""
    import cloze

    watch = Watch()
    with tempfile.TemporaryDirectory() as out:
        cloze.pretrain(
            "mlm",
            str(folder),
            Path(out) / "run",
            f"{steps}steps",
            overrides=[
                "model={kind: new, family: bert, layers: 1, width: 32, heads: 2, longest: 128}",
                f"training.phases=[{{share: 1.0, length: 128, rows: {ROWS}}}]",
                f"training.log_every={max(1, steps // 20)}",
                "training.precision=fp32",
                "evaluation={times: 1, tokens: 2000, variance: false}",
            ],
            listeners=[watch],
        )
    (_, start), (_, end) = watch.lines[0], watch.lines[-1]
    curve = {step: line["anonymous"] for step, line in watch.lines}
    return {"start": start, "end": end, "growth": growth(start, end), "anonymous": curve}


def main() -> None:
    """Make the store and run the arms, or with --one a single arm."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=10_000_000)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=1000, help="batches of 32 rows drawn, and steps trained")
    parser.add_argument("--rounds", type=int, default=5, help="how often it is opened")
    parser.add_argument("--folder", type=Path, help="where the store is kept, or is found; default: nowhere")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--one", choices=["first", "open", "draw", "train"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        options.json.write_text(
            json.dumps(measure(options.one, options.folder, options.steps, options.rounds)), "utf-8"
        )
        return
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or Path(place) / "store"
        begin = time.perf_counter()
        if not (folder / "store.json").exists():
            write(folder, options.documents, options.vocabulary)
        made = time.perf_counter() - begin
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"{size / 1e6:,.0f} MB, made in {made:.0f} s", flush=True)

        def one(arm: str) -> dict[str, Any]:
            sizes = ("--steps", options.steps, "--rounds", options.rounds)
            found = script(Path(__file__).name, "--one", arm, "--folder", folder, *sizes)
            print(arm, json.dumps(found), flush=True)
            return found

        result: dict[str, Any] = {"documents": options.documents, "bytes": size, "first": one("first")}
        found = one("open")
        result |= {name: spread(found[name]) for name in ("store", "corpus")}
        result |= {arm: one(arm) for arm in ("draw", "train")}
        totals = Store.open(folder).totals
    write_json(options.json, result | {"totals": totals})


if __name__ == "__main__":
    main()
