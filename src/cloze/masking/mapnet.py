"""MAPNet: masks drawn where gradients are large, weighted so that the objective stays the same."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking.base import Learner, Masking, Networks, Policy, Seen
from cloze.masking.draw import uniform_draw
from cloze.masking.plan import MaskPlan
from cloze.masking.proposal import Proposal, Score, observed
from cloze.masking.trust import Trust
from cloze.masking.unequal import predicted_part, proposal_draw, unit_scores
from cloze.masking.units import UnitKind, cut
from cloze.processes import summed


class MapNet(Masking):
    """Importance sampling of masks by a small network trained along with the model (2008.05333).

    The network predicts from the clean text how large each token's gradient would be; positions are drawn
    in proportion to it, a fixed number, without replacement, and weighted by p/π ≤ 1/ε. It starts as
    uniform masking, bit for bit, is let in as far as its saving, measured on the masks just drawn, is
    above nothing, and falls back to uniform masking when that is gone.

    Unbiased for each token's loss, given its context. Contexts are drawn by the proposal too: hiding
    telling words more often leaves the others with poorer ones, a bias that weights per token cannot take
    out (docs/recipes.md has its size). With `predict` below 1 that is gone too: the hidden set is uniform,
    and the proposal chooses the part of it that is predicted, which makes the vocabulary head cheaper.

    Cost: one forward and one training step of the small network. Helps where gradients differ much within
    a text: expected late in training, for large models and easy text. Hurts with a fixed `power` at the
    start, where gradients are alike.
    """

    summary: ClassVar[str] = "proposal network"
    learned: ClassVar[bool] = True
    kind: Literal["mapnet"] = "mapnet"
    units: UnitKind = Field("tokens", description="what is hidden as a whole")
    score: Score = Field("hidden_gradient", description="what it predicts; loss does not lower the variance")
    epsilon: float = Field(0.2, gt=0.0, le=0.5, description="uniform share of the draws; weights ≤ 1/epsilon")
    power: float | None = Field(
        None, ge=0.0, le=1.0, description="exponent of the proposal; null: as its measured saving says"
    )
    predict: float = Field(1.0, gt=0.0, le=1.0, description="share of the hidden units that is predicted")
    width: int | None = Field(
        None, ge=1, description="of its layers; null: an eighth of the embeddings', at least 32"
    )
    learning_rate: float = Field(3e-3, gt=0.0)

    def build(self, networks: Networks) -> Policy:
        return MapNetPolicy(self, networks)


class MapNetPolicy(Learner[MapNet]):
    """The network of `MapNet`, how far it is trusted, and the masks drawn with it."""

    effective: Tensor

    def __init__(self, config: MapNet, networks: Networks):
        super().__init__(config)
        self.proposal = Proposal(networks, config.score, config.width, config.learning_rate)
        self.trust = Trust(config.epsilon)
        self.register_buffer("effective", torch.ones((), dtype=torch.float64))

    def power(self) -> float:
        """The exponent that the next masks are drawn with."""
        return self.trust.power() if self.config.power is None else self.config.power

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        """Masks from the clean text; the same as `uniform_draw` makes while the proposal is not let in."""
        config, power = self.config, self.power()
        units = cut(batch, config.units, seed)
        if config.predict < 1.0:
            score = unit_scores(units, self.proposal.predict(batch)) ** power
            return predicted_part(batch, units, score, rate, seed, config.epsilon, config.predict)
        if power == 0.0:
            return uniform_draw(batch, units, rate, seed)
        score = unit_scores(units, self.proposal.predict(batch)) ** power
        return proposal_draw(batch, units, score, rate, seed, config.epsilon)

    def observe(self, seen: list[Seen]) -> None:
        """Measure what the proposal would have saved on these masks, then learn from them."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.effective.device)
        for s in seen:
            weights = s.weights.double()  # 0 in spare slots
            sums += torch.stack([weights.sum(), weights.square().sum(), (weights > 0).sum().double()])
        (sums,) = summed(sums)
        if not sums[2]:
            return
        self.effective.copy_(sums[0] ** 2 / (sums[1] * sums[2]))
        predictions = self.proposal.learn(seen)
        squares = [observed(s, self.config.score).square() for s in seen]
        self.trust.update(seen, predictions, squares)

    def scores(self, batch: Batch) -> Tensor:
        """[rows, length] predicted score of each token."""
        return self.proposal.predict(batch)

    def log(self) -> dict[str, float]:
        """`proposal_saving`: measured, of the best exponent. `effective_sample`: (Σw)²/(NΣw²) of a step."""
        savings = self.trust.savings()
        return {
            "proposal_power": self.power(),
            "proposal_saving": float(savings.max()),
            "effective_sample": float(self.effective),
        }
