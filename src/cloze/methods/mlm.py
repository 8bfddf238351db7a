"""Masked language modelling: predict the hidden tokens."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cloze.config import Config
from cloze.corruption.replace import Replace, Vocabulary, replace
from cloze.data.batch import Batch
from cloze.masking.base import Evidence, Policy, Seen
from cloze.masking.plan import MaskPlan
from cloze.masking.rate import rate_at
from cloze.methods.base import Method, Outcome, Work, select
from cloze.models.encoder import Encoder
from cloze.models.vocabulary_loss import vocabulary_loss


class MlmObjective(Config):
    """The hidden tokens are predicted, scored by cross entropy weighted with p/π."""

    kind: Literal["mlm"] = "mlm"


class Mlm(Method):
    """Masked language modelling (BERT, 1810.04805, §3.1).

    Estimates, for any unbiased masking, L = E Σ_i m_i · −log P(x_i | corrupted x) / Σ_i p_i with m drawn
    from the reference scheme. Logits exist at the predicted tokens only.
    """

    coefficients: ClassVar[dict[str, float]] = {"mlm": 1.0}

    def __init__(
        self, encoder: Encoder, masking: Policy, corruption: Replace, vocabulary: Vocabulary, seed: int
    ):
        super().__init__()
        self.encoder = encoder
        self.masking = masking
        self.corruption = corruption
        self.vocabulary = vocabulary
        self.seed = seed
        self.norms = masking.learned

    @property
    def copies(self) -> int:
        return self.masking.copies

    def rate(self, progress: float) -> float:
        return self.masking.real(rate_at(self.masking.rate, progress))

    def prepare(self, batch: Batch, progress: float) -> Work:
        return self.work(batch, self.masking.plan(batch, self.rate(progress), self.seed))

    def work(self, batch: Batch, plan: MaskPlan) -> Work:
        view = replace(batch, plan, self.corruption, self.vocabulary, self.seed)
        return Work(batch, plan, (view,), *select(plan, batch))

    def weights(self, work: Work) -> dict[str, Tensor]:
        return {"mlm": work.plan.mass()}

    def forward(self, work: Work) -> Outcome:
        encoded = self.encoder(work.views[0], work.places)
        layer = self.encoder.vocabulary
        norms = self.norms and torch.is_grad_enabled()
        out = vocabulary_loss(
            encoded.features, layer.weight, layer.bias, work.labels, work.token_weights, norms=norms
        )
        feedback = {"loss": out.loss, "guess": out.guess}
        if norms:
            feedback |= {"residual": out.residual, "hidden_gradient": out.hidden_gradient}
        return Outcome({"mlm": out.total}, feedback)

    def observe(self, works: list[Work], feedback: list[dict[str, Tensor]]) -> None:
        if self.masking.learned:
            self.masking.observe(
                [
                    Seen(w.batch, w.plan, w.places, w.token_weights, f)
                    for w, f in zip(works, feedback, strict=True)
                ]
            )

    def scores(self, batch: Batch) -> Tensor | None:
        return self.masking.scores(batch)

    def decide(self, evidence: Evidence) -> list[str]:
        return self.masking.decide(evidence)

    def log(self) -> dict[str, float]:
        return self.masking.log()

    def export(self) -> PreTrainedModel:
        return self.encoder.model
