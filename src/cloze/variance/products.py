"""Sums of inner products of gradients, from which every term of the decomposition follows.

Only the gradients of one sequence exist at a time. Across sequences their means are kept, or the sums of
these over blocks of sequences, which give the same values and an interval from leaving out blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cloze.errors import ClozeError
from cloze.variance.gradients import gram

# Pairs of masks by their distance as a share of the largest: 0, to 3/8, to 5/8, below 1, 1.
_EDGES = torch.tensor([0.0, 0.375, 0.625, 1.0 - 1e-9], dtype=torch.float64)
BINS = len(_EDGES)
DISJOINT = BINS - 1


class Products:
    """Sums per block of sequences.

    Args:
        means: [blocks, P] zeros, where the mean gradients of the sequences are added up.
        columns: {group: (first column, last column + 1)}.
    """

    def __init__(self, means: Tensor, columns: dict[str, tuple[int, int]]) -> None:
        blocks, groups = means.shape[0], len(columns)
        self.means, self.columns = means, columns
        self.count = torch.zeros(blocks, dtype=torch.float64)  # sequences
        # Σ over sequences of the mean over masks of ‖g‖², of the mean inner product of independent masks, and
        # of ‖mean gradient‖².
        self.squares = torch.zeros(blocks, groups, dtype=torch.float64)
        self.independent = torch.zeros(blocks, groups, dtype=torch.float64)
        self.of_means = torch.zeros(blocks, groups, dtype=torch.float64)
        # Per distance: Σ of the mean covariance, and number of sequences that have such pairs.
        self.covariance = torch.zeros(blocks, BINS, dtype=torch.float64)
        self.seen = torch.zeros(blocks, BINS, dtype=torch.float64)
        self.pairs = torch.zeros(BINS, dtype=torch.float64)
        self.distances = torch.zeros(BINS, dtype=torch.float64)

    def add(self, block: int, rows: Tensor, masks: Tensor) -> None:
        """One sequence: its gradients [m, P] under masks [m, n], the second half independent of the first."""
        half = len(rows) // 2
        products = torch.stack([gram(rows[:, start:end]) for start, end in self.columns.values()])
        if not bool(products.isfinite().all()):
            raise ClozeError("a gradient is not finite: check the loss, or compute it in float32")
        independent = products[:, :half, half:].mean((1, 2))
        self.count[block] += 1
        self.squares[block] += products.diagonal(dim1=1, dim2=2).mean(1)
        self.independent[block] += independent
        self.of_means[block] += products.mean((1, 2))
        self.means[block] += rows.mean(0)

        whole, shared = products.sum(0), masks.double() @ masks.double().T
        distance = 1.0 - shared / shared[0, 0]
        one_family = torch.zeros(len(rows), len(rows), dtype=torch.bool)
        one_family[:half, :half] = one_family[half:, half:] = True
        kind = torch.bucketize(distance, _EDGES) * one_family.triu(1)  # 0: equal masks, or no such pair
        for i in range(BINS):
            chosen = kind == i + 1
            if chosen.any():
                self.covariance[block, i] += whole[chosen].mean() - independent.sum()
                self.seen[block, i] += 1
                self.pairs[i] += chosen.sum()
                self.distances[i] += distance[chosen].sum()

    def statistics(self) -> tuple[dict[str, float], list[dict[str, float]]]:
        """The terms of all sequences, and without each block; NaN where a term does not exist.

        Keys: data, mask, total, share, signal, "signal / total", "distance i", "break even", "C / M",
        and "data: group", "mask: group".
        """
        products = torch.stack([gram(self.means[:, start:end]) for start, end in self.columns.values()])
        every = torch.ones(len(self.count), dtype=torch.bool)
        without = [every.clone().index_fill_(0, torch.tensor(i), False) for i in range(len(every))]
        return self._terms(every, products), [self._terms(keep, products) for keep in without]

    def _terms(self, keep: Tensor, products: Tensor) -> dict[str, float]:
        n = self.count[keep].sum()
        independent = self.independent[keep].sum(0) / n
        between = products[:, keep][:, :, keep].sum((1, 2)) - self.of_means[keep].sum(0)
        signal = between / (n * (n - 1))
        data, mask = independent - signal, self.squares[keep].sum(0) / n - independent
        covariance = self.covariance[keep].sum(0) / self.seen[keep].sum(0)
        total = data.sum() + mask.sum()
        terms = {
            "data": data.sum(),
            "mask": mask.sum(),
            "total": total,
            "share": mask.sum() / total,
            "signal": signal.sum(),
            "signal / total": signal.sum() / total,
            "break even": data.sum() + covariance[DISJOINT],
            "C / M": covariance[DISJOINT] / mask.sum(),
        }
        terms |= {f"distance {i}": covariance[i] for i in range(BINS)}
        terms |= {f"data: {group}": value for group, value in zip(self.columns, data, strict=True)}
        terms |= {f"mask: {group}": value for group, value in zip(self.columns, mask, strict=True)}
        return {name: float(value) for name, value in terms.items()}
