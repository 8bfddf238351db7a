"""Method: the networks and the four choices of one way to pretrain, behind one interface.

    work = method.prepare(batch, progress)       # draws masks, corrupts: no gradient, no network wrapped
    weights = method.weights(work)               # {term: its denominator}, known before the forward pass
    sums = method(work)                          # {term: summed loss}; the only call with gradients
    factors = method.coefficients(progress)      # {term: its factor in the loss}
    method.observe(works, feedback)              # once per global step: what learns outside the gradient

The loop divides each sum once by the global weight of its term (over micro-batches and ranks), so
accumulation and data parallelism change nothing. Everything that changes over a run is a function of
`progress`, the share of its steps that is done.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from cloze.corruption.view import View
from cloze.data.batch import Batch
from cloze.masking.base import Evidence
from cloze.masking.plan import MaskPlan
from cloze.models.encoder import Encoder
from cloze.models.encoder_decoder import EncoderDecoder


@dataclass(frozen=True, slots=True)
class Work:
    """A batch that is ready for a forward pass; each method has a class for what else it needs.

    Attributes:
        batch: the clean rows.
    """

    batch: Batch

    @property
    def tokens(self) -> Tensor:
        """Tokens of the batch, padding not counted: an int64 scalar."""
        return (self.batch.segments >= 0).sum()

    @property
    def predicted(self) -> Tensor:
        """Tokens that are predicted: an int64 scalar."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class TokenWork(Work):
    """A batch with its masks drawn and its views made, of which tokens are predicted.

    Attributes:
        plan: what is hidden and predicted.
        views: what the networks get, in the order the method uses them.
        places: [N] int64, flat indices into the last view of the outputs that predict; 0 in spare slots.
        targets: [N] int64, flat indices into the batch of the tokens that they predict; 0 in spare slots,
            -1 for tokens that are not in it.
        labels: [N] int64, their ids; 0 in spare slots.
        token_weights: [N] float32, p/π; 0 in spare slots, which only compiled code has (`padded`).
        density: the largest share of the tokens that is predicted in the run.
    """

    plan: MaskPlan
    views: tuple[View, ...]
    places: Tensor
    targets: Tensor
    labels: Tensor
    token_weights: Tensor
    density: float

    @property
    def predicted(self) -> Tensor:
        return (self.token_weights > 0).sum()

    def padded(self, slots: int, runs: int, dense: bool) -> TokenWork:
        """The same work in static shapes: N = `slots`, spare ones of weight 0, views with room for `runs`.

        A view stays dense only if `dense` says that all are.
        """
        spare = (0, slots - self.places.numel())
        views = tuple(replace(view, runs=runs, dense=view.dense and dense) for view in self.views)
        return replace(
            self,
            views=views,
            places=F.pad(self.places, spare),
            targets=F.pad(self.targets, spare),
            labels=F.pad(self.labels, spare),
            token_weights=F.pad(self.token_weights, spare),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a forward pass gives.

    Attributes:
        sums: {term: Σ weight · loss}, scalars with gradients.
        feedback: detached tensors for `observe` and for statistics, e.g. per-token losses.
    """

    sums: dict[str, Tensor]
    feedback: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass of a network, for counting what a step costs.

    Attributes:
        network: an encoder.
        view: what it sees.
        predicted: places for which its vocabulary head runs.
        share: of its body, where only a part of it sees this view.
    """

    network: Encoder | EncoderDecoder
    view: View
    predicted: int
    share: float = 1.0


W = TypeVar("W", bound=Work)
Reading = Literal["masked", "causal", "detection", "seq2seq"]
Readout = Literal["masked", "replaced", "causal", "prefix"]


class Method(nn.Module, Generic[W]):
    """Base of all methods. Subclasses own every network as a submodule.

    Attributes:
        norms: the feedback also has the norms that proposals learn from (`Seen.scores`).
        measures: what the held-out loss is of, in a few words such as "masked tokens".
        sees: kinds of visibility that its views have.
        everywhere: no mask chooses which tokens are predicted: all are, or all that is hidden.
        predicts_tokens: what is predicted are tokens of the vocabulary; else there are no losses by word, and
            the feedback has `logits` of two classes, `labels`, 0 or 1, and the ids `seen` at each prediction.
        drawn: what is drawn for a row besides its text: "masks", "prefixes", or "" for nothing, so that the
            gradient of a row is always the same.
        stages: shares of the run in which it trains one way, one after the other.
        same_passes: in a step all processes run the same layers in the same order, whatever their rows are.
    """

    norms: bool = False
    measures: str = "masked tokens"
    sees: Collection[str] = ("all",)
    everywhere: bool = False
    predicts_tokens: bool = True
    drawn: str = "masks"
    stages: Sequence[float] = (1.0,)
    same_passes: bool = True

    @property
    def main(self) -> Method[Any]:
        """Of several methods that share a model the one that is measured and that decides; else itself."""
        return self

    def trains_main(self, progress: float) -> bool:
        """Whether that one is trained now."""
        return True

    @property
    def copies(self) -> int:
        """Masked copies of each row in one step: a step of R rows has R/copies different ones."""
        return 1

    def coefficients(self, progress: float) -> dict[str, float]:
        """{term: factor in the total loss} of the terms that are trained now."""
        raise NotImplementedError

    def rate(self, progress: float) -> float:
        """Share of the tokens that is masked."""
        raise NotImplementedError

    def prepare(self, batch: Batch, progress: float) -> W:
        """Draw masks and make views; `progress` in [0, 1] is the share of the budget that is spent."""
        raise NotImplementedError

    def work(self, batch: Batch, plan: MaskPlan) -> W:
        """What `prepare` makes of masks that are drawn already; the instrument draws its own."""
        raise NotImplementedError

    def examine(self, batch: Batch, plan: MaskPlan, seed: int) -> W:
        """What is measured on held-out text: masks are fixed, so nothing may depend on the run's own draws.

        The feedback of a forward pass has `loss` and `guess` for each prediction, and `labels` where the
        method makes them itself; else they are the work's.
        """
        raise NotImplementedError

    def weights(self, work: W) -> dict[str, Tensor]:
        """{term: float64 scalar}, the denominators, summed over ranks and micro-batches by the loop."""
        raise NotImplementedError

    def forward(self, work: W) -> Outcome:
        """The only call that is wrapped (DDP, FSDP, compile) and that makes gradients."""
        raise NotImplementedError

    def passes(self, work: W) -> list[Pass]:
        """What `forward` runs, for the count of operations; nothing is run."""
        raise NotImplementedError

    def observe(self, works: list[W], feedback: list[dict[str, Tensor]]) -> None:
        """Once per global step, with the feedback of its micro-batches: update what learns by itself.

        Called in all processes at once, in one perhaps with no work: what is learnt comes from sums over all
        (`processes.summed`), so that it stays the same in all of them.
        """

    def scores(self, batch: Batch) -> Tensor | None:
        """[rows, length] how much a learned policy wants each token masked; None: it has no opinion."""
        return None

    def decide(self, evidence: Evidence) -> list[str]:
        """At a few fixed points of the run: choose by what was measured; lines that say what and why."""
        return []

    def log(self) -> dict[str, float]:
        """Numbers about what learns by itself, for the run's log."""
        return {}

    @property
    def reading(self) -> Reading | None:
        """How a stock class reads the model; None: none can.

        "masked": blanks of a whole text. "causal": the next token. "detection": which tokens were replaced.
        "seq2seq": one text for another.
        """
        return "masked"

    @property
    def readings(self) -> Mapping[Readout, int]:
        """How its outputs may be read, its own way first: empty, if they predict no tokens of the text.

        {reading: how many places before a token the output lies that predicts it}. "masked": the token is
        hidden behind the mask token; "replaced": behind a random one; "causal": what follows it is not seen;
        "prefix": nor is that, but the first tokens see each other.
        """
        return {}

    def export(self) -> PreTrainedModel:
        """The model that users load afterwards, of the stock class of its `reading`."""
        raise NotImplementedError

    def companions(self) -> dict[str, PreTrainedModel]:
        """{folder: model} of other networks that are of use afterwards, each of a stock class."""
        return {}

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
