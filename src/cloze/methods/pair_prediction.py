"""Text structure as a second objective: do two spans belong to the same paragraph, or document?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from cloze.corruption.pairs import Pairs, make_pairs
from cloze.corruption.replace import Vocabulary
from cloze.data.batch import Batch
from cloze.errors import ClozeError
from cloze.masking.plan import MaskPlan
from cloze.methods.base import Method, Outcome, Pass, Reading, Work
from cloze.methods.objectives import StructureObjective
from cloze.models.encoder import Encoder
from cloze.processes import summed

RECENT = 0.95  # what a step leaves of the running share of right answers


@dataclass(frozen=True, slots=True)
class PairWork(Work):
    """Pairs of the batch's text.

    Attributes:
        pairs: what is asked, with its view.
    """

    pairs: Pairs

    @property
    def predicted(self) -> Tensor:
        return torch.tensor(self.pairs.labels.numel(), device=self.pairs.labels.device)


class PairPrediction(Method[PairWork]):
    """Structural objectives (Di Liello, 2309.08272): same paragraph, sentence in paragraph, same document.

    Binary cross entropy over pairs that are half positive, and whose negatives are of the same document where
    possible (`corruption.pairs`). The mean is over pairs. The linear head on the first token's output is
    trained with the encoder and saved in checkpoints; it is no part of the model that goes out.
    """

    measures = "pairs"

    def __init__(self, encoder: Encoder, objective: StructureObjective, vocabulary: Vocabulary, seed: int):
        super().__init__()
        if vocabulary.first is None or vocabulary.separator is None:
            raise ClozeError(
                "objective.kind=structure: the tokenizer has no [CLS] or no [SEP] to put around two spans; "
                "use another tokenizer"
            )
        self.encoder, self.objective = encoder, objective
        self.vocabulary, self.seed = vocabulary, seed
        # One output: a vector, so that optimisers for matrices leave it alone.
        self.weight = nn.Parameter(torch.zeros(encoder.model.config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(1))  # a scalar could not be sharded
        self.register_buffer("right", torch.tensor(0.5, dtype=torch.float64))
        self.right: Tensor

    def coefficients(self, progress: float) -> dict[str, float]:
        return {self.objective.task: 1.0}

    def rate(self, progress: float) -> float:
        return 0.0

    def prepare(self, batch: Batch, progress: float) -> PairWork:
        pairs = make_pairs(
            batch,
            self.objective.task,
            self.vocabulary,
            self.seed,
            self.encoder.longest(),
            alone=not self.encoder.isolates,
        )
        return PairWork(batch, pairs)

    def work(self, batch: Batch, plan: MaskPlan) -> PairWork:
        return self.prepare(batch, 1.0)

    def weights(self, work: PairWork) -> dict[str, Tensor]:
        return {self.objective.task: work.predicted.double()}

    def forward(self, work: PairWork) -> Outcome:
        pairs = work.pairs
        hidden = self.encoder.hidden(pairs.view).flatten(0, 1)[pairs.places]
        logits = (hidden.float() * self.weight.float()).sum(1) + self.bias.float()
        loss = F.binary_cross_entropy_with_logits(logits, pairs.labels.float(), reduction="none")
        feedback = {"loss": loss.detach(), "guess": (logits.detach() > 0).to(torch.int64)}
        return Outcome({self.objective.task: loss.sum()}, feedback)

    def passes(self, work: PairWork) -> list[Pass]:
        return [Pass(self.encoder, work.pairs.view, 0)]

    def observe(self, works: list[PairWork], feedback: list[dict[str, Tensor]]) -> None:
        """The running share of right answers, for the log."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.right.device)
        for w, f in zip(works, feedback, strict=True):
            right = f["guess"] == w.pairs.labels
            sums += torch.stack([right.sum().double(), sums.new_tensor(right.numel())])
        (sums,) = summed(sums)
        if sums[1]:
            self.right.mul_(RECENT).add_((1.0 - RECENT) * sums[0] / sums[1])

    def log(self) -> dict[str, float]:
        return {"right": self.right.item()}

    @property
    def reading(self) -> Reading | None:
        return None

    def export(self) -> PreTrainedModel:
        return self.encoder.model
