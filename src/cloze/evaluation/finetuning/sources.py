"""Where tasks come from: folders of files named after their splits, or the hub."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from cloze.data.files import ENDINGS, Row, looks_local, rows, text_lines
from cloze.data.hub import offline
from cloze.errors import ClozeError
from cloze.evaluation.finetuning import glue

# Split: names of its file or of its split on the hub. MNLI has two of the third name.
_SPLITS = {
    "train": ("train", "training"),
    "dev": ("dev", "valid", "validation", "val", "dev_matched", "validation_matched"),
    "test": ("test", "test_matched"),
    "mismatched": ("dev_mismatched", "validation_mismatched"),
}
_WORDS = (".conll", ".bio", ".iob")
_TABLES = tuple(e for e in ENDINGS if e not in (".txt", ".md", ".parquet"))
_EXPECTED = "train, and dev or test, as .tsv, .csv, .jsonl or .conll, also as .gz or .zst"


@dataclass(frozen=True, slots=True)
class Source:
    """The splits of one task, not read yet.

    Attributes:
        name: of the task; a GLUE task has its plain name ("sst2").
        splits: a file, or a table of the hub, for each of train, dev, test and mismatched that is there.
    """

    name: str
    splits: Mapping[str, Any]

    def label(self, split: str) -> str:
        """How messages call a split."""
        place = self.splits[split]
        return str(place) if isinstance(place, Path) else f"{self.name}, split {split}"

    def records(self, split: str) -> Iterator[Row]:
        """The records of a split. Errors: a file that is broken, or has no records."""
        place = self.splits[split]
        records = iter(_read(place) if isinstance(place, Path) else place)
        first = next(records, None)
        if first is None:
            raise ClozeError(f"{self.label(split)}: the {split} split is empty")
        records = chain([first], records)
        names = list(first)
        if self.name == "cola" and len(names) == 4 and names[1] in ("0", "1"):  # not a header
            values = chain([names], (list(record.values()) for record in records))
            records = (dict(zip(glue.COLA_COLUMNS, v, strict=False)) for v in values)
        yield from records


def find_sources(data: str | None, tasks: Sequence[str]) -> list[Source]:
    """The tasks of a place, in the order of `tasks`, or of their names.

    Args:
        data: a task's folder, a folder of such folders, or a hub id whose configurations are `tasks`;
            None: the hub's copy of GLUE.
        tasks: only these; empty: all.

    Errors: nothing there, no such task, or a hub that cannot be reached.
    """
    if data is None:
        if not tasks or any(glue.plain(task) not in glue.METRICS for task in tasks):
            raise ClozeError(
                "--data is needed: a folder with train and dev or test files, or of such folders "
                f"(without it, --tasks can name tasks of GLUE: {', '.join(glue.METRICS)})"
            )
        data = glue.HUB
    if not looks_local(data):
        return _of_hub(data, tasks)
    folder = Path(data).expanduser()
    if not folder.exists():
        raise ClozeError(f"{data}: no such folder")
    if not folder.is_dir():
        raise ClozeError(f"{data}: is a file; a folder is needed with {_EXPECTED}")
    own = _splits(folder)
    folders = [folder] if own else sorted(f for f in folder.iterdir() if f.is_dir() and _splits(f))
    if not folders:
        raise ClozeError(f"{data}: no task in this folder; a task is a folder with {_EXPECTED}")
    found = {_name(f): Source(_name(f), _splits(f)) for f in folders}
    return [found[_known(task, list(found), data)] for task in tasks] or list(found.values())


def _name(folder: Path) -> str:
    name = Path(os.path.abspath(folder)).name  # of a link: its own
    return glue.plain(name) if glue.plain(name) in glue.METRICS else name


def _known(task: str, names: list[str], data: str) -> str:
    by_plain = {glue.plain(name): name for name in names}
    if glue.plain(task) in by_plain:
        return by_plain[glue.plain(task)]
    close = difflib.get_close_matches(glue.plain(task), by_plain, n=1)
    hint = f"did you mean {by_plain[close[0]]}?" if close else f"there is {', '.join(names)}"
    raise ClozeError(f"--tasks {task}: no such task in {data}; {hint}")


def _splits(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        stem = file.name.split(".")[0].lower().replace("-", "_")
        split = next((s for s, names in _SPLITS.items() if stem in names), None)
        if split is None or _format(file) not in (*_TABLES, *_WORDS) or not file.is_file():
            continue
        if split in found:
            raise ClozeError(f"{folder}: {found[split].name} and {file.name} are both the {split} split")
        found[split] = file
    return found


def _format(file: Path) -> str:
    suffixes = [s for s in file.suffixes if s not in (".gz", ".zst")]
    return suffixes[-1].lower() if suffixes else ""


def _read(file: Path) -> Iterator[Row]:
    if not file.stat().st_size:
        return iter(())
    return _sentences(file) if _format(file) in _WORDS else rows(file, "lines")


def _sentences(file: Path) -> Iterator[Row]:
    """CoNLL: a word a line, its tag in the last column, a blank line between sentences."""
    words: list[object] = []
    tags: list[object] = []
    for number, line in enumerate(text_lines(file), start=1):
        fields = re.split(r"[ \t]+", line.strip(" \t\r\n"))
        if fields == [""] or fields[0] == "-DOCSTART-":
            if words:
                yield {"tokens": words, "tags": tags}
            words, tags = [], []
        elif len(fields) == 1:
            raise ClozeError(f"{file}: line {number} has one field, a word and its tag are needed")
        else:
            words.append(fields[0])
            tags.append(fields[-1])
    if words:
        yield {"tokens": words, "tags": tags}


def _of_hub(data: str, tasks: Sequence[str]) -> list[Source]:
    from datasets import load_dataset

    if offline():
        what = f"{', '.join(tasks)} of {data}" if tasks else data
        raise ClozeError(
            f"{what}: the hub cannot be reached, and there is no such folder; give --data FOLDER"
        )
    found = []
    wanted: Sequence[str | None] = tasks or [None]
    for task in wanted:
        name = task if task is None or data != glue.HUB else glue.plain(task)
        try:
            splits = load_dataset(data, name)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ClozeError(f"{data}, {name or 'default'}: cannot be opened, {reason}") from None
        known = {s: next((splits[n] for n in names if n in splits), None) for s, names in _SPLITS.items()}
        present = {s: table for s, table in known.items() if table is not None}
        found.append(Source(name or data.split("/")[-1], present))
    return found
