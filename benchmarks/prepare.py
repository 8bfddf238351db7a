"""Speed of `cloze.data.prepare` against the tokenizer alone on the same texts, in turn, on the same cores.

    python benchmarks/prepare.py --data books.jsonl.gz

A: `backend_tokenizer.encode_batch`, nothing kept; of the whole texts, and of the same texts cut into
paragraphs, which is faster. B: `prepare`, from reading the file to a finished store. Prints each round,
medians, the ratio of speeds (B over each A) and the peak memory of B's process tree.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import accumulate, takewhile
from pathlib import Path

import datasets
import tokenizers
import transformers

from cloze.data.prepare import prepare
from cloze.data.sections import split_paragraphs
from cloze.data.sources import Document, Source, read
from cloze.data.tokenizer_training import train_tokenizer
from cloze.data.tokenizers import load_tokenizer


def documents(path: str, characters: int) -> Iterator[Document]:
    """The first documents of a corpus, about `characters` in all."""
    found = list(read(Source.parse(path)))
    totals = accumulate(len(document.text) for document in found)
    return (d for d, _ in takewhile(lambda pair: pair[1] <= characters, zip(found, totals, strict=True)))


def resident(process: int) -> int:
    """Resident memory in bytes of a process and all below it (shared pages counted once for each)."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        below = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident(int(child)) for child in below)


def timed_prepare(arguments: list[str]) -> tuple[float, int]:
    """Seconds and peak memory (bytes) of one `prepare` in a fresh process tree."""
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(process.returncode)
    return float(output), peak


def main() -> None:
    """Run the comparison, or with --one a single `prepare` that prints its seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a corpus, as for `cloze pretrain --data`")
    parser.add_argument("--megabytes", type=float, default=30, help="millions of characters to tokenise")
    parser.add_argument("--vocabulary", type=int, default=16_384)
    parser.add_argument("--workers", type=int, help="default: one per core")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--one", nargs=2, metavar=("TOKENIZER", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    characters = int(options.megabytes * 1e6)

    if options.one:
        tokenizer = load_tokenizer(options.one[0])
        begin = time.perf_counter()
        found = documents(options.data, characters)
        prepare(found, tokenizer, options.one[1], fingerprint="benchmark", workers=options.workers)
        print(time.perf_counter() - begin)
        return

    texts = [document.text for document in documents(options.data, characters)]
    total = sum(map(len, texts))
    tokenizer = train_tokenizer((text[:100_000] for text in texts), "bpe", options.vocabulary)
    backend = tokenizer.backend_tokenizer
    inputs: dict[str, list[str]] = {
        "texts": texts,
        "paragraphs": [part for text in texts for part in split_paragraphs(text)],
    }
    bare: dict[str, list[float]] = {name: [] for name in inputs}
    prepared: list[float] = []
    peaks: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for number in range(options.rounds):
            for name, batch in inputs.items():
                begin = time.perf_counter()
                backend.encode_batch(batch, add_special_tokens=False)
                bare[name].append(time.perf_counter() - begin)
            arguments = ["--data", options.data, "--megabytes", str(options.megabytes)]
            arguments += ["--workers", str(options.workers)] if options.workers else []
            seconds, peak = timed_prepare([*arguments, "--one", folder, f"{folder}/store-{number}"])
            prepared.append(seconds)
            peaks.append(peak)
            times = ", ".join(f"{name} {seconds[-1]:.2f} s" for name, seconds in bare.items())
            print(f"round {number + 1}: encode_batch of {times}; prepare {seconds:.2f} s")
    speeds = {name: total / statistics.median(times) for name, times in bare.items()}
    speed = total / statistics.median(prepared)
    result: dict[str, object] = {
        "characters": total,
        "cores": len(os.sched_getaffinity(0)),
        "workers": options.workers,
        "encode_batch_seconds": bare,
        "prepare_seconds": prepared,
        "ratio": {name: speed / alone for name, alone in speeds.items()},
        "peak_memory_bytes": max(peaks),
        "versions": {
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "transformers": transformers.__version__,
            "datasets": datasets.__version__,
        },
    }
    print(f"{total:,} characters; medians in millions of characters per second: prepare {speed / 1e6:.2f}")
    for name, alone in speeds.items():
        print(f"encode_batch of {name} {alone / 1e6:.2f}: ratio {speed / alone:.2f}")
    print(f"peak memory of prepare {max(peaks) / 2**30:.2f} GiB")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
