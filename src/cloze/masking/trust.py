"""How far a proposal is let in: as far as what it saves, measured on the masks just drawn.

At the start of training the gradients of all tokens are about equally large, and any π but the uniform
one only adds variance (docs/lab-diary.md). So the proposal is drawn from with an exponent between 0
(uniform) and 1, the one whose measured variance is least.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cloze.masking.base import Seen
from cloze.processes import summed

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
DECAY = 0.98  # of the running sums, per step
WARM = 100  # steps before anything is believed
MARGIN = 0.005  # smallest saving that counts: less is not worth weights that differ


class Trust(nn.Module):
    """Running estimate of what a proposal saves at each exponent.

    For one sample with scores t, a proposal q (mean 1 over its tokens) gives the second moment E[t²/q]
    where uniform masking gives E[t²]; the first is estimated from the predicted tokens with their weights
    p/π, against predictions made before these tokens were seen. q is what is drawn from: mixed with uniform.

    Args:
        epsilon: the uniform share of the mixture.
    """

    moments: Tensor
    steps: Tensor

    def __init__(self, epsilon: float):
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("moments", torch.zeros(len(POWERS), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def update(self, seen: list[Seen], predictions: list[Tensor], squares: list[Tensor]) -> None:
        """Take in one step: `predictions` [rows, length] and the observed `squares` [N] of each batch."""
        found = torch.zeros_like(self.moments)
        for s, score, square in zip(seen, predictions, squares, strict=True):
            maskable, samples = s.batch.maskable, s.batch.samples
            sample = s.batch.segments[maskable]
            at = s.places[s.weights > 0]
            mass = (s.weights.double() * square.double())[s.weights > 0]
            for i, power in enumerate(POWERS):
                q = score.clamp(min=1e-6) ** power
                total = q.new_zeros(samples).index_add_(0, sample, q[maskable])
                mean = total / torch.bincount(sample, minlength=samples).clamp(min=1)
                q = self.epsilon + (1.0 - self.epsilon) * q / mean[s.batch.segments.clamp(min=0)]
                found[i] += (mass / q.flatten()[at]).sum()
        (found,) = summed(found)
        if bool(torch.isfinite(found).all()):
            self.moments.mul_(DECAY).add_(found)
            self.steps += 1

    def savings(self) -> Tensor:
        """[powers] float64, the share of the second moment that each exponent saves; 0 before any step."""
        saved = 1.0 - self.moments / self.moments[0].clamp(min=1e-300)
        return torch.where(self.moments[0] > 0.0, saved, 0.0)

    def power(self) -> float:
        """The exponent to draw with: 0 until a saving is known, and when it is gone."""
        if int(self.steps) < WARM:
            return 0.0
        savings = self.savings()
        best = int(savings.argmax())
        return POWERS[best] if float(savings[best]) > MARGIN else 0.0
