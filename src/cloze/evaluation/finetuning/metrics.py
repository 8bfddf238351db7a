"""Metrics of predictions; each equals scikit-learn's or scipy's, and is 0 where theirs is not defined."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Numbers = NDArray[np.floating]


def accuracy(gold: Ids, predicted: Ids) -> float:
    """Share of [N] predictions that are right."""
    return float(np.mean(gold == predicted))


def f1(gold: Ids, predicted: Ids, positive: int) -> float:
    """Harmonic mean of precision and recall of one class."""
    both = np.sum((gold == positive) & (predicted == positive))
    either = np.sum(gold == positive) + np.sum(predicted == positive)
    return float(2 * both / either) if either else 0.0


def macro_f1(gold: Ids, predicted: Ids) -> float:
    """Mean F1 of the classes that occur among the labels or the predictions."""
    return float(np.mean([f1(gold, predicted, c) for c in np.union1d(gold, predicted)]))


def matthews(gold: Ids, predicted: Ids) -> float:
    """Matthews' correlation coefficient, for any number of classes (Gorodkin 2004)."""
    classes = np.union1d(gold, predicted)
    a, b = ((x[:, None] == classes).astype(float) for x in (gold, predicted))
    a, b = a - a.mean(0), b - b.mean(0)
    spread = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / spread) if spread > 0 else 0.0


def pearson(gold: Numbers, predicted: Numbers) -> float:
    """Correlation of [N] numbers."""
    a, b = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in (gold, predicted))
    spread = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / spread) if spread > 0 and np.isfinite(spread) else 0.0


def spearman(gold: Numbers, predicted: Numbers) -> float:
    """Correlation of their ranks; ties have the mean of their ranks."""
    return pearson(_ranks(gold), _ranks(predicted))


def _ranks(values: Numbers) -> Numbers:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
