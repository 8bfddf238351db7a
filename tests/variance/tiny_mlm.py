"""A masked language model so small that all masks can be enumerated, and losses with known gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn

from cloze.variance import Loss, enumerate_masks

WORDS, LENGTH, HIDDEN, SEQUENCES = 12, 7, 2, 5  # token 0 is the mask token
RATE = HIDDEN / LENGTH


class TinyMLM(nn.Module):
    """One layer of attention, in float64; logits [LENGTH, WORDS] of one sequence."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)

        def weights(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.7 * torch.randn(*shape, generator=draw, dtype=torch.float64))

        self.embedding, self.place, self.query = weights(WORDS, 6), weights(LENGTH, 6), weights(6, 6)
        self.mix, self.head = weights(6, 6), weights(6, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding[ids] + self.place
        seen = ((x @ self.query) @ x.T).softmax(1) @ x
        return torch.tanh((x + seen) @ self.mix) @ self.head


@cache
def tiny() -> tuple[TinyMLM, Tensor]:
    """The model, and its text [SEQUENCES, LENGTH]."""
    text = torch.randint(1, WORDS, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(4))
    return TinyMLM(), text


def tiny_loss(sequence: int, mask: Tensor, draw: int = 0) -> Tensor:
    """Mean cross-entropy of the masked tokens."""
    model, text = tiny()
    ids = text[sequence]
    return nn.functional.cross_entropy(model(ids.where(~mask, 0))[mask], ids[mask])


@cache
def all_gradients() -> Tensor:
    """[SEQUENCES, masks, P]: the gradient of every sequence under every mask."""
    parameters = list(tiny()[0].parameters())

    def gradient(sequence: int, mask: Tensor) -> Tensor:
        found = torch.autograd.grad(tiny_loss(sequence, mask), parameters)
        return torch.cat([g.reshape(-1) for g in found])

    masks = enumerate_masks(LENGTH, HIDDEN)
    return torch.stack([torch.stack([gradient(s, mask) for mask in masks]) for s in range(SEQUENCES)])


def loss_of(gradient: Callable[[int, Tensor, int], Tensor], width: int) -> tuple[Loss, Mapping[str, Tensor]]:
    """A loss that has this gradient [width], and its parameters."""
    theta = torch.zeros(width, dtype=torch.float64, requires_grad=True)
    return lambda sequence, mask, draw: theta @ gradient(sequence, mask, draw), {"theta": theta}


@cache
def looked_up() -> tuple[Loss, Mapping[str, Tensor]]:
    """The tiny model's loss by its enumerated gradients: the same decomposition, much faster."""
    table = all_gradients()
    number = {tuple(mask.tolist()): i for i, mask in enumerate(enumerate_masks(LENGTH, HIDDEN))}
    return loss_of(lambda sequence, mask, draw: table[sequence, number[tuple(mask.tolist())]], table.shape[2])


class Urn:
    """Sequences of `n` tokens, each with a gradient of its own whatever else is masked: all terms are known.

    g = mean + shift of the sequence + mean over masked tokens of their vectors, each N(0, 1) in `width`
    dimensions, times `signal`, `between` and 1.
    """

    width, n, k = 6, 8, 2

    def __init__(self, seed: int, sequences: int, signal: float = 1.0, between: float = 0.3) -> None:
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, self.width, generator=draw, dtype=torch.float64)

        tokens, shift = normal(sequences, self.n), between * normal(sequences, 1) + signal
        self.tokens = tokens + shift
        self.sizes, self.rate = [self.n] * sequences, self.k / self.n
        self.loss, self.parameters = loss_of(lambda i, mask, _: self.tokens[i, mask].mean(0), self.width)
        within = float(self.width)
        self.truth = {
            "data": self.width * between**2 + within / self.n,
            "mask": within * (1 / self.k - 1 / self.n),
            "total": self.width * between**2 + within / self.k,
            "signal": self.width * signal**2,
            "covariance": -within / self.n,
            "break_even": self.width * between**2,
        }
        self.truth["share"] = self.truth["mask"] / self.truth["total"]
        if signal:
            self.truth["noise_scale"] = self.truth["total"] / self.truth["signal"]
