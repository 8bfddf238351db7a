"""Pairs of texts with a number, from tables: which files are which tasks, and what is in them."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cloze.data.files import Row, ending, find, rows
from cloze.errors import ClozeError

if TYPE_CHECKING:  # suites import this module
    from cloze.evaluation.suites.base import Options

FEWEST = 3
_TABLES = (".tsv", ".csv", ".jsonl", ".ndjson", ".json")
_SPLITS = ("test", "dev", "valid", "validation", "train")
_YEAR = re.compile(r"20(\d\d)\..+")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of texts.

    Attributes:
        first: N texts. second: N texts.
        value: [N] float64, what the third column says.
    """

    first: list[str]
    second: list[str]
    value: np.ndarray


def task_files(options: Options, suite: str, years: bool = False) -> dict[str, list[Path]]:
    """The tasks in `options.data`, by name, each with its files; only those that the user chose.

    A file is a task of its own name. Of files named test, dev, valid, validation and train in one folder the
    first of these is taken, under the folder's name ("stsb"; "stsb.dev" if it is not test). With `years`, the
    files YEAR.NAME of one folder are one task a year, "sts12". A name that comes twice gets its folders
    before it.

    Errors: no data given, no table there, two tables for one task, an unknown task.
    """
    if options.data is None:
        raise ClozeError(
            f"suite {suite} needs data: give --data PATH, a tsv, csv or jsonl file or a folder of them"
        )
    files = [file for file in find(options.data) if ending(file) in _TABLES]
    if not files:
        raise ClozeError(
            f"{options.data}: a table is needed, one of {', '.join(_TABLES)}, also as .gz or .zst"
        )
    one = Path(options.data).expanduser().is_file()
    files = [Path(os.path.abspath(file)) for file in files]  # links are not followed: their names count
    root = Path(os.path.commonpath([file.parent for file in files]))
    found: dict[tuple[Path, str], list[Path]] = {}
    for file in files:
        folder, name, year = file.parent, _stem(file), None
        if (split := name.lower()) in _SPLITS:
            beside = {_stem(f).lower() for f in files if f.parent == file.parent}
            if beside.intersection(_SPLITS[: _SPLITS.index(split)]):
                continue
            folder, name = folder.parent, folder.name + ("" if split == "test" else f".{split}")
        elif years and not one and (year := _YEAR.fullmatch(name)):
            name = f"sts{year[1]}"
        same = found.setdefault((folder, name), [])
        if same and not year:
            raise ClozeError(f"{file}: task {name} has another table, {same[0].name}; move one of them away")
        same.append(file)
    twice = Counter(name for _, name in found)
    named = {
        name if twice[name] == 1 else Path(os.path.relpath(folder / name, root)).as_posix(): inside
        for (folder, name), inside in found.items()
    }
    return {name: named[name] for name in _chosen(list(named), options.tasks, suite)}


def _stem(file: Path) -> str:
    return file.name[: file.name.lower().rindex(ending(file) or "")]


def _chosen(names: list[str], wanted: Sequence[str], suite: str) -> list[str]:
    for name in wanted:
        if name not in names:
            raise ClozeError(f"--tasks {name}: suite {suite} has no such task here{_hint(name, names)}")
    return [name for name in names if not wanted or name in wanted]


def _hint(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"


def read_pairs(
    files: Sequence[Path], columns: Sequence[str], known: Sequence[tuple[str, ...]], label: str | None = None
) -> Pairs:
    """The pairs in some files, in order.

    Args:
        files: of one task.
        columns: as the user named them: two texts and a number; empty: the first of `known` that is there.
        known: usual names of the columns.
        label: name of the number's column where it may be missing; all numbers are 1 then.

    Errors: unknown columns, a cell that is empty or no number, a file without records.
    """
    first: list[str] = []
    second: list[str] = []
    value: list[float] = []
    for file in files:
        names: tuple[str, ...] = ()
        for number, row in enumerate(rows(file, "lines"), start=1):
            names = names or _columns(file, row, columns, known, label)
            where = f"{file}: record {number}"
            first.append(_text(row, names[0], where))
            second.append(_text(row, names[1], where))
            value.append(_number(row, names[2], where) if len(names) == 3 else 1.0)
        if not names:
            raise ClozeError(f"{file}: there is no record in it")
    return Pairs(first, second, np.array(value))


def read_scored(
    options: Options, suite: str, known: Sequence[tuple[str, ...]], years: bool = False
) -> dict[str, Pairs]:
    """The tasks of a suite that compares a model's similarities with people's scores.

    Errors: besides those of `task_files` and `read_pairs`, fewer than 3 pairs, scores that are all the same.
    """
    tasks = {}
    for name, files in task_files(options, suite, years).items():
        tasks[name] = pairs = read_pairs(files, options.columns, known)
        if len(pairs.first) < FEWEST:
            raise ClozeError(f"{files[0]}: only {len(pairs.first)} pairs; at least {FEWEST} are needed")
        if np.ptp(pairs.value) == 0:
            raise ClozeError(
                f"{files[0]}: all scores are {pairs.value[0]:g}, so there is no order to compare"
            )
    return tasks


def _columns(
    file: Path,
    row: Row,
    columns: Sequence[str],
    known: Sequence[tuple[str, ...]],
    label: str | None,
) -> tuple[str, ...]:
    example = ",".join(known[0])
    if columns:
        if not 3 - (label is not None) <= len(columns) <= 3:
            raise ClozeError(f"--columns {','.join(columns)}: give columns as in --columns {example}")
        for name in columns:
            if name not in row:
                raise ClozeError(f"{file}: has no column {name!r}{_hint(name, list(row))}")
        return tuple(columns)
    for names in known:
        if all(name in row for name in names):
            return (*names, label) if label is not None and label in row else names
    raise ClozeError(
        f"{file}: which columns? there are {', '.join(row)}; name them as in --columns {example}"
    )


def _text(row: Row, name: str, where: str) -> str:
    cell = row.get(name)
    if cell is None or cell == "" or str(cell).isspace():
        raise ClozeError(f"{where}: column {name!r} is empty")
    if not isinstance(cell, str):
        raise ClozeError(f"{where}: column {name!r} is {cell!r}, not text")
    return cell


def _number(row: Row, name: str, where: str) -> float:
    cell = row.get(name)
    try:
        found = float(cell) if isinstance(cell, str | int | float) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ClozeError(f"{where}: column {name!r} is {cell!r}, not a number")
    return found
