"""Method: the networks and the four choices of one way to pretrain, behind one interface.

    work = method.prepare(batch, progress)       # draws masks, corrupts: no gradient, no network wrapped
    weights = method.weights(work)               # {term: its denominator}, known before the forward pass
    sums = method(work)                          # {term: summed loss}; the only call with gradients
    method.observe(works, feedback)              # once per global step: what learns outside the gradient

The loop divides each sum once by the global weight of its term (over micro-batches and ranks), so
accumulation and data parallelism change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from cloze.corruption.view import View
from cloze.data.batch import Batch
from cloze.masking.base import Evidence
from cloze.masking.plan import MaskPlan


@dataclass(frozen=True, slots=True)
class Work:
    """A batch with its masks drawn and its views made: all that a forward pass needs.

    Attributes:
        batch: the clean rows; labels are read from it through each view's `origin`.
        plan: what is hidden and predicted.
        views: what the networks get, in the order the method uses them.
        places: [N] int64, flat indices of the predicted tokens in the first view; 0 in spare slots.
        labels: [N] int64; 0 in spare slots.
        token_weights: [N] float32, p/π; 0 in spare slots, which only compiled code has (`padded`).
    """

    batch: Batch
    plan: MaskPlan
    views: tuple[View, ...]
    places: Tensor
    labels: Tensor
    token_weights: Tensor

    def padded(self, slots: int, runs: int, dense: bool) -> Work:
        """The same work in static shapes: N = `slots`, spare ones of weight 0, views with room for `runs`.

        A view stays dense only if `dense` says that all are.
        """
        spare = (0, slots - self.places.numel())
        views = tuple(replace(view, runs=runs, dense=view.dense and dense) for view in self.views)
        tensors = (F.pad(x, spare) for x in (self.places, self.labels, self.token_weights))
        return Work(self.batch, self.plan, views, *tensors)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a forward pass gives.

    Attributes:
        sums: {term: Σ weight · loss}, scalars with gradients.
        feedback: detached tensors for `observe` and for statistics, e.g. per-token losses.
    """

    sums: dict[str, Tensor]
    feedback: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module):
    """Base of all methods. Subclasses own every network as a submodule.

    Class attributes:
        coefficients: {term: factor in the total loss}.
        norms: the feedback also has the norms that proposals learn from (`Seen.scores`).
    """

    norms: bool = False
    coefficients: ClassVar[dict[str, float]] = {}

    @property
    def copies(self) -> int:
        """Masked copies of each row in one step: a step of R rows has R/copies different ones."""
        return 1

    def rate(self, progress: float) -> float:
        """Share of the tokens that is masked when the share `progress` of the budget is spent."""
        raise NotImplementedError

    def prepare(self, batch: Batch, progress: float) -> Work:
        """Draw masks and make views; `progress` in [0, 1] is the share of the budget that is spent."""
        raise NotImplementedError

    def work(self, batch: Batch, plan: MaskPlan) -> Work:
        """What `prepare` makes of masks that are drawn already; the instrument draws its own."""
        raise NotImplementedError

    def weights(self, work: Work) -> dict[str, Tensor]:
        """{term: float64 scalar}, the denominators, summed over ranks and micro-batches by the loop."""
        raise NotImplementedError

    def forward(self, work: Work) -> Outcome:
        """The only call that is wrapped (DDP, FSDP, compile) and that makes gradients."""
        raise NotImplementedError

    def observe(self, works: list[Work], feedback: list[dict[str, Tensor]]) -> None:
        """Once per global step, with the feedback of its micro-batches: update what learns by itself."""

    def scores(self, batch: Batch) -> Tensor | None:
        """[rows, length] how much a learned policy wants each token masked; None: it has no opinion."""
        return None

    def decide(self, evidence: Evidence) -> list[str]:
        """At a few fixed points of the run: choose by what was measured; lines that say what and why."""
        return []

    def log(self) -> dict[str, float]:
        """Numbers about what learns by itself, for the run's log."""
        return {}

    def export(self) -> PreTrainedModel:
        """The model that users load afterwards, of a class that computes the same function."""
        raise NotImplementedError

    def learned_state(self) -> dict[str, Any]:
        """State of learned policies and corruptions beyond `state_dict`: JSON values."""
        return {}

    def load_learned_state(self, state: dict[str, Any]) -> None:
        """Inverse of `learned_state`."""


def select(plan: MaskPlan, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Places, labels and weights of the predicted tokens of a plan, [N] each."""
    places = plan.predicted.flatten().nonzero().squeeze(1)
    labels = batch.ids.flatten().index_select(0, places)
    return places, labels, plan.weights(places)
