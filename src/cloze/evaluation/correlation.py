"""Rank correlation with ties, without a dependency: the number is scipy's `spearmanr`."""

from __future__ import annotations

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """[N] float64, 1 for the smallest; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two [N] arrays: Pearson's correlation of their ranks.

    0 where all values of one of them are equal: such values order nothing.
    """
    a, b = (ranks(x) - (x.size + 1) / 2 for x in (first, second))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0
