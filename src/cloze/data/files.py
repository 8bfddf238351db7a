"""Files as records: which files a path means, and how each text format is read.

Line formats are read here, not through `datasets`: its JSON reader quietly turns a column of mixed types into
JSON-quoted strings, its errors name no line, and it is several times slower on lines as long as books.
"""

from __future__ import annotations

import csv
import difflib
import glob
import io
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Literal

from cloze.data.embedded import BOOKS, books
from cloze.data.remote import File, is_address, listed, unpacked
from cloze.errors import ClozeError

Row = dict[str, object]
TextSplit = Literal["paragraphs", "lines", "file"]

ENDINGS = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
LONGEST = (
    1 << 28
)  # bytes of a line or of a text file's document: unpacked, a small archive may be of any size
WHOLE = 1 << 30  # characters of a .json file that is one array
_ACCEPTED = f"{', '.join(ENDINGS)}, also as .gz or .zst"
_GLOB = re.compile(r"[*?\[]")
_BOM = b"\xef\xbb\xbf"
_log = logging.getLogger(__name__)


def ending(path: File) -> str | None:
    """The format of a file by its name, ".jsonl" for "a.jsonl.gz"; None if it is not one of `ENDINGS`."""
    name = path.name.lower()
    packed = name.endswith(tuple(_COMPRESSED))
    suffix = Path(name.rsplit(".", 1)[0] if packed else name).suffix
    return suffix if suffix in ENDINGS and not (packed and suffix == ".parquet") else None


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `datasets.save_to_disk`."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def looks_local(path: str) -> bool:
    """Whether a path means local files, existing or not, rather than a hub dataset "organisation/name"."""
    place = Path(os.path.expanduser(path))
    if (
        path == BOOKS
        or os.path.exists(place)
        or _GLOB.search(path)
        or ending(place)
        or not re.fullmatch(r"[\w.-]+/[\w.-]+", path)
    ):
        return True
    return path.startswith(".") or os.path.isdir(place.parent)


def find_all(path: str) -> list[File]:
    """The files that `find` gives, or those at an address that fsspec knows."""
    if not is_address(path):
        return [*find(path)]
    there = listed(path)
    known = [file for file in there if ending(file) and not _hidden(Path(file.name))]
    full = [file for file in known if file.size]
    if not full:
        what = (
            "no file there" if not there else "no readable file there" if not known else "all files are empty"
        )
        raise ClozeError(f"{path}: {what}; accepted are {_ACCEPTED}")
    if len(full) < len(known):
        _log.warning("%s: %d empty files left out", path, len(known) - len(full))
    return [*full]


def find(path: str) -> list[Path]:
    """The readable, non-empty files that a file, folder (with all folders below) or glob means, sorted.

    Raises ClozeError if there is nothing there, or nothing that can be read.
    """
    if path == BOOKS:
        return [books()]
    place = Path(path).expanduser()
    if place.is_dir():
        if (place / "store.json").exists() or (place / "store.partial.json").exists():
            raise ClozeError(f"{path}: is a store of tokenised text; give the texts it was made from")
        below = (file for file in place.rglob("*") if not _hidden(file.relative_to(place)))
        files = sorted(file for file in below if ending(file) and file.is_file())
        if not files:
            raise ClozeError(f"{path}: no readable file in this folder; accepted are {_ACCEPTED}")
    elif place.exists():
        if not ending(place):
            raise ClozeError(f"{path}: unknown kind of file; accepted are {_ACCEPTED}")
        files = [place]
    elif _GLOB.search(path):
        matches = [Path(match) for match in glob.glob(str(place), recursive=True)]
        files = sorted(file for file in matches if ending(file) and file.is_file())
        if not files:
            raise ClozeError(
                f"{path}: {len(matches)} matches, none of them readable; accepted are {_ACCEPTED}"
            )
    else:
        raise ClozeError(f"{path}: no such file or folder{_nearest(place)}")
    full = [file for file in files if file.stat().st_size]
    if not full:
        raise ClozeError(f"{path}: the file is empty" if len(files) == 1 else f"{path}: all files are empty")
    if len(full) < len(files):
        _log.warning("%s: %d empty files left out", path, len(files) - len(full))
    return full


def rows(path: File, text_split: TextSplit) -> Iterator[Row]:
    """The records of one file that is not parquet; a text file's have the one field "text".

    Raises ClozeError for broken archives, text that is not UTF-8 and malformed lines, naming the line.
    """
    kind = ending(path)
    readers = {".json": _json, ".csv": _csv, ".tsv": _tsv}
    if kind in (".txt", ".md"):
        for text in _texts(path, text_split):
            yield {"text": text}
    else:
        yield from readers.get(kind or "", _jsonl)(path)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _nearest(place: Path) -> str:
    parent = place.parent
    if not parent.is_dir():
        return f"; the folder {parent} does not exist either"
    names = sorted(os.listdir(parent))
    close = difflib.get_close_matches(place.name, names, n=3, cutoff=0.5) or names[:3]
    return f"; there is {', '.join(close)} in {parent}" if close else f"; the folder {parent} is empty"


def text_lines(path: File) -> Iterator[str]:
    """Lines of an UTF-8 file, unpacked as they are read, each with its line end as "\\n".

    Errors: a line of more than `LONGEST` bytes, so that memory stays flat whatever an archive holds.
    """
    number, packed = 0, _COMPRESSED.get(path.suffix.lower())
    try:
        with io.BufferedReader(unpacked(path, packed), 1 << 20) as file:
            for number, line in enumerate(iter(partial(file.readline, LONGEST + 1), b""), start=1):
                if len(line) > LONGEST:
                    raise ClozeError(
                        f"{path}: line {number} has more than {LONGEST:,} bytes; is it text? Cut it in lines"
                    )
                if number == 1:
                    line = line.removeprefix(_BOM)
                if b"\0" in line:
                    raise ClozeError(f"{path}: binary data (a NUL byte in line {number}), not UTF-8 text")
                if line.endswith(b"\r\n"):
                    line = line[:-2] + b"\n"
                yield line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        hint = "if it is Latin-1: iconv -f latin1 -t utf-8 OLD > NEW"
        raise ClozeError(f"{path}: line {number} is not UTF-8 (byte 0x{byte:02x}); {hint}") from None
    except OSError as error:
        raise ClozeError(f"{path}: cannot be read after line {number}: {error}") from None


def _texts(path: File, text_split: TextSplit) -> Iterator[str]:
    lines = text_lines(path)
    if text_split == "file":
        yield from _pieces(lines)
    elif text_split == "lines":
        yield from (line.rstrip("\n") for line in lines if not line.isspace())
    else:
        for blank, group in groupby(lines, str.isspace):
            if not blank:
                yield from (text.rstrip("\n") for text in _pieces(group))


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """The lines joined; a text of more than `LONGEST` characters comes in several."""
    piece: list[str] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > LONGEST:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield "".join(piece)


def _record(path: File, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ClozeError(f"{path}: line {number} is not JSON ({error}); mend or delete the line") from None
    if not isinstance(row, dict):
        raise ClozeError(f'{path}: line {number} is not a JSON object such as {{"text": "..."}}')
    return row


def _jsonl(path: File) -> Iterator[Row]:
    for number, line in enumerate(text_lines(path), start=1):
        if not line.isspace():
            yield _record(path, number, line)


def _json(path: File) -> Iterator[Row]:
    """A .json file: an object a line, or (read as a whole) one array of objects, or one object."""
    first = next((line for line in text_lines(path) if not line.isspace()), "")
    try:
        by_line = isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        by_line = False
    if by_line:
        yield from _jsonl(path)
        return
    parts: list[str] = []
    size = 0
    for line in text_lines(path):
        parts.append(line)
        size += len(line)
        if size > WHOLE:
            raise ClozeError(f"{path}: more than {WHOLE:,} characters; write an object a line (.jsonl)")
    try:
        content = json.loads("".join(parts))
    except (ValueError, RecursionError) as error:
        raise ClozeError(f"{path}: is not JSON ({error})") from None
    for number, row in enumerate(content if isinstance(content, list) else [content], start=1):
        if not isinstance(row, dict):
            raise ClozeError(f'{path}: entry {number} is not a JSON object such as {{"text": "..."}}')
        yield row


def _csv(path: File) -> Iterator[Row]:
    csv.field_size_limit(LONGEST)
    reader = csv.reader(text_lines(path), strict=True)
    try:
        header = next(reader, [])
        for fields in reader:
            if fields:
                yield _row(path, reader.line_num, header, fields)
    except csv.Error as error:
        raise ClozeError(f"{path}: line {reader.line_num} is not CSV ({error})") from None


def _tsv(path: File) -> Iterator[Row]:
    """Tab-separated text with a header and no quoting."""
    lines = enumerate(text_lines(path), start=1)
    header = next((line for _, line in lines), "").rstrip("\n").split("\t")
    for number, line in lines:
        if not line.isspace():
            yield _row(path, number, header, line.rstrip("\n").split("\t"))


def _row(path: File, number: int, header: list[str], fields: list[str]) -> Row:
    if len(fields) > len(header):
        raise ClozeError(f"{path}: line {number} has {len(fields)} fields, the header names {len(header)}")
    return dict(zip(header, fields, strict=False))
