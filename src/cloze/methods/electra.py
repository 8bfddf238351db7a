"""ELECTRA: a small generator fills the hidden places, and the model finds what it wrote."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cloze.corruption.generator import Generator, sample
from cloze.corruption.replace import Replace, Vocabulary
from cloze.corruption.replace import replace as corrupt
from cloze.data.batch import Batch
from cloze.masking.base import Policy
from cloze.masking.plan import MaskPlan
from cloze.methods.base import Outcome, TokenWork, select
from cloze.methods.detection import MEASURES, TERM, Detection, detection_loss, judge, judging
from cloze.methods.objectives import DetectionObjective
from cloze.models.encoder import Encoder, isolate
from cloze.models.generator import build_generator
from cloze.models.vocabulary_loss import vocabulary_loss
from cloze.random import Stream, uniform

MLM = "mlm"
MASKS = Replace(mask=1.0, random=0.0)  # what the generator sees
STEP = 256  # in static shapes the hidden places are filled up to a multiple of this


@dataclass(frozen=True, slots=True)
class ElectraWork(TokenWork):
    """Of the first view the generator predicts the hidden tokens; labels are known when it has run.

    Attributes:
        hidden: [M] int64, flat indices of the hidden tokens; 0 in spare slots.
        originals: [M] int64, their ids; 0 in spare slots.
        hidden_weights: [M] float32, p/π; 0 in spare slots.
        draws: [M] float64, uniform in [0, 1), one for each sample of the generator.
    """

    hidden: Tensor
    originals: Tensor
    hidden_weights: Tensor
    draws: Tensor

    def padded(self, slots: int, runs: int, dense: bool) -> ElectraWork:
        """As in `TokenWork`; the hidden places get spare slots of their own."""
        work = TokenWork.padded(self, slots, runs, dense)
        assert isinstance(work, ElectraWork)
        spare = (0, -self.hidden.numel() % STEP)
        return replace(
            work,
            hidden=F.pad(self.hidden, spare),
            originals=F.pad(self.originals, spare),
            hidden_weights=F.pad(self.hidden_weights, spare),
            draws=F.pad(self.draws, spare),
        )


class Electra(Detection):
    """Replaced-token detection with a generator that learns beside (ELECTRA, 2003.10555).

    Two networks that share their token embeddings: the generator is trained by its own masked language
    modelling (term `mlm`), the model by what it detects (term `detection`, weighted by `objective.weight`).
    Sampling has no gradient. A sample that equals the original counts as original.
    """

    measures = f"{MEASURES}, by its generator"

    def __init__(
        self,
        encoder: Encoder,
        masking: Policy,
        corruption: Generator,
        objective: DetectionObjective,
        vocabulary: Vocabulary,
        seed: int,
    ):
        super().__init__(encoder, masking, MASKS, objective, vocabulary, seed)
        self.sampling = corruption
        self.generator = isolate(build_generator(encoder.model, corruption.width, corruption.depth, seed))

    def coefficients(self, progress: float) -> dict[str, float]:
        return {MLM: 1.0, TERM: self.objective.weight}

    def _judge(self, batch: Batch, plan: MaskPlan, seed: int) -> ElectraWork:
        view = corrupt(batch, plan, MASKS, self.vocabulary, seed)
        judged = self.objective.predicted(plan, batch, view)
        density = self.objective.density(self.rate(0.0), self.rate(1.0))
        known = judging(batch, judged, view, density)
        hidden, originals, weights = select(plan, batch)
        sample_of = batch.segments.flatten()[hidden]
        name = (batch.keys[sample_of], batch.visits[sample_of], batch.index.flatten()[hidden])
        draws = uniform(seed, Stream.SAMPLE, *name)
        labels = torch.zeros_like(known.labels)
        return ElectraWork(
            batch, plan, (view,), known.places, known.targets, labels, known.token_weights, density,
            hidden, originals, weights, draws,
        )  # fmt: skip

    def weights(self, work: TokenWork) -> dict[str, Tensor]:
        mass = work.plan.mass()
        judged = work.token_weights.sum(dtype=torch.float64) if self.objective.everywhere else mass
        return {MLM: mass, TERM: judged}

    def forward(self, work: TokenWork) -> Outcome:
        assert isinstance(work, ElectraWork)
        view, layer = work.views[0], self.generator.vocabulary
        features = self.generator(view, work.hidden).features
        mlm = vocabulary_loss(features, layer.weight, layer.bias, work.originals, work.hidden_weights)
        tokens = sample(
            features,
            layer.weight,
            layer.bias,
            work.draws,
            self.vocabulary.ordinary.to(view.ids.device),
            self.sampling.temperature,
        )
        clean = work.batch.ids.flatten()
        real = work.hidden_weights > 0
        # Spare slots write behind the end.
        at = torch.where(real, work.hidden, clean.numel())
        seen = F.pad(clean, (0, 1)).index_copy(0, at, tokens)[:-1]
        labels = (seen != clean).index_select(0, work.places).to(torch.int64)
        labels = torch.where(work.token_weights > 0, labels, 0)
        logits = judge(self.encoder, self.detector, replace(view, ids=seen.view_as(view.ids)), work.places)
        total, feedback = detection_loss(logits, labels, work.token_weights)
        feedback["seen"] = seen.index_select(0, work.places)
        return Outcome({MLM: mlm.total, TERM: total}, feedback)

    def companions(self) -> dict[str, PreTrainedModel]:
        return {"generator": self.generator.model}
