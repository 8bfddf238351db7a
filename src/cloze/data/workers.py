"""Worker processes that tokenise parts: fresh interpreters that get parts through a pipe.

Not `multiprocessing`: its fork warns and may hang once a tokenizer has used threads, and its spawn imports
the main script again in every worker, which takes seconds and asks every script for a guard. A worker here
imports five modules, ends when its pipe is closed, hence with the main process however that ends, and does
not hear Ctrl-C.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cloze.data.writer import PartCounts, PartWriter, Record
from cloze.errors import ClozeError

PARALLELISM = "TOKENIZERS_PARALLELISM"
Spec = tuple[str, type[np.unsignedinteger]]


class WorkerError(Exception):
    """A worker process failed at a part, or ended before it had answered."""


def run_pool(
    parts: Iterable[tuple[int, Sequence[Record], Path]],
    spec: Spec,
    out: Path,
    workers: int,
    finish: Callable[[int, PartCounts], None],
) -> None:
    """Write parts (number, records, file) with `workers` processes; `finish` hears of each as it is done.

    `spec` is the tokenizer as JSON and the type of token ids. At most two parts per worker are in memory
    here. Raises ClozeError when a worker fails or dies; on any exception, parts under way are finished first.
    """
    processes = [_spawn() for _ in range(workers)]
    free: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    for process in processes:
        free.put(process)
    ready: set[int] = set()

    def write(records: Sequence[Record], path: Path) -> PartCounts:
        process = free.get()
        try:
            if process.pid not in ready:
                ready.add(process.pid)
                _ask(process, spec)
            return _ask(process, (records, path))
        finally:
            free.put(process)

    threads = ThreadPoolExecutor(workers)
    running: dict[Future[PartCounts], int] = {}

    def collect(limit: int) -> None:
        while len(running) > limit:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                with one_line_errors(out):
                    counts = future.result()
                finish(number, counts)

    try:
        for number, records, path in parts:
            running[threads.submit(write, records, path)] = number
            collect(2 * workers - 1)
        collect(0)
    finally:
        threads.shutdown(wait=True, cancel_futures=True)
        for process in processes:
            process.communicate()


@contextmanager
def one_line_errors(out: Path) -> Iterator[None]:
    """Turn whatever goes wrong while tokenising into `out` into one line for the user (ClozeError)."""
    try:
        yield
    except Exception as error:
        what = str(error) if isinstance(error, WorkerError) else f"{type(error).__name__}: {error}"
        what = " ".join(what.split())
        raise ClozeError(
            f"{out}: tokenising stopped, {what}; finished parts are kept, prepare again"
        ) from error


def _spawn() -> subprocess.Popen[bytes]:
    environment = os.environ | {PARALLELISM: "false", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", "from cloze.data.workers import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        # A Ctrl-C in the terminal is for the main process alone, which lets parts under way be finished.
        start_new_session=True,
    )


def _ask(process: subprocess.Popen[bytes], message: Any) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump(message, process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
        answer = pickle.load(process.stdout)
    except (EOFError, OSError, pickle.UnpicklingError):
        code = process.wait()
        raise WorkerError(f"a worker process died (code {code}), perhaps too many for the memory") from None
    if isinstance(answer, str):
        raise WorkerError(answer)
    return answer


def serve() -> None:
    """The life of a worker: take a tokenizer, then parts, from stdin; answer with counts or an error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Whatever else is printed must not end up among the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    writer: PartWriter | None = None
    while True:
        try:
            message = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            if writer is None:
                backend, dtype = message
                writer = PartWriter(Tokenizer.from_str(backend), dtype)
                answer: object = None
            else:
                answer = writer.write(*message)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:  # the main process is gone
            os._exit(1)
