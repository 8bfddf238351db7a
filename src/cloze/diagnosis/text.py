"""The sequences that are measured: whole rows of one sample each, taken evenly over the text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from cloze.data.batch import Batch
from cloze.data.loader import Loader
from cloze.errors import ClozeError

SHORTEST = 8  # maskable tokens


def sequences_of(loader: Loader, count: int) -> list[Batch]:
    """`count` rows of a loader of one sample a row, each a batch of its own without padding.

    Full rows, evenly over the text; if there are too few of them, the longest there are.

    Errors: fewer than 2 sequences of at least 8 tokens.
    """
    sizes = [np.asarray(rows.pieces.length) for rows in loader.sources]
    source = np.repeat(np.arange(len(sizes)), [s.size for s in sizes])
    row = np.concatenate([np.arange(s.size) for s in sizes])
    length = np.concatenate(sizes)
    full = np.flatnonzero(length == loader.layout.length - loader.layout.specials)
    if full.size >= count:
        chosen = full[((np.arange(count) + 0.5) * full.size / count).astype(np.int64)]
    else:
        chosen = np.sort(np.argsort(-length, kind="stable")[:count])
    rows = [loader.assemble([(int(source[i]), int(row[i]), 0)]) for i in chosen]
    cut = [shorten(batch, batch.ids.shape[1]) for batch in rows]
    kept = [batch for batch in cut if int(batch.maskable.sum()) >= SHORTEST]
    if len(kept) < 2:
        raise ClozeError(
            f"the text is too short: it gives {len(kept)} of the at least 2 sequences of at least {SHORTEST} "
            "tokens that are needed"
        )
    return kept


def shorten(batch: Batch, length: int) -> Batch:
    """The first `length` tokens of a batch of one sample, specials included, without padding."""
    inside = batch.segments >= 0
    specials = int((inside & (batch.index < 0)).sum())
    keep = (inside & (batch.index < length - specials)).flatten()
    names = ("ids", "segments", "index", "units", "maskable")
    return replace(batch, **{name: getattr(batch, name)[:, keep] for name in names}, dense=True)


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of the numbers 0 … count - 1, evenly."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().to(torch.int64).tolist()
