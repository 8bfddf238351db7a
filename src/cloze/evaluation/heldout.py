"""The held-out loss: fixed text and fixed uniform masks, so that recipes, rates and resumed runs compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cloze.auc import auc
from cloze.data.batch import Batch
from cloze.data.loader import Loader
from cloze.errors import ClozeError
from cloze.masking.plan import MaskPlan
from cloze.masking.uniform import Uniform
from cloze.methods.base import Method

SEED = 20_081_005  # never the run's own: every run of every recipe is measured on the same masks
FORWARD_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class HeldOutResult:
    """What a model makes of the held-out text; what its loss is of, its method knows (`Method.measures`).

    Attributes:
        loss: mean negative log-likelihood of what is predicted, in nats.
        accuracy: share of it for which the most probable guess is the right one.
        losses: [N] float32, of each prediction, in a fixed order.
        correct: [N] bool.
        labels: [N] int64.
        auc: of two classes; None: tokens are predicted.
    """

    loss: float
    accuracy: float
    losses: Tensor
    correct: Tensor
    labels: Tensor
    auc: float | None = None

    def scores(self) -> dict[str, float]:
        """Loss and accuracy; of two classes AUC and the share of the second, for accuracy says little."""
        if self.auc is None:
            return {"loss": self.loss, "accuracy": self.accuracy}
        return {"loss": self.loss, "auc": self.auc, "replaced": self.labels.double().mean().item()}


@dataclass(frozen=True)
class HeldOutSet:
    """Held-out batches with their masks drawn; what a method makes of them is its own (`Method.examine`).

    Attributes:
        loader: of the held-out rows.
        rate: share of tokens that is masked.
        tokens: most slots that are used.
    """

    loader: Loader
    rate: float
    tokens: int

    def items(self) -> Iterator[tuple[Batch, MaskPlan]]:
        """Batch and masks of each forward pass, the same every time."""
        length = self.loader.layout.length
        available = sum(len(r) for r in self.loader.sources)
        rows = min(available, max(1, self.tokens // length))
        if rows == 0:
            raise ClozeError(
                "there is no held-out text: lower data.heldout.minimum or give data.heldout.path"
            )
        at_once = max(1, FORWARD_TOKENS // length)
        masking = Uniform(rate=self.rate)
        # Rows are taken evenly over the whole held-out text, not from its start.
        places = np.linspace(0, available, rows, endpoint=False).astype(int).tolist()
        for start in range(0, rows, at_once):
            batch = self.loader.assemble(self.loader.rows_at(places[start : start + at_once]))
            yield batch, masking.plan(batch, self.rate, SEED)

    @torch.no_grad()
    def evaluate(
        self, method: Method[Any], autocast: AbstractContextManager[object] | None = None
    ) -> HeldOutResult:
        """Loss and accuracy of a method; streamed, and logits exist at the predicted tokens only."""
        training = method.training
        method.eval()
        device = next(method.parameters()).device
        losses, correct, labels, logits = [], [], [], []
        for batch, plan in self.items():
            work = method.examine(batch.to(device), plan.to(device), SEED)
            with autocast or nullcontext():
                feedback = method(work).feedback
            wanted = feedback["labels"] if "labels" in feedback else work.labels  # noqa: SIM401
            losses.append(feedback["loss"].cpu())
            correct.append((feedback["guess"] == wanted).cpu())
            labels.append(wanted.cpu())
            if not method.predicts_tokens:
                logits.append(feedback["logits"].cpu())
        method.train(training)
        loss, right, label = torch.cat(losses), torch.cat(correct), torch.cat(labels)
        if loss.numel() == 0:
            raise ClozeError("no held-out token can be predicted: is the held-out text empty?")
        area = auc(torch.cat(logits), label > 0) if logits else None
        mean, share = loss.double().mean().item(), right.double().mean().item()
        return HeldOutResult(mean, share, loss, right, label, area)


def unigram_losses(labels: Tensor, counts: np.ndarray) -> Tensor:
    """[N] losses of the model that knows only how frequent each token is (add-one smoothing)."""
    frequency = torch.from_numpy(counts).double()
    log_p = ((frequency + 1.0) / (frequency.sum() + frequency.numel())).log()
    return -log_p[labels].float()
