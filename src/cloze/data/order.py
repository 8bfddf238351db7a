"""In which order rows are seen: keyed permutations, with one integer as position and no array of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from cloze.errors import ClozeError
from cloze.random import Stream, bits

_ROUNDS, _SMALL_ROUNDS = 4, 10  # with up to 64 rows, four rounds leave some orders likelier than others
BLOCK = 1000  # rows; shares of sources are met exactly within each block, to one part in a thousand


def permute(index: Tensor, size: int, seed: int, epoch: Tensor) -> Tensor:
    """Where `index` [n] goes under a pseudo-random permutation of range(size), one for each epoch [n].

    A Feistel network of four rounds (ten for a few rows) on the smallest even number of bits, walked
    until it is inside the range (Black and Rogaway 2002): O(1) time and memory.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    rounds = _ROUNDS if half > 3 else _SMALL_ROUNDS
    x = index.clone()
    outside = torch.ones_like(x, dtype=torch.bool)
    while bool(outside.any()):
        left, right = x >> half, x & mask
        for turn in range(rounds):
            mixed = bits(seed, Stream.ORDER, epoch, right, torch.full_like(right, turn))
            left, right = right, left ^ (mixed & mask)
        x = torch.where(outside, (left << half) | right, x)
        outside = x >= size
    return x


def quotas(weights: list[float]) -> list[int]:
    """How many of each `BLOCK` rows come from each source, at least one."""
    if len(weights) > BLOCK // 2:
        raise ClozeError(f"{len(weights)} sources: a mixture takes at most {BLOCK // 2}; join some of them")
    total = sum(weights)
    exact = [w / total * BLOCK for w in weights]
    counts = [max(1, int(e)) for e in exact]
    remainders = sorted(range(len(weights)), key=lambda i: exact[i] - int(exact[i]), reverse=True)
    i = 0
    while sum(counts) != BLOCK:
        step = 1 if sum(counts) < BLOCK else -1
        at = remainders[i % len(remainders)] if step > 0 else counts.index(max(counts))
        counts[at] += step
        i += 1
    return counts


def source_of(cursor: Tensor, counts: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """Source of each row, and its place in that source's own sequence, for rows at `cursor` [n].

    Within each block every source has its exact quota, in a random order.
    """
    if len(counts) == 1:
        return torch.zeros_like(cursor), cursor
    block, place = cursor // BLOCK, cursor % BLOCK
    place = permute(place, BLOCK, seed + int(Stream.SOURCE), block)
    ends = torch.tensor(counts).cumsum(0)
    source = torch.searchsorted(ends, place, right=True)
    begins = ends - torch.tensor(counts)
    return source, block * torch.tensor(counts)[source] + place - begins[source]
