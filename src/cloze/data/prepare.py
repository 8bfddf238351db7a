"""From documents to a store: tokenise once, with all cores, restartable.

The main process reads and cuts parts (blocks.py); workers tokenise and write them. Parts depend on the
documents, the tokenizer and `part_chars` only, so any number of workers writes the same bytes, and a part
that is there is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from cloze.data.blocks import PART_CHARS, Block, Cutter
from cloze.data.sources import Document
from cloze.data.store import FORMAT, INDEX, PARTIAL, Store
from cloze.data.tokenizers import ids_of, save_tokenizer
from cloze.data.workers import PARALLELISM, one_line_errors, run_pool
from cloze.data.writer import PartCounts, PartWriter, Record, read_counts
from cloze.errors import ClozeError

Progress = Callable[[int, int], None]


def prepare(
    documents: Iterable[Document] | Sequence[Block],
    tokenizer: PreTrainedTokenizerFast,
    out: str | Path,
    *,
    fingerprint: str,
    workers: int | None = None,
    part_chars: int = PART_CHARS,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Store:
    """Tokenise `documents` into a store in the folder `out`, and open it.

    A finished store with the same fingerprint and tokenizer is returned at once; an interrupted one goes on
    after its finished parts. `documents`: one after the other, or as blocks. `fingerprint` stands for them
    (see `cloze.data.sources.fingerprint`). `workers`: number of processes, by default one per core; 1 works
    in this process with the tokenizer's own threads. `part_chars`: characters per part file. `progress` gets
    the characters and tokens of each part as it is finished.

    Raises ClozeError if the folder holds something else (or, unless `overwrite`, a finished store of other
    data), if no document has a token, or if a worker fails; finished parts stay then.
    """
    out = Path(out)
    key = key_of(fingerprint, tokenizer, part_chars)
    found = open_same(out, key, overwrite)
    if found is not None:
        return found
    cutter = Cutter(as_blocks(documents), part_chars)
    parts = write_parts(cutter, tokenizer, out, key, workers, progress)
    finish(out, contents(parts, cutter.counts), fingerprint, key, len(tokenizer))
    return Store.open(out)


def key_of(fingerprint: str, tokenizer: PreTrainedTokenizerFast, part_chars: int) -> str:
    """Of the store that these documents and this tokenizer make."""
    return digest_of(FORMAT, fingerprint, tokenizer.backend_tokenizer.to_str(), part_chars)


def as_blocks(documents: Iterable[Document] | Sequence[Block]) -> Sequence[Block]:
    """Documents that come one after the other are one block."""
    if isinstance(documents, Sequence) and documents and isinstance(documents[0], Block):
        return cast(Sequence[Block], documents)
    return [Block(None, lambda: cast(Iterable[Document], documents))]


def write_parts(
    cutter: Cutter,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    key: str,
    workers: int | None,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Write the parts that the cutter cuts, and the tokenizer, into a folder; what is there is kept.

    Returns: of each part `file`, `records`, `tokens`, `chars`, `bytes`, `digest`, and where it stands:
    `block`, `turn` and `first`, as in `Part`.
    """
    try:
        _claim(out, key)
        save_tokenizer(tokenizer, out / "tokenizer")
    except OSError as error:
        raise ClozeError(f"{out}: cannot be written ({error}); give another folder") from None
    dtype: type[np.unsignedinteger] = np.uint16 if ids_of(tokenizer) <= 2**16 else np.uint32
    places: list[tuple[int, int, int]] = []

    def records() -> Iterator[list[Record]]:
        for part in cutter:
            places.append((part.block, part.turn, part.first))
            yield part.records

    spec = tokenizer.backend_tokenizer.to_str(), dtype
    done = _run(records(), spec, out, workers or _cores(), progress)
    return [
        {"file": part_name(number), "records": c.records, "tokens": c.tokens, "chars": c.chars}
        | {"bytes": (out / part_name(number)).stat().st_size, "digest": c.digest}
        | dict(zip(("block", "turn", "first"), places[number], strict=True))
        for number, c in sorted(done.items())
    ]


def contents(parts: Iterable[dict[str, Any]], counts: dict[int, list[int]]) -> dict[str, Any]:
    """`totals` and `parts` of the index of a whole store: parts in order, each with its first document."""
    offsets, documents = {}, 0
    for block in sorted(counts):
        offsets[block] = documents
        documents += counts[block][0]
    listed = [
        {
            "file": part_name(number),
            "first_document": offsets[part["block"]] + part["first"],
            **{name: part[name] for name in ("records", "tokens", "chars", "bytes", "digest")},
        }
        for number, part in enumerate(sorted(parts, key=lambda p: (p["block"], p["turn"])))
    ]
    totals = {name: sum(part[name] for part in listed) for name in ("records", "tokens", "chars")}
    return {"totals": totals | {"documents": documents}, "parts": listed}


def finish(out: Path, content: dict[str, Any], fingerprint: str, key: str, vocabulary: int) -> None:
    """Write the index, which makes a store of a folder with parts. Errors: there is no token in them."""
    if not content["totals"]["tokens"]:
        raise ClozeError(
            f"{out}: nothing to store, no document gave a single token; look at the data and tokenizer"
        )
    head = {"format": FORMAT, "fingerprint": fingerprint, "key": key, "vocabulary": vocabulary}
    write_json(out / INDEX, head | content)
    (out / PARTIAL).unlink(missing_ok=True)


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
            counts = _finished(out / part_name(number))
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
                    counts = writer.write(records, out / part_name(number))
                finish(number, counts)
    else:
        run_pool(((n, records, out / part_name(n)) for n, records in numbered), spec, out, workers, finish)
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


def digest_of(*parts: object) -> str:
    """A short name for some things that JSON can write."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def part_name(number: int) -> str:
    """File of a part, in a store or in a shard of one."""
    return f"part-{number:05d}.arrow"


def _finished(path: Path) -> PartCounts | None:
    try:
        return read_counts(path)
    except (OSError, pa.ArrowInvalid):
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file, all or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def open_same(out: Path, key: str, overwrite: bool = False) -> Store | None:
    """The finished store of this key in a folder; None: there is none. Errors: one of another key."""
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
        write_json(out / PARTIAL, {"key": key})
    for leftover in out.glob(".*.tmp"):
        if not _alive(leftover):
            leftover.unlink(missing_ok=True)


def _alive(temporary: Path) -> bool:
    """Whether the process that writes a temporary file (its number is in the name) still runs."""
    number = temporary.name.split(".")[-2]
    return number.isdigit() and int(number) != os.getpid() and Path(f"/proc/{number}").exists()
