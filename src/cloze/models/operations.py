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


def seen(lengths: Sequence[int], reaches: Sequence[int | None]) -> float:
    """Tokens that a token sees, in the mean over the tokens of such samples and over the layers.

    Args:
        lengths: tokens of each sample.
        reaches: of each layer, how many tokens it sees on each side; None: the whole sample.
    """
    found = []
    for reach in reaches:
        pairs = 0
        for length in lengths:
            near = length - 1 if reach is None else min(reach, length - 1)
            pairs += length * (2 * near + 1) - near * (near + 1)  # less what lies beyond the two ends
        found.append(pairs / sum(lengths))
    return statistics.mean(found)
