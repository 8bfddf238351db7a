"""Rare tokens are hidden more often."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking.base import Learner, Masking, Networks, Policy
from cloze.masking.plan import MaskPlan
from cloze.masking.unequal import proposal_draw, unit_scores
from cloze.masking.units import UnitKind, cut


class Frequency(Masking):
    """Units are drawn in proportion to count^(−power) of their tokens in the training text.

    The idea of word2vec's subsampling (1310.4546, §2.3) for masks. Not unbiased: rare tokens weigh more in
    the objective, by up to (1/ε)-fold less for frequent ones; with `reweight` the weights p/π take that
    back and only the variance changes. Cost: none. Helps models that are to know rare words; the held-out
    loss, which counts all tokens alike, is likely to suffer.
    """

    summary: ClassVar[str] = "rare tokens more often"
    learned: ClassVar[bool] = True
    kind: Literal["frequency"] = "frequency"
    units: UnitKind = Field("tokens", description="what is hidden as a whole")
    power: float = Field(0.5, gt=0.0, le=1.0, description="0 would be uniform")
    epsilon: float = Field(0.2, gt=0.0, le=0.5, description="uniform share of the draws")
    reweight: bool = Field(False, description="weights p/π, which keep the uniform objective")

    @property
    def unbiased(self) -> bool:
        return self.reweight

    def build(self, networks: Networks) -> Policy:
        return FrequencyPolicy(self, networks)


class FrequencyPolicy(Learner[Frequency]):
    """`Frequency` with the counts of a corpus."""

    learned = False  # the counts stay as they are
    table: Tensor

    def __init__(self, config: Frequency, networks: Networks):
        super().__init__(config)
        self.register_buffer("table", (networks.counts.double() + 1.0) ** -config.power)

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        """Masks of the batch."""
        units = cut(batch, self.config.units, seed)
        score = unit_scores(units, self.scores(batch))
        return proposal_draw(batch, units, score, rate, seed, self.config.epsilon, self.config.reweight)

    def scores(self, batch: Batch) -> Tensor:
        """[rows, length] count^(−power) of each token."""
        return self.table[batch.ids]
