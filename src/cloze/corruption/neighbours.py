"""Vectors of tokens from what stands beside them in the text: for clusters, before a model knows any.

Counts of the frequent tokens to the left and to the right, weighted by positive pointwise mutual information
and cut to a few dimensions by a singular value decomposition (Bullinaria and Levy 2007).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cloze.data.loader import Loader

TOKENS = 500_000  # of text that are counted, at most
CONTEXT = 500  # most frequent tokens, whose presence is counted
WIDTH = 32  # dimensions that are kept


def neighbour_vectors(loader: Loader, size: int, seed: int) -> Tensor:
    """[size, WIDTH] float32; tokens that do not occur are at 0."""
    length = loader.layout.length
    rows = min(max(1, TOKENS // length), sum(len(source) for source in loader.sources))
    batches = [loader.batch(at, min(64, rows - at)) for at in range(0, rows, 64)]
    often = torch.zeros(size, dtype=torch.int64)
    for batch in batches:
        often += torch.bincount(batch.ids[batch.index >= 0], minlength=size)
    chosen = often.argsort(descending=True, stable=True)[:CONTEXT]
    column = torch.full((size,), -1).index_copy(0, chosen, torch.arange(chosen.numel()))
    counts = torch.zeros(2, size, chosen.numel())
    for batch in batches:
        left, right = batch.ids[:, :-1], batch.ids[:, 1:]
        text = (batch.index[:, :-1] >= 0) & (batch.index[:, 1:] == batch.index[:, :-1] + 1)
        for side, (word, beside) in enumerate(((right, left), (left, right))):
            inside = text & (column[beside] >= 0)
            pair = word[inside] * chosen.numel() + column[beside[inside]]
            counts[side] += torch.bincount(pair, minlength=size * chosen.numel()).view(size, -1)
    together = counts.transpose(0, 1).reshape(size, -1)
    expected = together.sum(1, keepdim=True) * together.sum(0) / together.sum().clamp(min=1)
    information = (together.clamp(min=1e-9) / expected.clamp(min=1e-9)).log().clamp(min=0.0)
    information = torch.where(together > 0, information, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, s, _ = torch.svd_lowrank(information, q=min(WIDTH, *information.shape))
    return torch.where(often[:, None] > 0, u * s.sqrt(), 0.0)
