"""Speed of `cloze.data.prepare` against the tokenizer alone and against `datasets.map`, on the same text.

    python benchmarks/prepare.py --data books.jsonl.gz --json benchmarks/results/prepare.json

In turn, on the same cores, from one .jsonl.gz file of the text:
  bare      `backend_tokenizer.encode_batch`, nothing read, nothing kept; of whole texts, and of paragraphs
  prepare   `cloze.data.prepare`, from reading the file to a finished store
  map       what the well-known example script does: `datasets.load_dataset`, `map` with the tokenizer
            (batched, with special-token masks), `map` that joins and chops into blocks of 128; with one
            process, where the tokenizer itself has all cores, and with one process a core
Prints each round, medians, ratios of speeds and the peak memory of each process tree; then the time to the
first step on a warm store (first_step.py).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import first_step
from common import first, texts, write_json


def resident(process: int) -> int:
    """Resident memory in bytes of a process and all below it (shared pages counted once for each)."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        below = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident(int(child)) for child in below)


def timed(*arguments: object) -> tuple[float, int]:
    """Seconds and peak memory (bytes) of one arm in a fresh process tree."""
    command = [sys.executable, __file__, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
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
        raise SystemExit(f"failed: {' '.join(command)}")
    return float(output.split()[-1]), peak


def prepare_arm(file: str, tokenizer: str, out: str, workers: int) -> None:
    """Ours: from the file to a store."""
    from cloze.data.prepare import prepare
    from cloze.data.sources import Source, read
    from cloze.data.tokenizers import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    begin = time.perf_counter()
    prepare(read(Source.parse(file)), loaded, out, fingerprint="benchmark", workers=workers)
    print(time.perf_counter() - begin)


def map_arm(file: str, tokenizer: str, out: str, workers: int) -> None:
    """The rival: from the file to blocks of 128 in the cache of `datasets`."""
    from datasets import load_dataset
    from stock import chop
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    processes = None if workers == 1 else workers  # 1 would still start a process
    begin = time.perf_counter()
    raw = load_dataset("json", data_files=file, split="train", cache_dir=out)

    def encode(batch: dict[str, list[str]]) -> Any:
        return loaded(batch["text"], return_special_tokens_mask=True)

    encoded = raw.map(encode, batched=True, num_proc=processes, remove_columns=raw.column_names)
    blocks = encoded.map(chop, batched=True, num_proc=processes, fn_kwargs={"length": 128})
    assert len(blocks)
    print(time.perf_counter() - begin)


def main() -> None:
    """Run the comparison, or with --one a single arm that prints its seconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cloze:books", help="a corpus, as for `cloze pretrain --data`")
    parser.add_argument("--megabytes", type=float, default=30, help="millions of characters to tokenise")
    parser.add_argument("--vocabulary", type=int, default=16_384)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: cores")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        arm, file, tokenizer, out, workers = options.one
        (prepare_arm if arm == "prepare" else map_arm)(file, tokenizer, out, int(workers))
        return

    from cloze.data.sections import split_paragraphs
    from cloze.data.tokenizer_training import train_tokenizer

    documents = list(first(texts(options.data), int(options.megabytes * 1e6)))
    total = sum(map(len, documents))
    tokenizer = train_tokenizer((text[:100_000] for text in documents), "bpe", options.vocabulary)
    backend = tokenizer.backend_tokenizer
    bare = {
        "bare, texts": documents,
        "bare, paragraphs": [part for text in documents for part in split_paragraphs(text)],
    }
    arms = {
        "prepare": ("prepare", options.workers),
        "map, 1 process": ("map", 1),
        f"map, {options.workers} processes": ("map", options.workers),
    }
    times: dict[str, list[float]] = {name: [] for name in (*bare, *arms)}
    peaks = dict.fromkeys(arms, 0)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        file = Path(folder) / "texts.jsonl.gz"
        with gzip.open(file, "wt", compresslevel=1, encoding="utf-8") as lines:
            lines.writelines(json.dumps({"text": text}) + "\n" for text in documents)
        for number in range(options.rounds):
            for name, batch in bare.items():
                begin = time.perf_counter()
                backend.encode_batch(batch, add_special_tokens=False)
                times[name].append(time.perf_counter() - begin)
            for name, (arm, workers) in arms.items():
                out = tempfile.mkdtemp(dir=folder)  # nothing is found again from the round before
                seconds, peak = timed("--one", arm, file, folder, out, workers)
                times[name].append(seconds)
                peaks[name] = max(peaks[name], peak)
            said = ", ".join(f"{name} {seconds[-1]:.2f}" for name, seconds in times.items())
            print(f"round {number + 1}, seconds: {said}", flush=True)
        warm = first_step.measure(str(file), "mlm", [], options.rounds)
    speeds = {name: total / statistics.median(seconds) for name, seconds in times.items()}
    ratios = {name: speeds["prepare"] / speed for name, speed in speeds.items() if name != "prepare"}
    print(f"{total:,} characters; medians")
    print(f"{'':<20}{'M characters/s':>16}{'peak GiB':>10}{'prepare is':>14}")
    for name, speed in speeds.items():
        memory = f"{peaks[name] / 2**30:.2f}" if name in peaks else ""
        ratio = f"{ratios[name]:.2f} x" if name in ratios else ""
        print(f"{name:<20}{speed / 1e6:>16.2f}{memory:>10}{ratio:>14}")
    first_step.show(warm)
    result: dict[str, Any] = {
        "characters": total,
        "workers": options.workers,
        "seconds": times,
        "ratio": ratios,
        "peak_memory_bytes": peaks,
        "first_step": warm,
    }
    write_json(options.json, result)


if __name__ == "__main__":
    main()
