"""How a sample is cut into the units that are hidden or kept as a whole: tokens, words or spans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cloze.data.batch import Batch
from cloze.random import Stream, uniform


@dataclass(frozen=True, slots=True)
class Units:
    """A partition of the maskable tokens of a batch.

    Attributes:
        of: [rows, length] int64, the unit of each token; -1 where nothing may be masked.
        sample: [units] int64, the sample each unit lies in, ascending.
        first: [units] int64, token index of the unit's first token: its name within the sample.
    """

    of: Tensor
    sample: Tensor
    first: Tensor


def _number(batch: Batch, starts: Tensor) -> Units:
    """Units from a flag on the first token of each: [rows, length] bool."""
    starts = starts & batch.maskable
    of = (starts.flatten().cumsum(0) - 1).view_as(starts)
    at = starts.flatten().nonzero().squeeze(1)
    return Units(
        of=torch.where(batch.maskable, of, -1),
        sample=batch.segments.flatten().index_select(0, at),
        first=batch.index.flatten().index_select(0, at),
    )


def _changes(x: Tensor) -> Tensor:
    """Where the value differs from the one to the left, [rows, length] bool; True in the first column."""
    changed = torch.ones_like(x, dtype=torch.bool)
    changed[:, 1:] = x[:, 1:] != x[:, :-1]
    return changed


def tokens(batch: Batch) -> Units:
    """Each maskable token is a unit."""
    return _number(batch, torch.ones_like(batch.maskable))


def words(batch: Batch) -> Units:
    """Each word (unit of the tokenizer) is a unit, with all its tokens."""
    gap = torch.zeros_like(batch.maskable)
    gap[:, 1:] = ~batch.maskable[:, :-1]  # a word may be interrupted by a token that is not maskable
    return _number(batch, _changes(batch.units) | _changes(batch.segments) | gap)


def spans(batch: Batch, seed: int, mean: float, longest: int) -> Units:
    """Runs of whole words of random length: geometric with the given mean, cut at `longest` words.

    Every sample is partitioned anew at each visit. A span never crosses the end of its sample, and has at
    most half of its words, so that there is context left when it is hidden.
    """
    word = words(batch)
    count = word.sample.numel()
    if count == 0:
        return word
    key, visit = batch.keys[word.sample], batch.visits[word.sample]
    ends = uniform(seed, Stream.SPAN, key, visit, word.first) < 1.0 / mean
    starts = torch.ones(count, dtype=torch.bool, device=ends.device)
    starts[1:] = ends[:-1] | (word.sample[1:] != word.sample[:-1])
    place = torch.arange(count, device=ends.device)
    since = place - torch.where(starts, place, 0).cummax(0).values
    most = (torch.bincount(word.sample) // 2).clamp(min=1, max=longest)
    starts = starts | (since % most[word.sample] == 0)
    flags = starts[word.of.clamp(min=0)] & (_changes(word.of)) & (word.of >= 0)
    return _number(batch, flags)


UnitKind = Literal["tokens", "words", "spans"]
SPAN_MEAN, SPAN_LONGEST = 3.0, 10  # words


def cut(batch: Batch, kind: UnitKind, seed: int) -> Units:
    """Units of the given kind; spans have a mean of 3 words and at most 10."""
    if kind == "tokens":
        return tokens(batch)
    return words(batch) if kind == "words" else spans(batch, seed, SPAN_MEAN, SPAN_LONGEST)


def fewest_units(batch: Batch, kind: UnitKind) -> Tensor:
    """[samples] int64: units that each sample has at least, however its spans fall."""
    if kind == "spans":
        count = fewest_units(batch, "words")
        most = (count // 2).clamp(min=1, max=SPAN_LONGEST)
        return (count + most - 1) // most
    units = tokens(batch) if kind == "tokens" else words(batch)
    return torch.bincount(units.sample, minlength=batch.samples)
