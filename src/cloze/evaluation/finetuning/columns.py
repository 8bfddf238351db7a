"""Which columns of a record are its texts and its label."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal

from cloze.data.files import Row
from cloze.errors import ClozeError

Shape = Literal["classify", "pair", "tag"]
"""What a suite takes: a text, two texts, or a list of words; each with its label."""

TEXTS = {"classify": 1, "pair": 2, "tag": 1}
_NEEDED = {"classify": "TEXT,LABEL", "pair": "TEXT,TEXT,LABEL", "tag": "WORDS,TAGS"}
_TEXT = ("text", "sentence", "sequence", "content", "document", "review", "abstract", "title")
_PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
    ("#1 string", "#2 string"),
)
_WORDS = ("tokens", "words")
_TAGS = ("tags", "ner_tags", "labels", "label")
_LABELS = ("gold_label", "label", "labels", "score", "is_duplicate", "quality")


class OtherShape(ClozeError):
    """The records are for another suite, or their columns cannot be guessed."""


def choose(shape: Shape, rows: Sequence[Row], given: Sequence[str], where: str) -> list[str]:
    """The columns of the texts, and then of the label.

    Args:
        shape: what is looked for.
        rows: the first records.
        given: what the user said, or nothing.
        where: where the records are from, for messages.

    Errors: `OtherShape`, or too few, too many or unknown columns among those given.
    """
    names = [str(name) for name in dict.fromkeys(name for row in rows for name in row)]
    if not given:
        return _guess(shape, names, where)
    if len(given) != TEXTS[shape] + 1:
        raise ClozeError(f"--columns {','.join(given)}: {shape} needs {_NEEDED[shape]}")
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the columns are {', '.join(names)}"
            raise ClozeError(f"{where}: no column {name!r}; {hint}")
    return list(given)


def _guess(shape: Shape, names: list[str], where: str) -> list[str]:
    known = {name.lower(): name for name in names}
    words = _first(_WORDS, known)
    pair = next(([known[a], known[b]] for a, b in _PAIRS if a in known and b in known), None)
    text = _first(_TEXT, known)
    fits: Shape | None = "tag" if words else "pair" if pair else "classify" if text else None
    if fits not in (shape, None):
        raise OtherShape(
            f"{where}: the columns ({', '.join(names)}) are those of the suite {fits}; for {shape} give "
            f"--columns {_NEEDED[shape]}"
        )
    texts = [words] if shape == "tag" else pair if shape == "pair" else [text]
    label = _first(_TAGS if shape == "tag" else _LABELS, known)
    if texts is None or None in texts or label is None:
        raise OtherShape(
            f"{where}: which columns are the text and the label? give --columns {_NEEDED[shape]}; "
            f"there is {', '.join(names)}"
        )
    return [*(t for t in texts if t is not None), label]


def _first(candidates: Sequence[str], known: dict[str, str]) -> str | None:
    return next((known[name] for name in candidates if name in known), None)
