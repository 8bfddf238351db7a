"""Suite `minimal-pairs`: does the model prefer the grammatical sentence of each pair?

Any jsonl file with a good and a bad sentence in each row will do. The names of tasks have their groups in
them: the folder, and then the row's `field`, `linguistics_term` and `UID` (BLiMP), or the file's name
(BLiMP-supplement), cut at its last "-" (PHENOMENON-PARADIGM, as in Zorro).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cloze.data.files import Row, ending, find, rows
from cloze.errors import ClozeError
from cloze.evaluation.likelihood import framed, log_likelihoods
from cloze.evaluation.pseudo_likelihood import Splitter, Tokens, pseudo_log_likelihoods
from cloze.evaluation.readings import Readable, readable
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites.base import Options, Scores, Suite
from cloze.methods.base import Readout
from cloze.models.encoder import Encoder
from cloze.models.encoder_decoder import EncoderDecoder

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

    A model is read in its own way, or as `options.reading` says. One that has several readings is scored by
    all of them.

    Metrics:
        accuracy: by pseudo-log-likelihood of a model that is read by masks or replaced tokens, with
            accuracy_word_l2r by PLL-word-l2r; else by log-likelihood.
        accuracy_READING: by a reading that is not its own first.

    Errors: no pairs, a row without its columns, a sentence without a token or longer than the model takes.
    """
    if options.data is None:
        raise ClozeError("minimal-pairs: no sentences are given: use --data FOLDER of .jsonl files")
    pairs = _chosen(list(read(options.data, options.columns or COLUMNS)), options.tasks, options.data)
    model = readable(subject)
    readings = model.chosen(options.reading)
    own, encoder = subject.longest_of(model.tokenizer), model.model
    longest = min(own, encoder.longest()) if isinstance(encoder, Encoder) else own - 1  # one is put before
    tokens = _tokens(pairs, Splitter(model.tokenizer), min(options.length or longest, longest))
    # What is the same to the model is scored once: equal scores are then equal to the last bit.
    names = {text: sequence.ids.tobytes() for text, sequence in tokens.items()}
    distinct = {names[text]: sequence for text, sequence in tokens.items()}
    scores: dict[str, dict[str, list[float]]] = {pair.task: {} for pair in pairs}
    for number, (reading, shift) in enumerate(readings.items()):
        metric = "accuracy" if number == 0 else f"accuracy_{reading}"
        tell = partial(options.meter, f"scoring sentences ({reading}), tokens")
        for end, values in _scores(model, reading, shift, list(distinct.values()), tell).items():
            score = dict(zip(distinct, values, strict=True))
            shares = _accuracy(pairs, {text: score[name] for text, name in names.items()})
            for task, share in shares.items():
                scores[task][metric + end] = [share]
    return dict(sorted(scores.items()))


def _scores(
    model: Readable, reading: Readout, shift: int, sentences: list[Tokens], tell: Callable[[int, int], None]
) -> dict[str, list[float]]:
    """The scores of sentences by a reading, by what the names of their metrics end in."""
    if reading in ("masked", "replaced"):
        fill = model.tokenizer.mask_token_id if reading == "masked" else model.ordinary
        found = pseudo_log_likelihoods(model.encoder, fill, sentences, tell, shift)
        return {"": found.plain.tolist(), "_word_l2r": found.word_l2r.tolist()}
    network = model.encoder if isinstance(model.model, EncoderDecoder) else model.model
    if not isinstance(network, Encoder):
        sentences = framed(sentences, model.tokenizer.bos_token_id)
    log_p = log_likelihoods(network, sentences, reading == "prefix", tell)
    return {"": [float(own.sum()) for own in log_p]}


def _tokens(pairs: Sequence[Pair], split: Splitter, longest: int) -> dict[str, Tokens]:
    """Each sentence with its tokens. Errors: none, or more than the model takes."""
    places = {text: pair.place for pair in pairs for text in (pair.good, pair.bad)}
    found = dict(zip(places, split(list(places)), strict=True))
    for text, tokens in found.items():
        if not (tokens.units >= 0).any():
            raise ClozeError(f"{places[text]}: the tokenizer makes no token of a sentence")
        if tokens.ids.size > longest:
            size = f"{tokens.ids.size:,} tokens, the model takes {longest:,}"
            raise ClozeError(f"{places[text]}: a sentence of {size}")
    return found


def _accuracy(pairs: Sequence[Pair], score: dict[str, float]) -> dict[str, float]:
    """Share of the pairs of each task whose good sentence has the greater score."""
    right: dict[str, list[bool]] = {}
    for pair in pairs:
        right.setdefault(pair.task, []).append(score[pair.good] > score[pair.bad])
    return {task: sum(outcomes) / len(outcomes) for task, outcomes in right.items()}


def read(data: str, columns: Sequence[str] = COLUMNS) -> Iterator[Pair]:
    """The pairs of a file, or of all the files in a folder. Errors: as `run`."""
    if len(columns) != 2:
        raise ClozeError(f"--columns {','.join(columns)}: give two, of the good and of the bad sentence")
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


SUITE = Suite(
    "minimal-pairs", "grammatical and ungrammatical sentences (BLiMP, Zorro)", run, "accuracy", reads=True
)
