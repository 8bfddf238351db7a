"""Masks for the measurement: families from one random permutation, in which near and far masks both occur.

A family is made of *windows*: the places of a sequence are put on a circle in random order, and a mask is k
places in a row. The circle is a uniform permutation of the places, so

- each mask alone is a simple random sample of k places, like any mask of uniform masking;
- two windows that share j places are, as a pair, uniform over all pairs of masks that share j places;
- in particular windows 0, k, 2k, ... are segments of a random partition (Fully-Explored masking, 2010.06040).

Masks of two families of a sequence are independent. Windows over the places in their own order would be
contiguous segments: each place as often, but the wrong masks.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from cloze.random import Stream, bits


def mask_size(n: int, rate: float) -> int:
    """k, the masked tokens of n: rate · n to the nearest integer, at least 1 and at most n."""
    return min(n, max(1, round(rate * n)))


def offsets(n: int, k: int, count: int, turn: int) -> list[int]:
    """Where the windows of a family begin on the circle of n places, [count].

    About two thirds of the windows, or as many as fit, are disjoint: 0, k, 2k, ... The others begin between 0
    and k and so share places with the first and the second. A single one begins at 1/2, 1/4 or 3/4 of k, by
    `turn`, which also decides whether a family of two is a disjoint pair (even) or a pair that shares (odd).
    """
    across = (count + turn % 2) // 3 if k > 1 else 0
    disjoint = min(count - across, n // k)
    across = count - disjoint
    shifts = [(j + 1) / (across + 1) for j in range(across)] if across != 1 else [(0.5, 0.25, 0.75)[turn % 3]]
    return [j * k for j in range(disjoint)] + [min(k - 1, max(1, round(shift * k))) for shift in shifts]


def family(n: int, k: int, count: int, *, seed: int, sequence: int, number: int) -> Tensor:
    """`count` masks of k of n places from one random permutation, [count, n] bool.

    `number` is 0 or 1, the two families of a sequence. A pure function of its arguments; families that differ
    in seed, sequence or number are independent.
    """
    places = torch.arange(n)
    circle = bits(seed, Stream.CHOICE, torch.tensor(sequence), torch.tensor(number), places).argsort()
    masks = torch.zeros(count, n, dtype=torch.bool)
    for mask, start in zip(masks, offsets(n, k, count, 2 * sequence + number), strict=True):
        mask[circle[(start + places[:k]) % n]] = True
    return masks


def enumerate_masks(n: int, k: int) -> Tensor:
    """All masks of k of n places, [n over k, n] bool, in lexicographic order."""
    chosen = torch.tensor(list(combinations(range(n), k)), dtype=torch.int64)
    return torch.zeros(len(chosen), n, dtype=torch.bool).scatter_(1, chosen, True)
