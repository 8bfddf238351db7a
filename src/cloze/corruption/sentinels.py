"""Span corruption: a sentinel in the place of each hidden run, and the runs as a text of their own.

Of the sample "the old river ran dry" with "old river" hidden, the *given* text is "the <0> ran dry" and the
*answer* "<0> old river", ended by the end token. An encoder-decoder reads the first and writes the second
(`separate`); a single network has the second behind the first (`joined`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cloze.config import Config
from cloze.corruption.replace import Vocabulary
from cloze.corruption.view import View
from cloze.data.batch import Batch, positions
from cloze.masking.plan import MaskPlan


class Sentinels(Config):
    """Each run of hidden tokens is replaced by a sentinel: <extra_id_0>, … (1910.10683, §3.1.4).

    A sample with more runs than the tokenizer has sentinels (100) keeps the later ones as they are.
    """

    kind: Literal["sentinels"] = "sentinels"

    def describe(self) -> str:
        """A few words for tables."""
        return "sentinels"


@dataclass(frozen=True, slots=True)
class Answers:
    """What is predicted, one token after the other, and what is read.

    Attributes:
        views: the given text and the answer (`separate`), or both in one (`joined`).
        places: [N] int64, flat indices into the last view of the outputs that predict.
        targets: [N] int64, flat indices into the batch of the tokens that they predict; -1: sentinel or end.
        labels: [N] int64, the ids of all of them.
    """

    views: tuple[View, ...]
    places: Tensor
    targets: Tensor
    labels: Tensor


def separate(batch: Batch, plan: MaskPlan, vocabulary: Vocabulary, start: int) -> Answers:
    """The given text for an encoder; the answer, each token behind the one before it, for a decoder.

    Args:
        start: id that each answer starts with.
    """
    given, answer = _parts(batch, plan, vocabulary)
    labels, origin = answer.ids, answer.origin
    before = F.pad(labels[:, :-1], (1, 0))
    decoder = replace(answer, ids=torch.where(answer.positions == 0, start, before), causal=True)
    places = (answer.segments >= 0).flatten().nonzero().squeeze(1)
    pick = (x.flatten().index_select(0, places) for x in (origin, labels))
    return Answers((given, decoder), places, *pick)


def joined(batch: Batch, plan: MaskPlan, vocabulary: Vocabulary, start: int, open: bool) -> Answers:
    """Both in one causal view, each sample's answer behind its given text.

    Args:
        start: id between the two. open: the given text is seen by its whole sample.
    """
    both = separate(batch, plan, vocabulary, start)
    given, answer = both.views
    width = answer.ids.shape[1]
    flat = torch.full_like(answer.origin, -1).flatten()
    number = flat.index_copy(0, both.places, torch.arange(both.places.numel(), device=flat.device))
    segments = torch.cat([given.segments, answer.segments], 1)
    # Samples stay in their order within a row, the answer of each behind its given text; padding goes last.
    key = torch.where(segments < 0, torch.iinfo(torch.int64).max, segments * 2)
    key[:, -width:] += (answer.segments >= 0).to(torch.int64)
    order = key.argsort(dim=1, stable=True)
    used = int((segments >= 0).sum(1).max())

    def arranged(of_given: Tensor, of_answer: Tensor) -> Tensor:
        return torch.cat([of_given, of_answer], 1).gather(1, order)[:, :used]

    segments = segments.gather(1, order)[:, :used]
    none = torch.full_like(given.ids, -1)
    numbers = arranged(none, number.view_as(answer.ids)).flatten()
    places = (numbers >= 0).nonzero().squeeze(1)
    chosen = numbers[places]
    first = arranged(given.segments >= 0, torch.zeros_like(answer.segments, dtype=torch.bool))
    view = View(
        arranged(given.ids, answer.ids),
        segments,
        positions(segments),
        arranged(given.origin, none.new_full(answer.ids.shape, -1)),
        causal=True,
        open=first if open else None,
    )
    return Answers((view,), places, both.targets[chosen], both.labels[chosen])


def _parts(batch: Batch, plan: MaskPlan, vocabulary: Vocabulary) -> tuple[View, View]:
    """The given text and the answer, each packed into rows as the samples are, as short as can be."""
    ids, segments = batch.ids, batch.segments
    sentinels = torch.tensor(vocabulary.sentinels, device=ids.device)
    same = torch.zeros_like(plan.hidden)
    same[:, 1:] = segments[:, 1:] == segments[:, :-1]
    before = F.pad(plan.hidden[:, :-1], (1, 0)) & same
    begins = plan.hidden & ~before
    # Runs are counted within each sample: those so far in the row less those before the sample.
    count = begins.cumsum(1)
    start = torch.where(same, 0, count - begins.to(torch.int64)).cummax(1).values
    run = count - start - 1
    hidden = plan.hidden & (run < sentinels.numel())
    begins = begins & hidden
    sentinel = sentinels[run.clamp(0, sentinels.numel() - 1)]
    flat = torch.arange(ids.numel(), device=ids.device).view_as(ids)
    none = torch.full_like(ids, -1)
    given = _packed(
        (segments >= 0) & (~hidden | begins),
        torch.where(begins, sentinel, ids),
        segments,
        torch.where(hidden, none, flat),
    )
    # Each token may bring a sentinel, itself, and the end of the answer, in this order.
    ends = (segments >= 0) & ~F.pad(same[:, 1:], (0, 1))
    end = torch.full_like(ids, vocabulary.end)

    def three(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return torch.stack([a, b, c], 2).flatten(1)

    answer = _packed(
        three(begins, hidden, ends),
        three(sentinel, ids, end),
        three(segments, segments, segments),
        three(none, flat, none),
    )
    return given, answer


def _packed(keep: Tensor, ids: Tensor, segments: Tensor, origin: Tensor) -> View:
    """What is kept of each row, moved to its left; as many columns as the longest row has."""
    order = (~keep).to(torch.int8).argsort(dim=1, stable=True)
    used = max(1, int(keep.sum(1).max()))
    inside = keep.gather(1, order)[:, :used]
    ids, segments, origin = (
        torch.where(inside, x.gather(1, order)[:, :used], fill)
        for x, fill in ((ids, 0), (segments, -1), (origin, -1))
    )
    return View(ids, segments, positions(segments), origin)
