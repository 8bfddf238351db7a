"""Corruptions that need no network: tokens that changed places, and tokens too many."""

from __future__ import annotations

import torch
from torch import Tensor

from cloze.corruption.view import View
from cloze.data.batch import Batch, positions
from cloze.random import Stream, uniform

ROUND = 8  # a longer view's rows are a multiple of this


def swap(batch: Batch, share: float, seed: int) -> View:
    """The batch with a share of its tokens in each other's places, each sample by itself.

    Chosen tokens are put in a random circle; each goes to the place of the next one. A single chosen one
    stays. Only maskable tokens move. `origin` is that of the places, not of the tokens that came: the
    labels say what was there before.
    """
    sample, draws = _drawn(batch, Stream.SWAP, seed)
    chosen = ((draws < share) & batch.maskable).flatten()
    places = chosen.nonzero().squeeze(1)
    # By sample, and within it in the order of a second, independent number.
    _, order = _drawn(batch, Stream.CIRCLE, seed)
    places = places[order.flatten()[places].argsort(stable=True)]
    places = places[sample.flatten()[places].argsort(stable=True)]
    own = sample.flatten()[places]
    count = torch.bincount(own, minlength=batch.samples)
    last = count.cumsum(0)[own] - 1
    at = torch.arange(places.numel(), device=places.device)
    following = torch.where(at == last, last - count[own] + 1, at + 1)
    ids = batch.ids.flatten().clone()
    ids[places[following]] = batch.ids.flatten()[places]
    return View.of(batch, ids.view_as(batch.ids))


def insert(batch: Batch, share: float, token: int, longest: int, seed: int) -> View:
    """The batch with a `token` behind a share of its tokens, which `origin` -1 tells from the others.

    Rows become longer, all alike. Of a sample that becomes longer than `longest` the end is left out. Only
    behind maskable tokens something is inserted.
    """
    _, draws = _drawn(batch, Stream.INSERT, seed)
    chosen = (draws < share) & batch.maskable
    rows, length = batch.ids.shape
    before = chosen.cumsum(1) - chosen.to(torch.int64)
    most = length + int(chosen.sum(1).max())
    wide = -(-most // ROUND) * ROUND
    row = torch.arange(rows, device=batch.ids.device)[:, None] * wide
    place = row + torch.arange(length, device=batch.ids.device) + before
    flat = torch.arange(rows * length, device=batch.ids.device).view(rows, length)
    text = batch.segments >= 0

    def spread(values: Tensor, filler: int, inserted: Tensor) -> Tensor:
        made = torch.full((rows * wide,), filler, device=values.device)
        made[place[text]] = values[text]
        made[place[chosen] + 1] = inserted
        return made.view(rows, wide)

    behind = batch.segments[chosen]
    segments = spread(batch.segments, -1, behind)
    ids = spread(batch.ids, token, torch.full_like(behind, token))
    origin = spread(flat, -1, torch.full_like(behind, -1))
    at = positions(segments)
    fits = at < longest
    segments = torch.where(fits, segments, -1)
    return View(
        ids,
        segments,
        torch.where(fits, at, 0),
        torch.where(fits, origin, -1),
        runs=2 * batch.samples + rows,
    )


def _drawn(batch: Batch, stream: Stream, seed: int) -> tuple[Tensor, Tensor]:
    """[rows, length] number of the sample (0 in padding), and a uniform number for each token."""
    sample = batch.segments.clamp(min=0)
    return sample, uniform(seed, stream, batch.keys[sample], batch.visits[sample], batch.index)
