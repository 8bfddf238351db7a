"""Token prediction: one encoder whose outputs predict tokens of the text, by any of the four choices."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cloze.corruption.replace import Replace, Vocabulary, replace
from cloze.corruption.view import View
from cloze.data.batch import Batch
from cloze.masking.base import Evidence, Policy, Seen
from cloze.masking.nothing import nothing
from cloze.masking.plan import MaskPlan
from cloze.masking.rate import rate_at
from cloze.methods.base import Method, Outcome, Pass, Reading, Readout, TokenWork, select
from cloze.methods.objectives import MlmObjective, NextTokenObjective
from cloze.methods.visibility import AllVisible, CausalVisible, PrefixVisible
from cloze.models.encoder import Encoder
from cloze.models.twins import decoder_twin
from cloze.models.vocabulary_loss import vocabulary_loss

EXAMINED = Replace(mask=1.0, random=0.0)  # in the place of hidden held-out tokens, if the run knows the mask


class TokenPrediction(Method[TokenWork]):
    """Masked language modelling (BERT, 1810.04805, §3.1), next-token prediction, and what lies between.

    Estimates, for any unbiased masking, L = E Σ_i m_i · −log P(x_i | corrupted x) / Σ_i p_i with m drawn
    from the reference scheme; where every token is predicted, m = p = 1. Logits exist at the predicted tokens
    only. Its one term has the name of the objective.
    """

    def __init__(
        self,
        encoder: Encoder,
        masking: Policy,
        corruption: Replace,
        visibility: AllVisible | CausalVisible | PrefixVisible,
        objective: MlmObjective | NextTokenObjective,
        vocabulary: Vocabulary,
        seed: int,
    ):
        super().__init__()
        self.encoder = encoder
        self.masking = masking
        self.corruption = corruption
        self.visibility = visibility
        self.objective = objective
        self.vocabulary = vocabulary
        self.seed = seed
        self.norms = masking.learned
        self.sees = (visibility.kind,)
        self.measures = "masked tokens" if corruption.mask > 0.0 else "replaced tokens"
        self.everywhere = objective.everywhere
        if masking.rate == 0.0:
            self.drawn = "prefixes" if visibility.kind == "prefix" else ""
        if self.everywhere:
            self.measures = "next tokens" if visibility.kind != "prefix" else "tokens after a prefix"

    @property
    def copies(self) -> int:
        return self.masking.copies

    def coefficients(self, progress: float) -> dict[str, float]:
        return {self.objective.kind: 1.0}

    def rate(self, progress: float) -> float:
        return self.masking.real(rate_at(self.masking.rate, progress))

    def prepare(self, batch: Batch, progress: float) -> TokenWork:
        return self.work(batch, self.masking.plan(batch, self.rate(progress), self.seed))

    def work(self, batch: Batch, plan: MaskPlan) -> TokenWork:
        if self.masking.rate == 0.0:  # whoever drew the plan
            plan = nothing(batch)
        view = replace(batch, plan, self.corruption, self.vocabulary, self.seed)
        return self._predict(batch, plan, self.visibility.see(view, batch, self.seed))

    def examine(self, batch: Batch, plan: MaskPlan, seed: int) -> TokenWork:
        if self.everywhere:
            view = View.of(batch, batch.ids)
        else:
            corruption = EXAMINED if self.corruption.mask > 0.0 else self.corruption
            view = replace(batch, plan, corruption, self.vocabulary, seed)
        return self._predict(batch, plan, self.visibility.see(view, batch, seed))

    def _predict(self, batch: Batch, plan: MaskPlan, view: View) -> TokenWork:
        plan = self.objective.predicted(plan, batch, view)
        targets, labels, weights = select(plan, batch)
        places = targets - self.objective.shift
        density = 1.0 if self.everywhere else max(self.rate(0.0), self.rate(1.0))
        return TokenWork(batch, plan, (view,), places, targets, labels, weights, density)

    def weights(self, work: TokenWork) -> dict[str, Tensor]:
        return {self.objective.kind: work.plan.mass()}

    def forward(self, work: TokenWork) -> Outcome:
        encoded = self.encoder(work.views[0], work.places)
        layer = self.encoder.vocabulary
        norms = self.norms and torch.is_grad_enabled()
        out = vocabulary_loss(
            encoded.features, layer.weight, layer.bias, work.labels, work.token_weights, norms=norms
        )
        feedback = {"loss": out.loss, "guess": out.guess}
        if norms:
            feedback |= {"residual": out.residual, "hidden_gradient": out.hidden_gradient}
        return Outcome({self.objective.kind: out.total}, feedback)

    def passes(self, work: TokenWork) -> list[Pass]:
        return [Pass(self.encoder, view, int(work.predicted)) for view in work.views]

    def observe(self, works: list[TokenWork], feedback: list[dict[str, Tensor]]) -> None:
        if self.masking.learned:
            self.masking.observe(
                [
                    Seen(w.batch, w.plan, w.targets, w.token_weights, f)
                    for w, f in zip(works, feedback, strict=True)
                ]
            )

    def scores(self, batch: Batch) -> Tensor | None:
        return self.masking.scores(batch)

    def decide(self, evidence: Evidence) -> list[str]:
        return self.masking.decide(evidence)

    def log(self) -> dict[str, float]:
        return self.masking.log()

    @property
    def reading(self) -> Reading | None:
        if self.objective.kind == "mlm":
            return "masked" if self.visibility.kind == "all" else None
        return "causal" if self.visibility.kind != "all" else None

    @property
    def readings(self) -> dict[Readout, int]:
        shift = self.objective.shift
        if self.visibility.kind == "all":
            return {"masked" if self.corruption.mask > 0.0 else "replaced": shift}
        if self.objective.kind == "mlm":
            return {}
        return {"prefix": shift, "causal": shift} if self.visibility.kind == "prefix" else {"causal": shift}

    def export(self) -> PreTrainedModel:
        return decoder_twin(self.encoder.model) if self.reading == "causal" else self.encoder.model
