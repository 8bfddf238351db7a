"""Named entities in tags such as B-PER, I-PER, O: their spans, and F1 over spans."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Span = tuple[str, int, int]
"""Type, first word, and the word after the last."""

_TAG = re.compile(r"[BIESLU](-.*)?")


def are_entities(tags: Iterable[str]) -> bool:
    """Whether tags are O and B-, I- (E-, S-, L-, U-) with a type, and not, say, parts of speech."""
    return all(tag == "O" or _TAG.fullmatch(tag) for tag in tags)


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities of one sentence, read as the CoNLL-2000 script `conlleval` reads them.

    An entity begins at B, S and U, at any tag whose type is not that of the tag before, and after E, S and L,
    U; it ends where the next begins, or at O. So IOB1, IOB2 and IOBES all give what they mean, and a
    prediction's I after O counts as a beginning.
    """
    found: list[Span] = []
    start, before, closed = 0, None, False
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        now = None if tag == "O" else kind
        if now != before or prefix in "BSU" or closed:
            if before is not None:
                found.append((before, start, i))
            start = i
        before, closed = now, prefix in "ESLU"
    return found


def iob2(tags: Sequence[str]) -> tuple[str, ...]:
    """The same entities with B at each beginning and I inside: one way of writing for all data."""
    new = ["O"] * len(tags)
    for kind, start, stop in spans(tags):
        new[start:stop] = [f"B-{kind}", *[f"I-{kind}"] * (stop - start - 1)]
    return tuple(new)


def entity_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """F1, precision and recall of entities over all sentences; right is the same words and the same type."""
    right = count = guesses = 0
    for tags, guess in zip(gold, predicted, strict=True):
        a, b = set(spans(tags)), set(spans(guess))
        right, count, guesses = right + len(a & b), count + len(a), guesses + len(b)
    return {
        "f1": 2 * right / (count + guesses) if count + guesses else 0.0,
        "precision": right / guesses if guesses else 0.0,
        "recall": right / count if count else 0.0,
    }
