"""Replaced-token detection: of every token of a corrupted text, is it the original one?

Where masked language modelling learns from the hidden tokens alone, here every token gives a signal, and the
head has one output in place of a vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cloze.auc import auc
from cloze.corruption.clusters import ClusterTable
from cloze.corruption.replace import Replace, Vocabulary, replace
from cloze.corruption.view import View
from cloze.data.batch import Batch
from cloze.masking.base import Policy
from cloze.masking.plan import MaskPlan
from cloze.masking.rate import rate_at
from cloze.methods.base import Method, Outcome, Pass, Reading, TokenWork
from cloze.methods.objectives import DetectionObjective
from cloze.models.detector import Detector
from cloze.models.encoder import Encoder

TERM = "detection"
MEASURES = "replaced or not"


class Detection(Method[TokenWork]):
    """One encoder that tells replaced tokens from original ones (RTS, 2309.08272, §3.2).

    A token that is drawn equal to the one in whose place it is put counts as original. The loss is binary
    cross entropy, its mean over all tokens of the text, or over the hidden ones alone (`objective.on`).
    """

    predicts_tokens = False
    everywhere = True
    measures = MEASURES

    def __init__(
        self,
        encoder: Encoder,
        masking: Policy,
        corruption: Replace | ClusterTable,
        objective: DetectionObjective,
        vocabulary: Vocabulary,
        seed: int,
    ):
        super().__init__()
        self.encoder = encoder
        self.detector = Detector(encoder.model, seed)
        self.masking = masking
        self.corruption = corruption
        self.objective = objective
        self.vocabulary = vocabulary
        self.seed = seed
        if isinstance(corruption, ClusterTable):
            self.measures = f"{MEASURES}, by clusters"
        self.verdicts: list[tuple[Tensor, Tensor]] = []
        """Logits and labels of the last step, for the log."""

    @property
    def copies(self) -> int:
        return self.masking.copies

    def coefficients(self, progress: float) -> dict[str, float]:
        return {TERM: 1.0}

    def rate(self, progress: float) -> float:
        return self.masking.real(rate_at(self.masking.rate, progress))

    def prepare(self, batch: Batch, progress: float) -> TokenWork:
        return self.work(batch, self.masking.plan(batch, self.rate(progress), self.seed))

    def work(self, batch: Batch, plan: MaskPlan) -> TokenWork:
        return self._judge(batch, plan, self.seed)

    def examine(self, batch: Batch, plan: MaskPlan, seed: int) -> TokenWork:
        return self._judge(batch, plan, seed)

    def _judge(self, batch: Batch, plan: MaskPlan, seed: int) -> TokenWork:
        if isinstance(self.corruption, ClusterTable):
            view = self.corruption.corrupt(batch, plan, seed)
        else:
            view = replace(batch, plan, self.corruption, self.vocabulary, seed)
        plan = self.objective.predicted(plan, batch, view)
        return judging(batch, plan, view, self.objective.density(self.rate(0.0), self.rate(1.0)))

    def weights(self, work: TokenWork) -> dict[str, Tensor]:
        return {TERM: work.plan.mass()}

    def forward(self, work: TokenWork) -> Outcome:
        logits = judge(self.encoder, self.detector, work.views[0], work.places)
        total, feedback = detection_loss(logits, work.labels, work.token_weights)
        feedback["seen"] = work.views[0].ids.flatten().index_select(0, work.places)
        return Outcome({TERM: total}, feedback)

    def passes(self, work: TokenWork) -> list[Pass]:
        return [Pass(self.encoder, view, 0) for view in work.views]

    def observe(self, works: list[TokenWork], feedback: list[dict[str, Tensor]]) -> None:
        self.verdicts = verdicts(works, feedback)
        if isinstance(self.corruption, ClusterTable):
            found = [replaced(work, one) for work, one in zip(works, feedback, strict=True)]
            old, new = ([x[i] for x in found] for i in (0, 1))
            self.corruption.observe(_joined(old), _joined(new), _joined([x[2] for x in found]).bool())

    def log(self) -> dict[str, float]:
        skew = self.corruption.log() if isinstance(self.corruption, ClusterTable) else {}
        return told(self.verdicts) | skew

    @property
    def reading(self) -> Reading:
        return "detection"

    def export(self) -> PreTrainedModel:
        return self.detector.export(self.encoder.model.base_model)  # type: ignore[arg-type]


def _joined(parts: list[Tensor]) -> Tensor:
    """One after the other; empty where this process has no row of the method."""
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def judging(batch: Batch, plan: MaskPlan, view: View, density: float) -> TokenWork:
    """The work of judging the `predicted` tokens of a plan in a view with the batch's own layout.

    Labels are 1 where the view has another token than the batch.
    """
    places = plan.predicted.flatten().nonzero().squeeze(1)
    changed = (view.ids != batch.ids).flatten().index_select(0, places).to(torch.int64)
    return TokenWork(batch, plan, (view,), places, places, changed, plan.weights(places), density)


def judge(encoder: Encoder, detector: Detector, view: View, places: Tensor) -> Tensor:
    """[N] logits of the tokens at `places` [N], flat indices into the view; above 0 means replaced."""
    return detector(encoder.hidden(view).flatten(0, 1).index_select(0, places))


def detection_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ weight · binary cross entropy, and the feedback of a forward pass.

    Args:
        logits: [N]. labels: [N] int64, 1 for tokens that are not the original ones. weights: [N].

    Returns:
        The scalar; {"loss", "guess", "labels", "logits": [N]}, without gradients.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    found = {"loss": loss.detach(), "logits": logits.detach(), "labels": labels}
    return (loss * weights).sum(), found | {"guess": (found["logits"] > 0).to(torch.int64)}


def verdicts(works: list[TokenWork], feedback: list[dict[str, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Logits and labels of a step's micro-batches, without the spare slots."""
    found = []
    for work, one in zip(works, feedback, strict=True):
        real = work.token_weights > 0
        found.append((one["logits"][real], one["labels"][real]))
    return found


def replaced(work: TokenWork, feedback: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Of the replaced tokens of a batch: original ids, ids in their place, and whether none was noticed."""
    those = (feedback["labels"] > 0) & (work.token_weights > 0)
    old = work.batch.ids.flatten()[work.targets[those]]
    return old, feedback["seen"][those], feedback["logits"][those] <= 0


def told(found: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """For the log: the share of the judged tokens that are replaced, and the AUC."""
    if not found:
        return {}
    logits, labels = (torch.cat(list(x)) for x in zip(*found, strict=True))
    if labels.numel() == 0:
        return {}
    numbers = {"replaced": labels.double().mean().item(), "auc": auc(logits, labels > 0)}
    return {name: value for name, value in numbers.items() if value == value}
