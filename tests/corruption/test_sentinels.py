"""Span corruption: what is read and what is written give the text back, whatever else is in the rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import CLS, FIRST, MASK, PAD, SEP, SIZE, make_samples, pack, rows_of
from torch import Tensor

from cloze.corruption.replace import Vocabulary
from cloze.corruption.sentinels import Answers, joined, separate
from cloze.data.batch import Batch
from cloze.masking.plan import MaskPlan
from cloze.masking.rest import Rest
from cloze.masking.spans import Spans

COUNT = 20
SENTINELS = tuple(range(SIZE, SIZE + COUNT))
WORDS = Vocabulary(SIZE + COUNT, MASK, torch.arange(FIRST, SIZE), sentinels=SENTINELS, end=SEP)


def batch() -> Batch:
    sizes = [[11, 4, 1], [20], [2, 9, 7], [1]]
    return pack([make_samples(size, i + 1) for i, size in enumerate(sizes)], 26)


def plan_of(hidden: Tensor) -> MaskPlan:
    p = hidden.float()
    return MaskPlan(hidden, hidden, p, p)


def texts(found: Answers, samples: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Of each sample what is read, what the decoder is given, and what it is to predict."""
    given, answer = found.views
    label = torch.full_like(answer.ids, -1).flatten()
    label[found.places] = found.labels
    label = label.view_as(answer.ids)
    return [
        (
            given.ids[given.segments == s].tolist(),
            answer.ids[answer.segments == s].tolist(),
            label[answer.segments == s].tolist(),
        )
        for s in range(samples)
    ]


def test_by_hand() -> None:
    samples = make_samples([6, 3])
    one = pack([samples], 14)
    a, b = (sample.ids for sample in samples)
    hidden = torch.zeros_like(one.maskable)
    hidden[0, [2, 3, 6, 9, 10, 11]] = True  # of the first its tokens 1, 2 and 5; the whole second
    found = separate(one, plan_of(hidden), WORDS, PAD)
    x, y = SENTINELS[:2]
    (first, second) = texts(found, 2)
    assert first[0] == [CLS, a[0], x, a[3], a[4], y, SEP]
    assert first[2] == [x, a[1], a[2], y, a[5], SEP]
    assert first[1] == [PAD, x, a[1], a[2], y, a[5]]
    assert second == ([CLS, x, SEP], [PAD, x, *b], [x, *b, SEP])
    assert found.targets.tolist() == [-1, 2, 3, -1, 6, -1, -1, 9, 10, 11, -1]
    # One text behind the other: the same predictions, in the same order.
    both = joined(one, plan_of(hidden), WORDS, MASK, open=True)
    (view,) = both.views
    assert view.ids[0].tolist() == [*first[0], MASK, *first[1][1:], *second[0], MASK, *second[1][1:]]
    assert view.open is not None
    assert view.open[0].tolist() == [True] * 7 + [False] * 6 + [True] * 3 + [False] * 5
    assert view.positions[0].tolist() == [*range(13), *range(8)]
    assert both.labels.tolist() == [*first[2], *second[2]]
    assert view.ids.flatten()[both.places].tolist() == [MASK, *first[1][1:], MASK, *second[1][1:]]
    assert both.targets.tolist() == found.targets.tolist()


@pytest.mark.parametrize("policy", [Spans(rate=0.3), Spans(rate=0.5, mean=1.0), Rest()])
def test_the_text_comes_back(policy: Spans | Rest) -> None:
    for visit in range(5):
        one = replace(batch(), visits=torch.full((8,), visit))
        rate = policy.rate
        assert isinstance(rate, float)
        found = texts(separate(one, policy.plan(one, rate, 3), WORDS, PAD), one.samples)
        for number, (given, _, labels) in enumerate(found):
            assert labels[-1] == SEP
            runs: dict[int, list[int]] = {}
            for token in labels[:-1]:
                if token in SENTINELS:
                    runs[token] = []
                    last = token
                else:
                    runs[last].append(token)
            assert list(runs) == list(SENTINELS[: len(runs)])
            assert all(runs.values())
            whole = [t for token in given for t in runs.get(token, [token])]
            assert whole == one.ids[one.segments == number].tolist()


def test_other_samples_in_the_row_change_nothing() -> None:
    one = batch()
    plan = Spans(rate=0.4).plan(one, 0.4, 7)
    whole = texts(separate(one, plan, WORDS, PAD), one.samples)
    alone = [texts(separate(p, Spans(rate=0.4).plan(p, 0.4, 7), WORDS, PAD), p.samples) for p in
             (rows_of(one, [i]) for i in range(4))]  # fmt: skip
    assert [sample for row in alone for sample in row] == whole
    both = joined(one, plan, WORDS, MASK, open=False)
    (view,) = both.views
    for number, (given, answer, _) in enumerate(whole):
        assert view.ids[view.segments == number].tolist() == [*given, MASK, *answer[1:]]
    assert view.open is None and view.causal


def test_runs_without_a_sentinel_stay() -> None:
    one = pack([make_samples([12])], 14)
    hidden = torch.zeros_like(one.maskable)
    hidden[0, 1:13:2] = True  # six runs
    few = replace(WORDS, sentinels=SENTINELS[:2])
    ((given, _, labels),) = texts(separate(one, plan_of(hidden), few, PAD), 1)
    text = one.ids[0].tolist()
    assert given == [CLS, SENTINELS[0], text[2], SENTINELS[1], *text[4:]]
    assert labels == [SENTINELS[0], text[1], SENTINELS[1], text[3], SEP]


def test_nothing_hidden_is_an_empty_answer() -> None:
    one = batch()
    found = separate(one, plan_of(torch.zeros_like(one.maskable)), WORDS, PAD)
    assert found.labels.tolist() == [SEP] * one.samples
    assert (found.targets == -1).all()
    assert torch.equal(found.views[0].ids[found.views[0].segments >= 0], one.ids[one.segments >= 0])
