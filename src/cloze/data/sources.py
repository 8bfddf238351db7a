"""Corpora as streams of documents: local files, saved or hub datasets, and `datasets` objects from Python."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloze.config import PathText
from cloze.data.embedded import BOOKS
from cloze.data.files import Row, TextSplit, ending, find, is_saved_dataset, looks_local, rows
from cloze.data.hub import offline
from cloze.errors import ClozeError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

DatasetLike: TypeAlias = "Dataset | IterableDataset | DatasetDict | IterableDatasetDict"

_TEXT_FIELDS = ("text", "content", "body", "sentence")
_META_CHARS = 200
_HEAD = 16
_BATCH = 64
_WEIGHTED = re.compile(r"([\w.-]+)=([^:/\\]*):(.+)", re.DOTALL)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its text, and the other plain fields of its record (strings below 200 characters)."""

    text: str
    meta: dict[str, str | int | float]


class Source(BaseModel):
    """Where a corpus is, and how to read it.

    `path`: a file (.txt .md .jsonl .json .csv .tsv .parquet, also .gz or .zst), a folder or glob of such
    files, a folder written by `datasets.save_to_disk`, or a hub dataset "organisation/name" (with `config`
    and `split`). `name` and `weight` are for mixtures and do not change what is read. `text_field`: the
    column of the text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: PathText = Field(min_length=1)
    name: str | None = None
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    config: str | None = None
    split: str = "train"
    text_field: str | None = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read "PATH", "NAME=WEIGHT:PATH" or, for the hub, "organisation/name:config".

        What exists on disk is a path, whatever signs are in it. Raises ClozeError for a weight that is no
        positive number.
        """
        values: dict[str, Any] = {"path": text}
        weighted = _WEIGHTED.fullmatch(text)
        if weighted and not _exists(text):
            values = dict(zip(("name", "weight", "path"), weighted.groups(), strict=True))
        path, _, config = values["path"].rpartition(":")
        if path and values["path"] != BOOKS and not _exists(values["path"]) and not looks_local(path):
            values |= {"path": path, "config": config}
        try:
            return cls(**values)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"]))
            raise ClozeError(
                f"data {text!r}: {field}: {problem['msg']}; write PATH or NAME=WEIGHT:PATH"
            ) from None


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))  # which no text is an error for


def read(
    source: Source | DatasetLike, text_split: TextSplit = "paragraphs", text_field: str | None = None
) -> Iterator[Document]:
    """Stream the documents of a source, in flat memory.

    `text_split` says what a document of a text file is: "paragraphs" (between blank lines), "lines" or the
    whole "file". Every other file has its text in `text_field` (a source's own comes first), else in "text",
    "content", "body" or "sentence", else in the only column of strings. Line ends become "\\n". Records
    without text are left out and counted in one logged warning. Raises ClozeError, in one line, for
    everything that cannot be read, and if nothing is left.
    """
    label = source.path if isinstance(source, Source) else type(source).__name__
    wanted = (source.text_field if isinstance(source, Source) else None) or text_field
    kept = skipped = 0
    fields: list[str] = []
    for name, records in _streams(source, text_split):
        stream = iter(records)
        head = list(islice(stream, _HEAD))
        if not head:
            continue
        fields.append("text" if _is_plain(name) else _text_column(name, head, wanted))
        for row in chain(head, stream):
            text = row.get(fields[-1])
            if isinstance(text, str) and text and not text.isspace():
                kept += 1
                yield Document(_clean(text), _meta(row, fields[-1]))
            else:
                skipped += 1
    if not fields:
        raise ClozeError(f"{label}: holds no records")
    columns = " or ".join(repr(name) for name in dict.fromkeys(fields))
    if not kept:
        raise ClozeError(
            f"{label}: no record has text in {columns}, all {skipped:,} are empty or not strings"
        )
    if skipped:
        _log.warning(
            "%s: %s records left out, no text in %s (empty, null or not a string)",
            label,
            f"{skipped:,}",
            columns,
        )


def fingerprint(
    source: Source | DatasetLike, text_split: TextSplit = "paragraphs", text_field: str | None = None
) -> str:
    """A short name for what `read` would give: changes with any file's path, size or time, and any option.

    `name` and `weight` are left out, they do not change the documents. A hub dataset is named by its id
    alone. Raises ClozeError if there are no such files.
    """
    parts: list[object] = [text_split, text_field]
    if isinstance(source, Source):
        parts += [source.path, source.config, source.split, source.text_field]
        if looks_local(source.path):
            place = Path(source.path).expanduser()
            saved = is_saved_dataset(place)
            files = (
                sorted(file for file in place.rglob("*") if file.is_file()) if saved else find(source.path)
            )
            stats = [(file.resolve(), file.stat()) for file in files]
            if source.path == BOOKS:  # the same wherever, and whenever, the package was installed
                parts += [stat.st_size for _, stat in stats]
            else:
                parts += [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    else:
        members = source.items() if isinstance(source, dict) else [("", source)]
        for name, member in members:
            known = getattr(member, "_fingerprint", None)
            if known is None:
                raise ClozeError(
                    f"{type(member).__name__}: its content has no name to be found again by; give a "
                    "datasets.Dataset instead (such as Dataset.from_generator makes)"
                )
            parts.append((name, known))
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _streams(source: Source | DatasetLike, text_split: TextSplit) -> Iterator[tuple[str, Iterable[Row]]]:
    """The records of each file (or of the one data set), with a name for people."""
    if not isinstance(source, Source):
        label = type(source).__name__
        yield label, _dataset_rows(source, "train", label)
        return
    path = source.path
    place = Path(path).expanduser()
    if is_saved_dataset(place):
        from datasets import load_from_disk

        yield path, _dataset_rows(_loaded(path, lambda: load_from_disk(str(place))), source.split, path)
    elif looks_local(path):
        for file in find(path):
            yield str(file), _parquet(file) if ending(file) == ".parquet" else rows(file, text_split)
    else:
        from datasets import load_dataset

        if offline():
            raise ClozeError(
                f"{path}: no such file or folder, and the hub, where it may be, cannot be reached"
            )
        hub = _loaded(path, lambda: load_dataset(path, source.config, split=source.split, streaming=True))
        yield path, _dataset_rows(hub, source.split, path)


def _is_plain(name: str) -> bool:
    """Whether a file has no columns."""
    return ending(Path(name)) in (".txt", ".md")


def _parquet(path: Path) -> Iterator[Row]:
    from datasets import load_dataset

    load = partial(load_dataset, "parquet", data_files=str(path), split="train", streaming=True)
    yield from _dataset_rows(_loaded(str(path), load), "train", str(path))


def _loaded(label: str, load: Callable[[], DatasetLike]) -> DatasetLike:
    try:
        return load()
    except Exception as error:
        raise ClozeError(f"{label}: cannot be opened, {_one_line(error)}") from None


def _dataset_rows(data: DatasetLike, split: str, label: str) -> Iterator[Row]:
    if isinstance(data, dict):
        if split not in data and len(data) > 1:
            raise ClozeError(f"{label}: no split {split!r}; there are {', '.join(map(str, data))}")
        data = data[split] if split in data else next(iter(data.values()))
    try:
        for table in data.with_format("arrow").iter(batch_size=_BATCH):
            yield from table.to_pylist()
    except Exception as error:
        raise ClozeError(f"{label}: cannot be read, {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _text_column(label: str, head: list[Row], field: str | None) -> str:
    """The column of the text: `field`, or the obvious one among the first records."""
    columns = list(dict.fromkeys(column for row in head for column in row))
    listed = ", ".join(map(str, columns)) or "none"
    if field is not None:
        if field not in columns:
            raise ClozeError(f"{label}: no column {field!r}; the columns are {listed}")
        return field
    for name in _TEXT_FIELDS:
        if name in columns:
            return name
    strings = Counter(column for row in head for column, value in row.items() if _is_words(value))
    if len(strings) != 1:
        raise ClozeError(f"{label}: which column is the text? Give text_field; the columns are {listed}")
    return next(iter(strings))


def _is_words(value: object) -> bool:
    """Whether a value is a string other than a number, which is how a CSV file stores its numbers."""
    if not isinstance(value, str) or not value:
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


def _clean(text: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return _whole(text)


def _whole(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and no tokenizer takes
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _meta(row: Row, field: str) -> dict[str, str | int | float]:
    meta: dict[str, str | int | float] = {}
    for name, value in row.items():
        if name == field:
            continue
        if isinstance(value, date):
            meta[_whole(name)] = value.isoformat()
        elif isinstance(value, int | float):
            meta[_whole(name)] = value
        elif isinstance(value, str) and len(value) < _META_CHARS:
            meta[_whole(name)] = _whole(value)
    return meta
