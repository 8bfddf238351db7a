"""Shards of a store under an engine that spreads work over machines, held against the store of one process.

    python benchmarks/engines.py --engine datatrove --data 'texts/*.jsonl.gz' --tokenizer FOLDER --json FILE

The engine runs one task a shard; a task calls the function behind `cloze prepare --shard`, nothing else, so
on a cluster only the executor is another one (docs/large-text.md). Engines:
  datatrove    `LocalPipelineExecutor` (on SLURM: `SlurmPipelineExecutor`, with the same pipeline)
  ray          remote functions on a local Ray (on a cluster: `ray.init(address="auto")`)
  processes    the command itself, one after the other, as a job array runs it
Prints and writes for each engine whether every file of the merged store is the same, byte for byte.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common import texts, write_json, write_texts

from cloze.data.corpus import make_store
from cloze.data.shards import merge
from cloze.data.tokenizer_training import train_tokenizer


@dataclass(frozen=True)
class Job:
    """What each task needs: the text, a tokenizer that is there, the folder that all tasks write to."""

    data: str
    tokenizer: str
    out: str
    shards: int
    part_chars: int

    def run(self, number: int) -> dict[str, int]:
        """Make one shard (from 1), in this process."""
        shard = f"{number}/{self.shards}"
        return make_store(
            [self.data],
            Path(self.out),
            tokenizer=self.tokenizer,
            shard=shard,
            workers=1,
            part_chars=self.part_chars,
        )


def task(_data: Any, rank: int, _world_size: int, job: Job) -> None:
    """A step of a datatrove pipeline."""
    job.run(rank + 1)


def with_datatrove(job: Job, workers: int) -> None:
    """Tasks of a pipeline with one step."""
    from datatrove.executor import LocalPipelineExecutor

    LocalPipelineExecutor(
        pipeline=[partial(task, job=job)],
        tasks=job.shards,
        workers=workers,
        logging_dir=str(Path(job.out).with_suffix(".logs")),
    ).run()


def with_ray(job: Job, workers: int) -> None:
    """Remote functions."""
    import ray

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    remote = ray.remote(num_cpus=1)(Job.run)
    ray.get([remote.remote(job, number) for number in range(1, job.shards + 1)])
    ray.shutdown()


def with_processes(job: Job, workers: int) -> None:
    """The command, a process a shard; its parts have their usual size."""
    command = [sys.executable, "-m", "cloze", "prepare", "--data", job.data, "--out", job.out]
    command += ["--tokenizer", job.tokenizer, "--workers", str(workers)]
    for number in range(1, job.shards + 1):
        subprocess.run([*command, "--shard", f"{number}/{job.shards}"], check=True, stdout=subprocess.DEVNULL)


ENGINES: dict[str, Callable[[Job, int], None]] = {
    "datatrove": with_datatrove,
    "ray": with_ray,
    "processes": with_processes,
}


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def split(data: str, folder: Path, files: int) -> str:
    """The documents in several files, for data that are one."""
    documents = list(texts(data))
    for number in range(files):
        write_texts(folder / f"{number:03d}.jsonl", documents[number::files])
    return str(folder)


def main() -> None:
    """Make the store alone, then by each engine, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--engine", action="append", choices=list(ENGINES), help="repeat it; default: processes"
    )
    parser.add_argument(
        "--data", help="as for `cloze prepare`; default: the books of the demo, in five files"
    )
    parser.add_argument("--tokenizer", help="folder; default: a small one is trained")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="tasks at one time")
    parser.add_argument("--part-chars", type=int, default=200_000, help="characters of a part")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "texts").mkdir()
        data = options.data or split("cloze:books", folder / "texts", 5)
        tokenizer = options.tokenizer
        if tokenizer is None:
            tokenizer = str(folder / "tokenizer")
            train_tokenizer((t[:20_000] for t in texts(data)), "bpe", 1024).save_pretrained(tokenizer)
        found: dict[str, Any] = {}
        for engine in options.engine or ["processes"]:
            size = 8_000_000 if engine == "processes" else options.part_chars
            job = Job(data, tokenizer, str(folder / engine), options.shards, size)
            make_store([data], folder / "alone", tokenizer=tokenizer, workers=1, part_chars=size)
            begin = time.perf_counter()
            ENGINES[engine](job, options.workers)
            middle = time.perf_counter()
            store = merge(Path(job.out))
            alone, merged = content(folder / "alone"), content(Path(job.out))
            same = sum(alone[name] == merged.get(name) for name in alone)
            found[engine] = {
                "files": len(alone),
                "same": same if set(alone) == set(merged) else 0,
                "tokens": store.totals["tokens"],
                "parts": len(list(Path(job.out).glob("part-*"))),
                "shards": options.shards,
                "workers": options.workers,
                "seconds": middle - begin,
                "merge_seconds": time.perf_counter() - middle,
            }
            print(
                f"{engine}: {found[engine]['same']} of {len(alone)} files bit-equal, {found[engine]}",
                flush=True,
            )
            shutil.rmtree(folder / "alone")
    write_json(options.json, {"engines": found})
    if any(result["same"] != result["files"] for result in found.values()):
        raise SystemExit("not equal")


if __name__ == "__main__":
    main()
