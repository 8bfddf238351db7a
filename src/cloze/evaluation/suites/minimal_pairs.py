"""Suite `minimal-pairs`: does the model prefer the grammatical sentence of each pair?

Any jsonl file with a good and a bad sentence in each row will do. The names of tasks have their groups in
them: the folder, and then the row's `field`, `linguistics_term` and `UID` (BLiMP), or the file's name
(BLiMP-supplement), cut at its last "-" (PHENOMENON-PARADIGM, as in Zorro).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cloze.data.files import Row, ending, find, rows
from cloze.errors import ClozeError
from cloze.evaluation.pseudo_likelihood import Splitter, Tokens, pseudo_log_likelihoods
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites.base import Options, Scores, Suite

COLUMNS = ("sentence_good", "sentence_bad")
KEYS = ("field", "linguistics_term", "UID")
ENDINGS = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair, the task that it belongs to, and where it is, for error messages."""

    task: str
    good: str
    bad: str
    place: str


def run(subject: Subject, options: Options) -> Scores:
    """Share of the pairs whose good sentence is the more probable one; equal scores count as wrong.

    Metrics:
        accuracy: by pseudo-log-likelihood. accuracy_word_l2r: by PLL-word-l2r.

    Errors: no pairs, a row without its columns, a sentence without a token or longer than the model takes.
    """
    if options.data is None:
        raise ClozeError("minimal-pairs: no sentences are given: use --data FOLDER of .jsonl files")
    columns = options.columns or COLUMNS
    if len(columns) != 2:
        raise ClozeError(f"--columns {','.join(columns)}: give two, of the good and of the bad sentence")
    pairs = _chosen(list(read(options.data, columns)), options.tasks, options.data)
    encoder = subject.masked_lm
    longest = min(options.length or subject.longest, encoder.longest())
    sentences = {pair.good: pair.place for pair in pairs} | {pair.bad: pair.place for pair in pairs}
    tokens = dict(zip(sentences, Splitter(subject.tokenizer)(list(sentences)), strict=True))
    for text, place in sentences.items():
        _check(tokens[text], place, longest)
    # What is the same to the model is scored once: equal scores are then equal to the last bit.
    names = {text: sequence.ids.tobytes() for text, sequence in tokens.items()}
    distinct = {names[text]: sequence for text, sequence in tokens.items()}
    number = {name: i for i, name in enumerate(distinct)}
    tell = partial(options.meter, "scoring sentences")
    found = pseudo_log_likelihoods(encoder, subject.tokenizer.mask_token_id, list(distinct.values()), tell)
    scores: dict[str, dict[str, list[float]]] = {}
    for metric, values in (("accuracy", found.plain), ("accuracy_word_l2r", found.word_l2r)):
        score = {text: float(values[number[name]]) for text, name in names.items()}
        right: dict[str, list[bool]] = {}
        for pair in pairs:
            right.setdefault(pair.task, []).append(score[pair.good] > score[pair.bad])
        for task, outcomes in right.items():
            scores.setdefault(task, {})[metric] = [sum(outcomes) / len(outcomes)]
    return dict(sorted(scores.items()))


def read(data: str, columns: Sequence[str] = COLUMNS) -> Iterator[Pair]:
    """The pairs of a file, or of all the files in a folder. Errors: as `run`."""
    files = [file for file in find(data) if ending(file) in ENDINGS]
    if not files:
        raise ClozeError(f"{data}: has no sentence pairs: {' or '.join(ENDINGS)} files, also as .gz or .zst")
    root = Path(data).expanduser()
    for file in files:
        for number, row in enumerate(rows(file, "lines"), start=1):
            place = f"{file}: row {number}"
            good, bad = (_text(row, column, place) for column in columns)
            yield Pair(_task(file, root, row), good, bad, place)


def _text(row: Row, column: str, place: str) -> str:
    if column not in row:
        raise ClozeError(f"{place} has no {column!r} but {', '.join(row)}: name both sentences by --columns")
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise ClozeError(f"{place}: {column!r} is no sentence, but {text!r}")
    return text


def _task(file: Path, root: Path, row: Row) -> str:
    folders = [root.resolve().name, *file.relative_to(root).parent.parts] if root.is_dir() else []
    # BLiMP itself writes one of its fields both with "/" and with "_".
    keys = [str(row[key]).replace("/", "_") for key in KEYS if row.get(key)]
    name = file.name.removesuffix(file.suffix) if file.suffix in (".gz", ".zst") else file.name
    stem = Path(name).stem
    if not row.get("UID"):
        keys += [part for part in stem.rsplit("-", 1) if part]
    return "/".join([*folders, *keys])


def _chosen(pairs: list[Pair], tasks: Sequence[str], data: str) -> list[Pair]:
    """The pairs of the tasks and groups that were named, or all."""
    if not tasks:
        return pairs
    parts = {pair.task: {*pair.task.split("/"), pair.task} for pair in pairs}
    known = sorted(set().union(*parts.values()))
    for task in tasks:
        if task not in known:
            close = difflib.get_close_matches(task, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known[:8])}"
            raise ClozeError(f"--tasks {task}: not in {data}; {hint}")
    return [pair for pair in pairs if not parts[pair.task].isdisjoint(tasks)]


def _check(tokens: Tokens, place: str, longest: int) -> None:
    if not (tokens.units >= 0).any():
        raise ClozeError(f"{place}: the tokenizer makes no token of a sentence")
    if tokens.ids.size > longest:
        raise ClozeError(f"{place}: a sentence of {tokens.ids.size:,} tokens, the model takes {longest:,}")


SUITE = Suite("minimal-pairs", "grammatical and ungrammatical sentences (BLiMP, Zorro)", run, "accuracy")
