"""The loss of one sequence under one mask, through any method; and what single tokens give.

The instrument draws its own masks: k of n tokens, each with p = π = k/n, so that the loss is the mean over
the masked tokens and every method's weights are 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cloze.data.batch import Batch
from cloze.masking.plan import MaskPlan
from cloze.methods.base import Method, Outcome, TokenWork
from cloze.models.encoder import Encoder
from cloze.random import Stream, bits
from cloze.variance import mask_size

SCORES = ("hidden_gradient", "residual", "loss")  # in the feedback of a method


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses of some sequences; callable as a `cloze.variance.Loss`.

    Attributes:
        method: in evaluation mode.
        sequences: batches of one row with one sample.
    """

    method: Method[Any]
    sequences: Sequence[Batch]

    @property
    def sizes(self) -> list[int]:
        """Maskable tokens of each sequence."""
        return [int(batch.maskable.sum()) for batch in self.sequences]

    def __call__(self, sequence: int, mask: Tensor, draw: int) -> Tensor:
        """Mean loss of the masked tokens; `mask` [n] bool, `draw` is the visit that names the corruption."""
        work = self.work(sequence, mask, draw)
        return self._total(work, self.method(work))

    def work(self, sequence: int, mask: Tensor, draw: int, predicted: Tensor | None = None) -> TokenWork:
        """A sequence with the maskable tokens `mask` hidden, and they or only `predicted` predicted."""
        batch = self.sequences[sequence]
        batch = replace(batch, visits=torch.full_like(batch.visits, draw))
        p = mask.sum().item() / max(1, mask.numel())
        probability = batch.maskable.to(torch.float32) * p
        hidden = self._place(batch, mask)
        shown = hidden if predicted is None else self._place(batch, predicted)
        return self.method.work(batch, MaskPlan(hidden, shown, probability, probability))

    def token(self, sequence: int, mask: Tensor, token: int) -> tuple[Tensor, dict[str, float]]:
        """The part of a mask's loss that is one token's, differentiable, and its `SCORES`."""
        predicted = torch.zeros_like(mask)
        predicted[token] = True
        work = self.work(sequence, mask, 0, predicted)
        outcome = self.method(work)
        scores = {name: float(outcome.feedback[name][0]) for name in SCORES if name in outcome.feedback}
        return self._total(work, outcome), scores

    def _total(self, work: TokenWork, outcome: Outcome) -> Tensor:
        weights, factors = self.method.weights(work), self.method.coefficients(1.0)
        parts = [factors[term] * total / weights[term].to(total) for term, total in outcome.sums.items()]
        return torch.stack(parts).sum()

    @staticmethod
    def _place(batch: Batch, mask: Tensor) -> Tensor:
        hidden = torch.zeros_like(batch.maskable)
        hidden[batch.maskable] = mask.to(hidden.device)
        return hidden


def mask_of(size: int, count: int, seed: int, sequence: int) -> Tensor:
    """[size] bool with `count` true, drawn for this sequence."""
    score = bits(seed, Stream.CHOICE, torch.tensor(sequence), torch.arange(size))
    mask = torch.zeros(size, dtype=torch.bool)
    mask[score.argsort(stable=True)[:count]] = True
    return mask


def sampled_losses(losses: Losses, encoder: Encoder, rate: float, draw: int) -> Tensor:
    """[N] losses of masked tokens, `rate` of each sequence, against labels that the model itself draws.

    Their gradients give Gauss-Newton directions (`cloze.variance.curvature_directions`). It is the masked
    language modelling loss of the encoder, whatever else a method adds to it.
    """
    layer, found = encoder.vocabulary, []
    generator = torch.Generator().manual_seed(draw)
    for sequence, size in enumerate(losses.sizes):
        mask = mask_of(size, mask_size(size, rate), draw, sequence)
        work = losses.work(sequence, mask, draw)
        features = encoder(work.views[0], work.places).features
        logits = functional.linear(features, layer.weight, layer.bias).float()
        labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).squeeze(1)
        found.append(functional.cross_entropy(logits, labels.to(logits.device), reduction="none"))
    return torch.cat(found)
