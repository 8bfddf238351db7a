"""MaskPlan: which tokens are hidden, which are predicted, and with what probability."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class MaskPlan:
    """The masks of one batch, with their probabilities.

    The weight of a predicted token is p/π, which is 1 wherever the policy draws from the reference
    scheme itself. The denominator of the loss is the reference mass Σp, a number known before the
    forward pass; dividing by the sum of the drawn weights instead would be biased.

    Attributes:
        hidden: [rows, length] bool, what the encoder must not see.
        predicted: [rows, length] bool, what is predicted (not always what is hidden).
        inclusion: [rows, length] float32, π, probability that the token is predicted; 0 where it cannot be.
        reference: [rows, length] float32, p, that probability under the scheme whose loss is estimated.
    """

    hidden: Tensor
    predicted: Tensor
    inclusion: Tensor
    reference: Tensor

    def mass(self) -> Tensor:
        """Σp, the denominator of the loss: a float64 scalar."""
        return self.reference.sum(dtype=torch.float64)

    def weights(self, places: Tensor) -> Tensor:
        """p/π at `places` (flat indices into [rows × length]), float32."""
        p = self.reference.flatten().index_select(0, places)
        return p / self.inclusion.flatten().index_select(0, places)

    def to(self, device: torch.device | str) -> MaskPlan:
        """The same plan on another device."""
        return replace(
            self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        )
