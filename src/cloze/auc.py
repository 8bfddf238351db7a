"""How well scores tell two classes apart, whatever their shares are."""

from __future__ import annotations

from torch import Tensor


def auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, ties counting half.

    0.5 is chance. Unlike accuracy it says nothing good of a guesser that knows the more frequent class.

    Args:
        scores: [N]. positive: [N] bool.

    Returns:
        NaN where one of the classes is empty.
    """
    scores, positive = scores.double().flatten(), positive.flatten()
    many = int(positive.sum())
    others = positive.numel() - many
    if many == 0 or others == 0:
        return float("nan")
    _, number, count = scores.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0)
    middle = last.double() - (count - 1).double() / 2  # the mean rank of equal scores, from 1
    ranks = middle[number[positive]].sum()
    return float((ranks - many * (many + 1) / 2) / (many * others))
