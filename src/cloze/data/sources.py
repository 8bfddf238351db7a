"""Corpora as streams of documents: files here or in object stores, hub data sets, `datasets` objects."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pyarrow import ArrowException
from pyarrow.parquet import ParquetFile
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloze.config import PathText
from cloze.data.embedded import BOOKS
from cloze.data.files import (
    Row,
    TextSplit,
    ending,
    find_all,
    is_saved_dataset,
    looks_local,
    rows,
)
from cloze.data.hub import offline
from cloze.data.remote import File, is_address, opened, size_of, state_of
from cloze.errors import ClozeError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

DatasetLike: TypeAlias = "Dataset | IterableDataset | DatasetDict | IterableDatasetDict"

_TEXT_FIELDS = ("text", "content", "body", "sentence")
_META_CHARS = 200
_HEAD = 16
_BATCH = 64
HUB = "hf://datasets/"
_ON_HUB = re.compile(HUB + r"[\w.-]+/[\w.-]+")
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
    files, either also as an address that fsspec knows (s3://bucket/folder); a folder written by
    `datasets.save_to_disk`; or a hub data set "organisation/name" (with `config` and `split`). `name` and
    `weight` are for mixtures and do not change what is read. `text_field`: the column of the text.
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
        if path and values["path"] != BOOKS and not _exists(values["path"]) and not names_files(path):
            values |= {"path": path, "config": config}
        try:
            return cls(**values)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"]))
            raise ClozeError(
                f"data {text!r}: {field}: {problem['msg']}; write PATH or NAME=WEIGHT:PATH"
            ) from None


def names_files(path: str) -> bool:
    """Whether a path means files, here or elsewhere, existing or not, rather than a hub data set."""
    return looks_local(path) if not is_address(path) else not _ON_HUB.fullmatch(path)


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))  # which no text is an error for


@dataclass(frozen=True, slots=True)
class Stream:
    """One file, or one data set: a name for people, bytes (None: not known), and what gives its records."""

    name: str
    size: int | None
    rows: Callable[[], Iterable[Row]]


class Reader:
    """Reads the documents of a source, some streams or all; counts the records without text.

    `streams`: all of the source's. Raises ClozeError if there are no such files.
    """

    def __init__(self, source: Source | DatasetLike, text_split: TextSplit, text_field: str | None) -> None:
        self.label = source.path if isinstance(source, Source) else type(source).__name__
        self.wanted = (source.text_field if isinstance(source, Source) else None) or text_field
        self.streams = list(_streams(source, text_split))
        self._read = self._kept = self._skipped = 0
        self._fields: list[str] = []

    def documents(self, streams: Sequence[Stream]) -> Iterator[Document]:
        """The documents of some of the streams; each stream is read once."""
        for stream in streams:
            rows = iter(stream.rows())
            head = list(islice(rows, _HEAD))
            if head:
                plain = _is_plain(stream.name)
                field = "text" if plain else _text_column(stream.name, head, self.wanted)
                self._fields.append(field)
                yield from self._texts(chain(head, rows), field)
            self._read += 1
        if self._read == len(self.streams):
            self._end()

    def _texts(self, rows: Iterable[Row], field: str) -> Iterator[Document]:
        for row in rows:
            text = row.get(field)
            if isinstance(text, str) and text and not text.isspace():
                self._kept += 1
                yield Document(_clean(text), _meta(row, field))
            else:
                self._skipped += 1

    def _end(self) -> None:
        """After the last stream: is there any text, and what was left out?"""
        if not self._fields:
            raise ClozeError(f"{self.label}: holds no records")
        columns = " or ".join(repr(name) for name in dict.fromkeys(self._fields))
        if not self._kept:
            raise ClozeError(
                f"{self.label}: no record has text in {columns}, all {self._skipped:,} are empty or not "
                "strings"
            )
        if self._skipped:
            _log.warning(
                "%s: %s records left out, no text in %s (empty, null or not a string)",
                self.label,
                f"{self._skipped:,}",
                columns,
            )


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
    reader = Reader(source, text_split, text_field)
    yield from reader.documents(reader.streams)


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
        if names_files(source.path):
            place = Path(source.path).expanduser()
            files: list[File] = (
                sorted(file for file in place.rglob("*") if file.is_file())
                if is_saved_dataset(place)
                else find_all(source.path)
            )
            # The books are the same wherever, and whenever, the package was installed.
            parts += [size_of(file) if source.path == BOOKS else state_of(file) for file in files]
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


def _streams(source: Source | DatasetLike, text_split: TextSplit) -> Iterator[Stream]:
    """Each file, or the one data set."""
    if not isinstance(source, Source):
        label = type(source).__name__
        yield Stream(label, None, lambda: _dataset_rows(source, "train", label))
        return
    path = source.path
    place = Path(path).expanduser()
    if is_saved_dataset(place):
        from datasets import load_from_disk

        saved = partial(load_from_disk, str(place))
        yield Stream(path, None, lambda: _dataset_rows(_loaded(path, saved), source.split, path))
    elif names_files(path):
        for file in find_all(path):
            of = partial(_parquet, file) if ending(file) == ".parquet" else partial(rows, file, text_split)
            yield Stream(str(file), size_of(file), of)
    else:
        yield Stream(path, None, lambda: _hub_rows(source))


def _hub_rows(source: Source) -> Iterator[Row]:
    from datasets import load_dataset

    path = source.path.removeprefix(HUB)
    if offline():
        raise ClozeError(
            f"{source.path}: no such file or folder, and the hub, where it may be, cannot be reached"
        )
    load = partial(load_dataset, path, source.config, split=source.split, streaming=True)
    yield from _dataset_rows(_loaded(source.path, load), source.split, source.path)


def _is_plain(name: str) -> bool:
    """Whether a file has no columns."""
    return ending(Path(name)) in (".txt", ".md")


def _parquet(file: File) -> Iterator[Row]:
    try:
        with opened(file) as source:
            for batch in ParquetFile(source).iter_batches(batch_size=_BATCH):
                yield from batch.to_pylist()
    except (OSError, ValueError, ArrowException) as error:
        raise ClozeError(f"{file}: cannot be read, {_one_line(error)}") from None


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
