"""Gradients as flat vectors, their inner products, and what is derived from single gradients.

A gradient is one row of a matrix whose columns are ordered by group of parameters, so that a group is a range
of columns and the inner products of all rows within a group are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 1 << 16  # columns whose products are added in the precision of the gradients; chunks in float64


@dataclass(frozen=True)
class Layout:
    """The order of the parameters in a flat gradient of P numbers.

    Attributes:
        parameters: the leaves, ordered by group; with one group in the order that they came in.
        columns: {group: (first column, last column + 1)}.
    """

    parameters: list[Tensor]
    columns: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], group: Callable[[str], str] | None) -> Layout:
        """Groups in the order in which they first occur; without `group` there is one, "all"."""
        labels = [group(name) if group else "all" for name in parameters]
        ranks = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        order = sorted(range(len(labels)), key=lambda i: ranks[labels[i]])
        leaves = list(parameters.values())
        columns, end = {}, 0
        for label in ranks:
            start = end
            end += sum(leaf.numel() for leaf, own in zip(leaves, labels, strict=True) if own == label)
            columns[label] = (start, end)
        return cls([leaves[i] for i in order], columns)

    @property
    def width(self) -> int:
        """P, the number of columns."""
        return sum(leaf.numel() for leaf in self.parameters)

    def rows(self, count: int) -> Tensor:
        """Room for gradients, [count, P] of zeros: float64 if all parameters are, else float32."""
        exact = all(leaf.dtype == torch.float64 for leaf in self.parameters)
        dtype = torch.float64 if exact else torch.float32
        return torch.zeros(count, self.width, dtype=dtype, device=self.parameters[0].device)

    def write(self, row: Tensor, tensors: Sequence[Tensor | None]) -> None:
        """Fill row [P] with tensors in the order of `parameters`; None is zero."""
        pieces = row.split([leaf.numel() for leaf in self.parameters])
        for piece, tensor in zip(pieces, tensors, strict=True):
            if tensor is None:
                piece.zero_()
            else:
                piece.copy_(tensor.reshape(-1))

    def differentiate(self, loss: Tensor, row: Tensor) -> None:
        """Fill row [P] with the gradient of a scalar."""
        self.write(row, torch.autograd.grad(loss, self.parameters, allow_unused=True))


def gram(rows: Tensor) -> Tensor:
    """Inner products of rows [m, P], [m, m] float64 on the CPU."""
    total = torch.zeros(rows.shape[0], rows.shape[0], dtype=torch.float64)
    for piece in rows.split(_CHUNK, dim=1):
        total += (piece @ piece.T).cpu().double()
    return total


def per_token_norms(losses: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """t_i = ‖∂ℓ_i/∂θ‖ of each of the losses [k] of one graph, over all `parameters` together, [k] float64.

    k backward passes through the same graph, which is freed after the last.
    """
    leaves = list(parameters)
    norms = torch.zeros(losses.numel(), dtype=torch.float64)
    last = losses.numel() - 1
    for i, loss in enumerate(losses):
        found = torch.autograd.grad(loss, leaves, retain_graph=i < last, allow_unused=True)
        squares = [torch.linalg.vector_norm(g) ** 2 for g in found if g is not None]
        norms[i] = torch.stack([s.cpu().double() for s in squares]).sum().sqrt() if squares else 0.0
    return norms


def curvature_directions(
    sampled: Callable[[int], Tensor], parameters: Mapping[str, Tensor], draws: int
) -> list[list[Tensor]]:
    """K directions s_k with E[s sᵀ] = H, the Gauss-Newton matrix of the mean loss: the metric of `decompose`.

    Args:
        sampled: `sampled(draw)` gives the losses [N] of N masked tokens against labels that are SAMPLED from
            the model's own predictions, anew in each draw. (With the true labels it would be the empirical
            Fisher matrix, which is something else.) A draw may hold tokens of many sequences: use masks
            and sequences other than those that are measured.
        parameters: {name: leaf}, the same as for `decompose`.
        draws: K. Memory: K times the parameters.

    A direction is the gradient of Σ losses / √N. Given the text and the masks, gradients of tokens with
    sampled labels are independent with mean zero, so that E[s sᵀ] = 1/N Σ J_iᵀ (diag p_i − p_i p_iᵀ) J_i,
    with J_i the Jacobian of token i's logits. This is the Gauss-Newton matrix of the cross-entropy, and the
    Fisher matrix (Martens 2020, 1412.1193). Hence 1/K Σ (s_k·g)² estimates gᵀ H g without bias.
    """
    leaves = list(parameters.values())
    directions = []
    for draw in range(draws):
        losses = sampled(draw)
        found = torch.autograd.grad(losses.sum() / losses.numel() ** 0.5, leaves, allow_unused=True)
        directions.append(
            [torch.zeros_like(p) if g is None else g.detach() for g, p in zip(found, leaves, strict=True)]
        )
    return directions
