"""Pairs of spans of the text, half of which belong together: what objectives of text structure are asked.

Two *couples* of spans, each of which belongs together, exchange their second spans or do not: a fair coin
decides. So the spans of the pairs that belong together and of those that do not are the same in distribution,
on both sides. Neither the length of a span, nor where it lies, nor what it says gives the answer away: only
both spans of a pair can. A fixed "draw a negative from elsewhere" has no such guarantee.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from cloze.corruption.replace import Vocabulary
from cloze.corruption.view import View
from cloze.data.batch import Batch
from cloze.data.store import PARAGRAPH, SENTENCE
from cloze.errors import ClozeError
from cloze.random import Stream, uniform

Task = Literal["same_paragraph", "in_paragraph", "same_document"]
Span = list[int]  # flat places in the batch
SHORTEST = 4  # tokens of a sentence that is worth a question


@dataclass(frozen=True, slots=True)
class Couple:
    """Two spans that belong together.

    Attributes:
        first, second: the spans.
        within: what both are of; a partner is of another one of these.
        sample: number of their sample.
        coin: what decides for it and its partner, in [0, 1).
    """

    first: Span
    second: Span
    within: int
    sample: int
    coin: float


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs that are ready for a forward pass.

    Attributes:
        view: each pair as `[CLS] first [SEP] second [SEP]`, a segment of its own.
        places: [N] int64, flat indices into the view of the first token of each pair.
        labels: [N] int64, 1 where both spans belong together.
        hard: [N] bool, the couple and its partner are of one sample.
    """

    view: View
    places: Tensor
    labels: Tensor
    hard: Tensor


def make_pairs(
    batch: Batch, task: Task, vocabulary: Vocabulary, seed: int, longest: int, alone: bool = False
) -> Pairs:
    """Pairs of the batch's own text; no token is in two of them.

    Partners are of the same sample where that has another paragraph, else of other samples of this batch:
    micro-batches see these as they are cut. Those of `same_document` always are. A couple without a partner
    is left out. Rows are as long as the batch's, and as many as are needed.

    Args:
        task: `same_paragraph`: two sentences; `in_paragraph`: a sentence, and the others of its paragraph;
            `same_document`: two paragraphs of one sample.
        longest: most tokens of a pair. alone: one pair a row.

    Errors: a batch that does not know where sentences start.
    """
    if batch.flags is None or batch.documents is None:
        raise ClozeError("objective.kind=structure: this text does not say where its sentences start")
    device, length = batch.ids.device, batch.ids.shape[1]
    couples = _couples(batch, task, vocabulary, seed)
    matched = _match(couples, [c.sample for c in couples]) if task != "same_document" else []
    taken = {i for match in matched for i in match}
    left = [i for i in range(len(couples)) if i not in taken]
    outer = [c.within if task == "same_document" else c.sample for c in couples]
    matched += [(left[i], left[j]) for i, j in _halves([outer[i] for i in left])]
    most = (min(length, longest) - 3) // 2  # however two spans meet, they fit
    pairs: list[tuple[Span, Span, int, bool]] = []
    for i, j in matched:
        a, b = couples[i], couples[j]
        straight, hard = a.coin < 0.5, a.sample == b.sample
        seconds = (a.second, b.second) if straight else (b.second, a.second)
        for first, second in zip((a.first, b.first), seconds, strict=True):
            pairs.append((first[:most], second[:most], int(straight), hard))
    view, places = _lay(batch, pairs, vocabulary, length, alone)
    labels = torch.tensor([label for _, _, label, _ in pairs], dtype=torch.int64)
    hard_ = torch.tensor([hard for *_, hard in pairs], dtype=torch.bool)
    return Pairs(view.to(device), places.to(device), labels.to(device), hard_.to(device))


def _couples(batch: Batch, task: Task, vocabulary: Vocabulary, seed: int) -> list[Couple]:
    assert batch.flags is not None and batch.documents is not None
    number = batch.segments.clamp(min=0)
    name = (batch.keys[number], batch.visits[number], batch.index)
    order = uniform(seed, Stream.PAIR, *name).flatten().tolist()
    coin = uniform(seed, Stream.PARTNER, *name).flatten().tolist()
    documents = batch.documents.tolist()
    found = []
    paragraphs: dict[int, list[Span]] = {}
    for within, (sample, sentences) in enumerate(_paragraphs(batch, vocabulary)):
        sentences.sort(key=lambda s: order[s[0]])
        paragraphs.setdefault(sample, []).append([i for s in sorted(sentences) for i in s])
        if len(sentences) < 2:
            continue
        if task == "same_paragraph":
            couples = list(zip(sentences[::2], sentences[1::2], strict=False))
        else:
            couples = [(sentences[0], [i for s in sorted(sentences[1:]) for i in s])]
        found += [Couple(a, b, within, sample, coin[a[0]]) for a, b in couples]
    if task != "same_document":
        return found
    pairs = []
    for sample, whole in paragraphs.items():
        whole.sort(key=lambda p: order[p[0]])
        for a, b in zip(whole[::2], whole[1::2], strict=False):
            pairs.append(Couple(a, b, documents[sample], sample, coin[a[0]]))
    return pairs


def _paragraphs(batch: Batch, vocabulary: Vocabulary) -> Iterable[tuple[int, list[Span]]]:
    """(sample, sentences) of each paragraph, without short ones, and without white space around them."""
    assert batch.flags is not None
    text = batch.index.flatten() >= 0
    blank = torch.isin(batch.ids, vocabulary.blank.to(batch.ids.device)).flatten().tolist()
    flags = torch.where(text, batch.flags.flatten().to(torch.int64), 0).tolist()
    starts = [i for i, flag in enumerate(flags) if flag & (SENTENCE | PARAGRAPH)]
    segments, inside = batch.segments.flatten().tolist(), text.tolist()
    sample, sentences = -1, list[Span]()
    for start, stop in pairwise([*starts, len(flags)]):
        if flags[start] & PARAGRAPH:
            if sentences:
                yield sample, sentences
            sentences = []
        sample = segments[start]
        span = [i for i in range(start, stop) if inside[i] and segments[i] == sample]
        while span and blank[span[-1]]:
            span.pop()
        while span and blank[span[0]]:
            span.pop(0)
        if len(span) >= SHORTEST:
            sentences.append(span)
    if sentences:
        yield sample, sentences


def _match(couples: Sequence[Couple], groups: Sequence[int]) -> list[tuple[int, int]]:
    """Partners of one group each, of different `within`."""
    found = []
    for group in dict.fromkeys(groups):
        mine = [i for i, g in enumerate(groups) if g == group]
        found += [(mine[i], mine[j]) for i, j in _halves([couples[i].within for i in mine])]
    return found


def _halves(kinds: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of indices of different kinds: all of them but one, if no kind has more than half of them."""
    order = sorted(range(len(kinds)), key=lambda i: kinds[i])
    half = (len(kinds) + 1) // 2
    candidates = zip(order[:half], order[half:], strict=False)
    return [(i, j) for i, j in candidates if kinds[i] != kinds[j]]


def _lay(
    batch: Batch,
    pairs: Sequence[tuple[Span, Span, int, bool]],
    vocabulary: Vocabulary,
    length: int,
    alone: bool,
) -> tuple[View, Tensor]:
    """A view of the pairs in rows of `length` (at least one row), and where each begins, on the CPU."""
    assert vocabulary.first is not None and vocabulary.separator is not None
    ids = batch.ids.flatten().tolist()
    rows: list[int] = []  # how full each is
    found, places = [], []
    for first, second, *_ in pairs:
        size = len(first) + len(second) + 3
        row = next((r for r, used in enumerate(rows) if not alone and used + size <= length), len(rows))
        if row == len(rows):
            rows.append(0)
        places.append(row * length + rows[row])
        found.append((vocabulary.first, -1))
        found += [(ids[i], i) for i in first] + [(vocabulary.separator, -1)]
        found += [(ids[i], i) for i in second] + [(vocabulary.separator, -1)]
        rows[row] += size
    shape = max(1, len(rows)), length
    made = torch.full(shape, vocabulary.separator).flatten()
    segments, origin, positions = (torch.full(shape, fill).flatten() for fill in (-1, -1, 0))
    at = 0
    for number, ((first, second, *_), place) in enumerate(zip(pairs, places, strict=True)):
        size = len(first) + len(second) + 3
        token, source = torch.tensor(found[at : at + size]).unbind(1)
        there = slice(place, place + size)
        made[there], origin[there], segments[there] = token, source, number
        positions[there] = torch.arange(size)
        at += size
    made, segments, positions, origin = (x.view(shape) for x in (made, segments, positions, origin))
    view = View(made, segments, positions, origin, runs=len(pairs) + shape[0])
    return view, torch.tensor(places, dtype=torch.int64)
