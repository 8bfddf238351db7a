"""A small masked language model writes what stands in the place of hidden tokens: plausible, often right."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cloze.config import Config

ROWS = 256  # tokens whose probabilities exist at one time


class Generator(Config):
    """Hidden tokens become samples of a masked language model that is trained beside (2003.10555, §3).

    `width` and `depth` are its shares of the model's. Where token embeddings are as wide as the model (all
    families but electra) `width` must be 1, for both share them.
    """

    kind: Literal["generator"] = "generator"
    width: float = Field(0.25, gt=0.0, le=1.0, description="of its layers, as a share of the model's")
    depth: float = Field(1.0, gt=0.0, le=1.0, description="number of its layers, as a share of the model's")
    temperature: float = Field(1.0, gt=0.0, description="of sampling; smaller: nearer to its first guess")

    def describe(self) -> str:
        """A word for tables."""
        return "generator"


@torch.no_grad()
def sample(
    features: Tensor, weight: Tensor, bias: Tensor | None, draws: Tensor, ordinary: Tensor, temperature: float
) -> Tensor:
    """[N] int64, a token for each place, drawn from a masked language model's distribution.

    Args:
        features: [N, width], what its head gives. weight: [vocabulary, width]; bias: [vocabulary] or None.
        draws: [N] float64 in [0, 1), one uniform number for each.
        ordinary: [n] int64, the ids that may be drawn: no specials.
        temperature: that logits are divided by.
    """
    weight = weight.index_select(0, ordinary).to(features.dtype)
    bias = None if bias is None else bias.index_select(0, ordinary).to(features.dtype)
    found = [draws.new_zeros(0, dtype=torch.int64)]
    for rows, u in zip(features.split(ROWS), draws.split(ROWS), strict=True):
        logits = torch.nn.functional.linear(rows, weight, bias)
        below = (logits.float() / temperature).softmax(-1).cumsum(-1)
        goal = u.to(below.dtype)[:, None] * below[:, -1:]
        found.append(torch.searchsorted(below, goal, right=True).squeeze(1))
    return ordinary[torch.cat(found).clamp(max=ordinary.numel() - 1)]
