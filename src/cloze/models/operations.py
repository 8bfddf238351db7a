"""Counted operations of training: what budgets of operations and utilisation divide by.

Forward and backward of every matrix product: a multiplication and an addition are two operations, backward
is twice forward, so a parameter costs 6 for each token that it works on. Norms, activations, the optimiser
and the small network of a masking policy are not counted. Here is no torch: benchmarks import it early.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def operations(body: float, head: float, tokens: float, predicted: float, attended: float = 0.0) -> float:
    """Operations of one update.

    Args:
        body: parameters that work on every token. head: those that work on every predicted one.
        tokens, predicted: how many there are.
        attended: pairs of tokens that see each other, summed over layers, times the width. Attention
            multiplies queries with keys and weights with values, so each costs 2 parameters' work.
    """
    return 6.0 * (body * tokens + head * predicted + 2.0 * attended)


def seen(
    lengths: Sequence[int], reaches: Sequence[int | None], prefixes: Sequence[int] | None = None
) -> float:
    """Tokens that a token sees, in the mean over the tokens of such samples and over the layers.

    Args:
        lengths: tokens of each sample.
        reaches: of each layer, how many tokens it sees on each side; None: the whole sample.
        prefixes: of each sample, how many tokens its beginning has in which all see each other, while the
            others see only what is before them: 0 is causal; None: all see both sides.
    """
    found = []
    for reach in reaches:
        pairs = sum(_pairs(length, reach) for length in lengths)
        if prefixes is not None:
            pairs = (pairs + sum(lengths)) // 2  # each with itself, and one of every two directions
            pairs += sum((_pairs(prefix, reach) - prefix) // 2 for prefix in prefixes)
        found.append(pairs / sum(lengths))
    return statistics.mean(found)


def _pairs(length: int, reach: int | None) -> int:
    """Pairs of tokens of one sample that see each other, each with itself too."""
    near = length - 1 if reach is None else min(reach, length - 1)
    return length * (2 * near + 1) - near * (near + 1)  # less what lies beyond the two ends
