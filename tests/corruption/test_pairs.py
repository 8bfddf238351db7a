"""Pairs of spans: labels are right, and nothing but both spans together tells them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from helpers import CLS, FIRST, PAD, SEP, vocabulary
from torch import Tensor

from cloze.corruption.pairs import SHORTEST, Pairs, Task, make_pairs
from cloze.data.batch import Batch
from cloze.data.store import PARAGRAPH, SENTENCE, UNIT
from cloze.errors import ClozeError

TASKS: tuple[Task, ...] = ("same_paragraph", "in_paragraph", "same_document")
BLANK = FIRST
WORDS = replace(vocabulary(), first=CLS, separator=SEP, blank=torch.tensor([BLANK]))
Document = Sequence[Sequence[int]]  # lengths of the sentences of its paragraphs


def text(*rows: Sequence[Document], length: int = 96, documents: Sequence[int] | None = None) -> Batch:
    """A batch of samples whose paragraphs end with a blank token."""
    shape = len(rows), length
    ids, flags = torch.full(shape, PAD), torch.zeros(shape, dtype=torch.uint8)
    segments, index = torch.full(shape, -1), torch.full(shape, -1)
    number = 0
    for r, row in enumerate(rows):
        at = 0
        for document in row:
            begin = at
            ids[r, at] = CLS
            at += 1
            for paragraph in document:
                for i, size in enumerate(paragraph):
                    flags[r, at] = UNIT | SENTENCE | (PARAGRAPH if i == 0 else 0)
                    ids[r, at : at + size] = torch.arange(size) % 80 + FIRST + 1
                    at += size
                ids[r, at] = BLANK
                at += 1
            ids[r, at] = SEP
            at += 1
            segments[r, begin:at] = number
            index[r, begin + 1 : at - 1] = torch.arange(at - begin - 2)
            number += 1
    keys = torch.arange(number) * 7 + 1
    names = keys if documents is None else torch.tensor(documents)
    zero = torch.zeros_like(keys)
    return Batch(ids, segments, index, index, index >= 0, keys, zero, flags=flags, documents=names)


THREE: Document = ((5, 9, 6, 7), (8, 4, 6), (12, 5))
TWO: Document = ((7, 5), (6, 9, 4))
ONE: Document = ((9, 8, 7, 6),)


def numbers(batch: Batch) -> tuple[Tensor, Tensor]:
    """[rows · length] numbers of the paragraph and of the sentence of each token of text."""
    assert batch.flags is not None
    flags = batch.flags.flatten().long()
    return ((flags & PARAGRAPH) > 0).cumsum(0), ((flags & SENTENCE) > 0).cumsum(0)


def spans(pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
    """Flat places in the batch of both spans of each pair."""
    found = []
    for number in range(pairs.labels.numel()):
        origin = pairs.view.origin[pairs.view.segments == number]
        gaps = (origin < 0).nonzero().squeeze(1).tolist()
        assert len(gaps) == 3 and gaps[0] == 0 and gaps[2] == origin.numel() - 1
        found.append((origin[1 : gaps[1]], origin[gaps[1] + 1 : -1]))
    return found


def asked(batch: Batch, task: Task, seed: int = 0, longest: int = 512, alone: bool = False) -> Pairs:
    return make_pairs(batch, task, WORDS, seed, longest, alone)


@pytest.mark.parametrize("task", TASKS)
def test_labels_say_what_the_text_says(task: Task) -> None:
    batch = text([THREE], [TWO, TWO], [ONE], [THREE], documents=(1, 2, 3, 4, 1))
    paragraph, sentence = numbers(batch)
    seen = set()
    for visit in range(30):
        pairs = asked(replace(batch, visits=batch.visits + visit), task)
        assert pairs.labels.numel() >= 4
        used = torch.cat([torch.cat(both) for both in spans(pairs)])
        assert used.unique().numel() == used.numel()
        for (a, b), label, hard in zip(spans(pairs), pairs.labels, pairs.hard, strict=True):
            samples = [batch.segments.flatten()[x].unique().tolist() for x in (a, b)]
            assert len(samples[0]) == len(samples[1]) == 1
            assert min(a.numel(), b.numel()) >= SHORTEST
            assert bool(hard) >= (not label and samples[0] == samples[1])
            if task == "same_document":
                assert batch.documents is not None
                together = bool(batch.documents[samples[0]] == batch.documents[samples[1]])
                assert paragraph[a].unique().numel() == paragraph[b].unique().numel() == 1
                assert paragraph[a[0]] != paragraph[b[0]]
            else:
                together = bool(paragraph[a[0]] == paragraph[b[0]])
                assert sentence[a].unique().numel() == 1
                assert not set(sentence[a].tolist()) & set(sentence[b].tolist())
                assert task == "in_paragraph" or sentence[b].unique().numel() == 1
            assert bool(label) == together
            seen.add(bool(label))
        view = pairs.view
        assert torch.equal(view.ids.flatten()[pairs.places], torch.full_like(pairs.places, CLS))
        real = view.origin >= 0
        assert torch.equal(view.ids[real], batch.ids.flatten()[view.origin[real]])
        assert not (view.ids[real] == BLANK).any()
        assert view.ids.shape[1] == batch.ids.shape[1]
        assert int(view.positions.max()) == int((view.segments[:, :, None] == view.segments[:, None]).sum(2)[
            view.segments >= 0
        ].max()) - 1  # fmt: skip
    assert seen == {True, False}


def test_wrong_ones_are_of_the_same_document_where_it_has_any() -> None:
    pairs = asked(text([THREE], [TWO], [ONE], [ONE]), "same_paragraph")
    # Couples in the paragraphs: (2, 1, 1), two matches; (1, 1), one; 2 and 2, which have only each other.
    assert pairs.hard.tolist() == [True] * 6 + [False] * 4
    assert asked(text([ONE]), "same_paragraph").labels.numel() == 0


def naive(batch: Batch) -> list[tuple[int, int, int]]:
    """As one might have done it: the next sentence, or the first of the next paragraph."""
    assert batch.flags is not None
    starts = batch.flags.flatten().long()
    places = ((starts & SENTENCE) > 0).nonzero().squeeze(1).tolist()
    found = []
    for i in range(0, len(places) - 2, 2):
        label = int(not starts[places[i + 1]] & PARAGRAPH)
        found.append((places[i + 1] - places[i], places[i + 2] - places[i + 1], label))
    return found


def separation(values: Sequence[float], labels: Sequence[int]) -> float:
    """How far the mean of a feature lies apart between the labels, in standard errors."""
    x, y = torch.tensor(values, dtype=torch.float64), torch.tensor(labels, dtype=torch.bool)
    a, b = x[y], x[~y]
    return float((a.mean() - b.mean()).abs() / (a.var() / a.numel() + b.var() / b.numel()).sqrt())


@pytest.mark.parametrize("task", TASKS)
def test_neither_span_alone_tells_the_label(task: Task) -> None:
    """Lengths and places of both spans, over many visits; a naive choice of negatives fails."""
    rows: list[list[Document]] = [[THREE], [TWO, TWO], [ONE], [((20, 4), (4, 4, 4, 4), (5, 6, 30))]]
    batch = text(*rows, documents=(1, 2, 3, 4, 5))
    kept: list[list[float]] = [[] for _ in range(4)]
    labels: list[int] = []
    for visit in range(400):
        pairs = asked(replace(batch, visits=batch.visits + visit), task, seed=3)
        for a, b in spans(pairs):
            for feature, value in zip(kept, (len(a), len(b), a[0], b[0]), strict=True):
                feature.append(float(value))
        labels += pairs.labels.tolist()
    # Each coin makes two labels, so the usual standard error is too small by a factor of up to √2.
    assert max(separation(feature, labels) for feature in kept) < 5.0
    assert abs(sum(labels) / len(labels) - 0.5) < 3.0 / len(labels) ** 0.5
    control = naive(batch)
    assert separation([float(a) for a, _, _ in control] * 50, [y for *_, y in control] * 50) > 5.0


@pytest.mark.parametrize("task", TASKS)
def test_draws_are_functions_of_sample_and_visit(task: Task) -> None:
    batch = text([THREE], [TWO], [THREE], documents=(1, 2, 3))
    again = asked(batch, task)
    first = asked(batch, task)
    assert torch.equal(first.view.ids, again.view.ids) and torch.equal(first.labels, again.labels)
    changed: Callable[[Batch, int], Pairs] = lambda b, seed: asked(b, task, seed)  # noqa: E731
    others = [
        changed(replace(batch, visits=batch.visits + v), s).view.origin for v, s in ((1, 0), (2, 0), (0, 1))
    ]
    assert not all(torch.equal(first.view.origin, other) for other in others)


def test_hard_pairs_of_a_row_do_not_depend_on_the_others() -> None:
    """So that micro-batches change nothing but the negatives that come from other rows."""
    batch = text([THREE], [TWO], [((6, 7), (5, 8))])
    whole = asked(batch, "same_paragraph")
    parts = [asked(batch.take(torch.tensor([row])), "same_paragraph") for row in range(3)]
    ids = [
        pairs.view.ids[pairs.view.segments == i].tolist() for pairs in parts for i in range(len(pairs.labels))
    ]
    together = [whole.view.ids[whole.view.segments == i].tolist() for i in range(len(whole.labels))]
    assert ids == together[: len(ids)] and len(ids) == 8


def test_long_spans_are_cut_alike_on_both_sides() -> None:
    batch = text([((60, 30), (40, 45))], length=200)
    pairs = asked(batch, "same_paragraph", longest=43)
    assert {len(x) for both in spans(pairs) for x in both} == {20}
    assert int((pairs.view.segments == 0).sum()) == 43


def test_one_pair_a_row_where_rows_hold_one_sample() -> None:
    pairs = asked(text([THREE], [TWO]), "same_paragraph", alone=True)
    assert pairs.view.ids.shape[0] == pairs.labels.numel()
    assert torch.equal(pairs.places, torch.arange(pairs.labels.numel()) * 96)


def test_text_without_structure_is_refused() -> None:
    with pytest.raises(ClozeError, match="does not say where its sentences start"):
        asked(replace(text([TWO]), flags=None), "same_paragraph")
