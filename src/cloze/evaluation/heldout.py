"""The held-out loss: fixed uniform masks, so that recipes, rates and resumed runs compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cloze.corruption.replace import Replace, Vocabulary, replace
from cloze.corruption.view import View
from cloze.data.batch import Batch
from cloze.data.loader import Loader
from cloze.errors import ClozeError
from cloze.masking.uniform import Uniform
from cloze.methods.base import select
from cloze.models.encoder import Encoder
from cloze.models.vocabulary_loss import vocabulary_loss

SEED = 20_081_005  # never the run's own: every run of every recipe is measured on the same masks
FORWARD_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class HeldOutResult:
    """What a model makes of the held-out text.

    Attributes:
        loss: mean negative log-likelihood of the masked tokens, in nats.
        accuracy: share of them for which the most probable token is the right one.
        losses: [N] float32, of each masked token, in a fixed order.
        correct: [N] bool.
        labels: [N] int64.
    """

    loss: float
    accuracy: float
    losses: Tensor
    correct: Tensor
    labels: Tensor


@dataclass(frozen=True)
class HeldOutSet:
    """Held-out batches with their masks drawn: `rate` of the tokens, all replaced by the mask token.

    Attributes:
        loader: of the held-out rows.
        vocabulary: of the tokenizer.
        rate: share of tokens that is masked.
        tokens: most slots that are used.
    """

    loader: Loader
    vocabulary: Vocabulary
    rate: float
    tokens: int

    def items(self) -> Iterator[tuple[Batch, View, Tensor, Tensor]]:
        """(batch, view, places, labels) of each forward pass, the same every time."""
        length = self.loader.layout.length
        available = sum(len(r) for r in self.loader.sources)
        rows = min(available, max(1, self.tokens // length))
        if rows == 0:
            raise ClozeError(
                "there is no held-out text: lower data.heldout.minimum or give data.heldout.path"
            )
        at_once = max(1, FORWARD_TOKENS // length)
        masking, corruption = Uniform(rate=self.rate), Replace(mask=1.0, random=0.0)
        # Rows are taken evenly over the whole held-out text, not from its start.
        places = np.linspace(0, available, rows, endpoint=False).astype(int).tolist()
        for start in range(0, rows, at_once):
            batch = self.loader.assemble(self.loader.rows_at(places[start : start + at_once]))
            plan = masking.plan(batch, self.rate, SEED)
            view = replace(batch, plan, corruption, self.vocabulary, SEED)
            at, labels, _ = select(plan, batch)
            yield batch, view, at, labels

    @torch.no_grad()
    def evaluate(
        self, encoder: Encoder, autocast: AbstractContextManager[object] | None = None
    ) -> HeldOutResult:
        """Loss and accuracy of an encoder; streamed, and logits exist at the masked tokens only."""
        training = encoder.training
        encoder.eval()
        layer = encoder.vocabulary
        device = layer.weight.device
        losses, correct, labels = [], [], []
        for _, view, places, wanted in self.items():
            wanted = wanted.to(device)
            with autocast or nullcontext():
                features = encoder(view.to(device), places.to(device)).features
                out = vocabulary_loss(features, layer.weight, layer.bias, wanted)
            losses.append(out.loss.cpu())
            correct.append((out.guess == wanted).cpu())
            labels.append(wanted.cpu())
        encoder.train(training)
        loss, right, label = torch.cat(losses), torch.cat(correct), torch.cat(labels)
        if loss.numel() == 0:
            raise ClozeError("no held-out token can be masked: is the held-out text empty?")
        return HeldOutResult(loss.double().mean().item(), right.double().mean().item(), loss, right, label)


def unigram_losses(labels: Tensor, counts: np.ndarray) -> Tensor:
    """[N] losses of the model that knows only how frequent each token is (add-one smoothing)."""
    frequency = torch.from_numpy(counts).double()
    log_p = ((frequency + 1.0) / (frequency.sum() + frequency.numel())).log()
    return -log_p[labels].float()
