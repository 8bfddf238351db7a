"""The proposal network of MAPNet: from the clean tokens to how large each one's gradient would be.

It must be cheap beside the model: the model's own token embeddings (no gradient into them), a narrow
projection, two layers that mix near neighbours, one number per token. Its parameters and its Adam
moments are buffers, so they are saved with the run and left alone by the main optimiser and by clipping.
The paper's network could not be checked (abstract only); this one is ours.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from cloze.data.batch import Batch
from cloze.masking.base import Networks, Seen
from cloze.processes import summed
from cloze.random import Stream, integer

Score = Literal["hidden_gradient", "residual", "product", "loss"]
LAYERS, REACH = 2, 2  # each layer sees two tokens to either side
BETA1, BETA2, TINY = 0.9, 0.99, 1e-8


def observed(seen: Seen, score: Score) -> Tensor:
    """[N] the score of each predicted token, from the free outputs of the vocabulary loss."""
    if score == "product":
        return seen.scores["hidden_gradient"] * seen.scores["residual"]
    return seen.scores[score]


class Proposal(nn.Module):
    """Predicts the mean square of a score at every token, and learns from the tokens that were predicted.

    Args:
        networks: of the method.
        score: what it learns.
        width: of its layers; None is an eighth of the embeddings' width, at least 32.
        learning_rate: of its Adam.
    """

    theta: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor

    def __init__(
        self,
        networks: Networks,
        score: Score = "hidden_gradient",
        width: int | None = None,
        learning_rate: float = 3e-3,
    ):
        super().__init__()
        self.embed, self.score, self.learning_rate = networks.embed, score, learning_rate
        inner = width or max(32, networks.width // 8)
        reach = 2 * REACH + 1
        self.shapes = [(networks.width, inner), (inner,)]
        self.shapes += [(reach, inner), (inner, inner)] * LAYERS
        self.shapes += [(inner,), (1,)]
        generator = torch.Generator().manual_seed(integer(networks.seed, Stream.STEP, -1))
        parts = [torch.randn(s, generator=generator) / math.sqrt(s[0]) for s in self.shapes]
        parts[1].zero_()
        parts[-2].zero_()  # the first prediction is the same for all tokens
        parts[-1].fill_(0.1)  # at 0 its first gradient would be 0 but for rounding, which Adam blows up
        flat = torch.cat([p.flatten() for p in parts])
        self.register_buffer("theta", flat)
        self.register_buffer("first", torch.zeros_like(flat))
        self.register_buffer("second", torch.zeros_like(flat))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, theta: Tensor, batch: Batch) -> Tensor:
        """[rows, length] logarithm of the predicted mean square, up to a constant."""
        parts = theta.split([math.prod(s) for s in self.shapes])
        w = [p.view(s) for p, s in zip(parts, self.shapes, strict=True)]
        with torch.no_grad():
            tokens = self.embed(batch.ids).float()
            tokens = nn.functional.layer_norm(tokens, tokens.shape[-1:])
        at, size = _apart(batch)
        x = tokens.new_zeros(size, w[1].numel())
        x = x.index_copy(0, at, nn.functional.gelu(tokens @ w[0] + w[1]).flatten(0, 1))
        text = tokens.new_zeros(size, 1).index_fill_(0, at, 1.0)
        for layer in range(LAYERS):
            near, mix = w[2 + 2 * layer], w[3 + 2 * layer]
            wide = nn.functional.pad(x, (0, 0, REACH, REACH))
            mixed = wide[:size] * near[0]
            for i in range(1, 2 * REACH + 1):
                mixed = torch.addcmul(mixed, wide[i : i + size], near[i])
            x = torch.addcmul(x, nn.functional.gelu(mixed) @ mix, text)
        found = (x @ w[-2] + w[-1]).clamp(-8.0, 8.0)
        return found.index_select(0, at).view_as(batch.ids)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """[rows, length] float64, the root of the predicted mean square of the score."""
        with torch.autocast(batch.ids.device.type, enabled=False):
            return (0.5 * self(self.theta, batch)).double().exp()

    def learn(self, seen: list[Seen]) -> list[Tensor]:
        """One Adam step towards the squares that were observed.

        The loss is r·exp(−f) + f with r the square relative to its mean over the step: least where
        exp(f) is the *mean* square given the text (of a logarithm it would be the geometric mean). A
        proposal sees the text before it is masked, so this mean over contexts is all it can know.

        Returns:
            for each batch, the prediction made before this step, as `predict` gives it.
        """
        leaf = self.theta.detach().requires_grad_()
        loss, predictions = leaf.new_zeros(()), []
        squares = [observed(s, self.score).detach().float() ** 2 for s in seen]
        known = [(s.weights > 0).float() for s in seen]
        none = leaf.detach().new_zeros(())
        count, whole = summed(
            sum((k.sum() for k in known), none),
            sum(((k * q).sum() for k, q in zip(known, squares, strict=True)), none),
        )
        mean = whole / count
        with torch.enable_grad(), torch.autocast(leaf.device.type, enabled=False):
            for s, square, k in zip(seen, squares, known, strict=True):
                f = self(leaf, s.batch)
                predictions.append((0.5 * f.detach()).double().exp())
                at = f.flatten().index_select(0, s.places)
                loss = loss + (k * (square / mean * (-at).exp() + at)).sum() / count
            gradient = torch.autograd.grad(loss, leaf)[0] if seen else torch.zeros_like(leaf)
        (gradient,) = summed(gradient)
        self.steps += 1
        self.first.lerp_(gradient, 1.0 - BETA1)
        self.second.lerp_(gradient.square(), 1.0 - BETA2)
        step = self.steps.float()
        size = (self.second / (1.0 - BETA2**step)).sqrt() + TINY
        # A gradient that is not finite (nothing predicted, a loss that overflows) must not stay.
        change = (self.first / (1.0 - BETA1**step)) / size
        if bool(torch.isfinite(change).all()):
            self.theta.add_(change, alpha=-self.learning_rate)
        else:
            self.first.nan_to_num_(0.0, 0.0, 0.0)
            self.second.nan_to_num_(0.0, 0.0, 0.0)
        return predictions


def _apart(batch: Batch) -> tuple[Tensor, int]:
    """Places [rows · length] of the tokens in one line with gaps between samples, and the line's length.

    With gaps of `REACH` empty places, neighbours of another sample are never mixed in.
    """
    flat = batch.segments.flatten()
    fresh = torch.zeros_like(flat)
    fresh[1:] = flat[1:] != flat[:-1]
    most = batch.samples + batch.segments.shape[0]  # no more changes than samples and stretches of padding
    return torch.arange(flat.numel(), device=flat.device) + REACH * fresh.cumsum(
        0
    ), flat.numel() + REACH * most
