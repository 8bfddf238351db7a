"""From documents to a store: tokenise once, with all cores, restartable.

The main process reads and cuts numbered parts; workers tokenise and write them. Parts depend on the
documents, the tokenizer and `part_chars` only, so any number of workers writes the same bytes, and a part
that is there is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from cloze.data.sections import split_records
from cloze.data.sources import Document
from cloze.data.store import FORMAT, INDEX, PARTIAL, Store
from cloze.data.tokenizers import ids_of, save_tokenizer
from cloze.data.workers import PARALLELISM, one_line_errors, run_pool
from cloze.data.writer import PartCounts, PartWriter, Record, read_counts
from cloze.errors import ClozeError

Progress = Callable[[int, int], None]
_to_json = json.JSONEncoder(ensure_ascii=False).encode


def prepare(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerFast,
    out: str | Path,
    *,
    fingerprint: str,
    workers: int | None = None,
    part_chars: int = 8_000_000,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Store:
    """Tokenise `documents` into a store in the folder `out`, and open it.

    A finished store with the same fingerprint and tokenizer is returned at once; an interrupted one goes on
    after its finished parts. `fingerprint` stands for the documents (see `cloze.data.sources.fingerprint`).
    `workers`: number of processes, by default one per core; 1 works in this process with the tokenizer's own
    threads. `part_chars`: characters per part file. `progress` gets the characters and tokens of each part as
    it is finished.

    Raises ClozeError if the folder holds something else (or, unless `overwrite`, a finished store of other
    data), if no document has a token, or if a worker fails; finished parts stay then.
    """
    out = Path(out)
    backend = tokenizer.backend_tokenizer.to_str()
    key = _key(FORMAT, fingerprint, backend, part_chars)
    found = _open_same(out, key, overwrite)
    if found is not None:
        return found
    try:
        _claim(out, key)
        save_tokenizer(tokenizer, out / "tokenizer")
    except OSError as error:
        raise ClozeError(f"{out}: cannot be written ({error}); give another folder") from None
    dtype: type[np.unsignedinteger] = np.uint16 if ids_of(tokenizer) <= 2**16 else np.uint32
    numbering = _Numbering(documents, part_chars)
    done = _run(iter(numbering), (backend, dtype), out, workers or _cores(), progress)
    parts: list[dict[str, Any]] = [
        {"file": _name(number), "records": c.records, "tokens": c.tokens, "chars": c.chars}
        | {"bytes": (out / _name(number)).stat().st_size, "digest": c.digest}
        for number, c in sorted(done.items())
    ]
    totals = {name: sum(part[name] for part in parts) for name in ("records", "tokens", "chars")}
    if not totals["tokens"]:
        raise ClozeError(
            f"{out}: nothing to store, no document gave a single token; look at the data and tokenizer"
        )
    index = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "key": key,
        "vocabulary": len(tokenizer),
        "totals": totals | {"documents": numbering.documents},
        "parts": parts,
    }
    _write_json(out / INDEX, index)
    (out / PARTIAL).unlink(missing_ok=True)
    return Store.open(out)


class _Numbering:
    """Iterates over parts (lists of records), and counts the documents on the way."""

    def __init__(self, source: Iterable[Document], part_chars: int) -> None:
        self.source, self.part_chars, self.documents = source, part_chars, 0

    def __iter__(self) -> Iterator[list[Record]]:
        part: list[Record] = []
        size = 0
        for document in self.source:
            meta = _to_json(document.meta)
            for text in split_records(document.text):
                part.append(Record(self.documents, text, meta))
                size += len(text)
                if size >= self.part_chars:
                    yield part
                    part, size = [], 0
            self.documents += 1
        if part:
            yield part


def _run(
    parts: Iterator[list[Record]], spec: tuple[str, type], out: Path, workers: int, progress: Progress | None
) -> dict[int, PartCounts]:
    """Write every part that is not there yet; the counts of all parts by number."""
    done: dict[int, PartCounts] = {}

    def finish(number: int, counts: PartCounts) -> None:
        done[number] = counts
        if progress is not None:
            progress(counts.chars, counts.tokens)

    def missing(parts: Iterable[list[Record]]) -> Iterator[tuple[int, list[Record]]]:
        for number, records in enumerate(parts):
            counts = _finished(out / _name(number))
            if counts is None:
                yield number, records
            else:
                finish(number, counts)

    head = list(islice(parts, 2))
    numbered = missing(chain(head, parts))
    if workers == 1 or len(head) < 2:
        # One small part is worth neither processes nor threads, which would make later forks unsafe.
        with _parallelism(None if workers == 1 else "false"):
            writer = PartWriter(Tokenizer.from_str(spec[0]), spec[1])
            for number, records in numbered:
                with one_line_errors(out):
                    counts = writer.write(records, out / _name(number))
                finish(number, counts)
    else:
        run_pool(((n, records, out / _name(n)) for n, records in numbered), spec, out, workers, finish)
    return done


@contextmanager
def _parallelism(value: str | None) -> Iterator[None]:
    before = os.environ.get(PARALLELISM)
    if value is not None:
        os.environ[PARALLELISM] = value
    try:
        yield
    finally:
        if value is not None:
            os.environ.pop(PARALLELISM)
            if before is not None:
                os.environ[PARALLELISM] = before


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(*parts: object) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _name(number: int) -> str:
    return f"part-{number:05d}.arrow"


def _finished(path: Path) -> PartCounts | None:
    try:
        return read_counts(path)
    except (OSError, pa.ArrowInvalid):
        return None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _open_same(out: Path, key: str, overwrite: bool) -> Store | None:
    if not (out / INDEX).exists():
        return None
    try:
        same = json.loads((out / INDEX).read_text("utf-8")).get("key") == key
    except (OSError, ValueError, AttributeError):
        same = False
    if same:
        return Store.open(out)
    if overwrite:
        return None
    raise ClozeError(
        f"{out}: holds a store of other data, options or tokenizer; give another folder or delete it"
    )


def _claim(out: Path, key: str) -> None:
    """Make `out` ours: keep parts of the same key, delete those of another, refuse other things."""
    if out.exists() and not out.is_dir():
        raise ClozeError(f"{out}: is a file; give a folder for the store")
    try:
        same = json.loads((out / PARTIAL).read_text("utf-8"))["key"] == key
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    known = (out / PARTIAL).exists() or (out / INDEX).exists()
    if out.exists() and not known and any(out.iterdir()):
        raise ClozeError(f"{out}: is not empty and no store; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    if not same:
        (out / INDEX).unlink(missing_ok=True)
        for part in out.glob("part-*.arrow"):
            part.unlink()
        shutil.rmtree(out / "tokenizer", ignore_errors=True)
        _write_json(out / PARTIAL, {"key": key})
    for leftover in out.glob(".*.tmp"):
        if not _alive(leftover):
            leftover.unlink(missing_ok=True)


def _alive(temporary: Path) -> bool:
    """Whether the process that writes a temporary file (its number is in the name) still runs."""
    number = temporary.name.split(".")[-2]
    return number.isdigit() and int(number) != os.getpid() and Path(f"/proc/{number}").exists()
