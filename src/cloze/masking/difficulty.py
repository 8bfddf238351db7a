"""Masks follow the model's own errors: what it predicts badly is hidden more often."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking.base import Learner, Masking, Networks, Policy, Seen
from cloze.masking.plan import MaskPlan
from cloze.masking.unequal import proposal_draw, unit_scores
from cloze.masking.units import UnitKind, cut
from cloze.processes import summed

DECAY = 0.998  # of the running sums, per step
PRIOR = 5.0  # predictions of a token that count as much as the mean over all tokens


class Difficulty(Masking):
    """Units are drawn in proportion to the recent loss of their tokens, by token id.

    In the manner of adaptive masking by sub-word loss (AMLM). Not unbiased: hard tokens weigh more in the
    objective; with `reweight` the weights p/π take that back, but drawing by loss *raises* the variance of
    the gradient (docs/recipes.md). Cost: none. Helps where the objective is meant to change; for less
    variance use `mapnet`.
    """

    summary: ClassVar[str] = "the model's errors"
    learned: ClassVar[bool] = True
    kind: Literal["difficulty"] = "difficulty"
    units: UnitKind = Field("tokens", description="what is hidden as a whole")
    epsilon: float = Field(0.2, gt=0.0, le=0.5, description="uniform share of the draws")
    reweight: bool = Field(False, description="weights p/π, which keep the uniform objective")

    @property
    def unbiased(self) -> bool:
        return self.reweight

    def build(self, networks: Networks) -> Policy:
        return DifficultyPolicy(self, networks)


class DifficultyPolicy(Learner[Difficulty]):
    """The running mean loss of every token, and the masks drawn with it."""

    losses: Tensor
    number: Tensor

    def __init__(self, config: Difficulty, networks: Networks):
        super().__init__(config)
        self.register_buffer("losses", torch.zeros_like(networks.counts, dtype=torch.float64))
        self.register_buffer("number", torch.zeros_like(networks.counts, dtype=torch.float64))

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        """Masks of the batch; uniform before anything was observed."""
        units = cut(batch, self.config.units, seed)
        score = unit_scores(units, self.scores(batch))
        return proposal_draw(batch, units, score, rate, seed, self.config.epsilon, self.config.reweight)

    def observe(self, seen: list[Seen]) -> None:
        """Take the losses of the step into the running means."""
        losses, number = torch.zeros_like(self.losses), torch.zeros_like(self.number)
        for s in seen:
            known = s.weights > 0
            labels = s.batch.ids.flatten()[s.places[known]]
            losses.index_add_(0, labels, s.scores["loss"][known].double())
            number.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        losses, number = summed(losses, number)
        self.losses.mul_(DECAY).add_(losses)
        self.number.mul_(DECAY).add_(number)

    def scores(self, batch: Batch) -> Tensor:
        """[rows, length] running mean loss of each token, drawn to the mean over all where it is rare."""
        mean = self.losses.sum() / self.number.sum().clamp(min=1.0)
        table = (self.losses + PRIOR * mean) / (self.number + PRIOR)
        return table[batch.ids]
