"""Masking policies: the base class, how one is built, and what a policy that learns is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

from torch import Tensor, nn

from cloze.config import Config
from cloze.data.batch import Batch
from cloze.masking.plan import MaskPlan
from cloze.masking.rate import Rate


@dataclass(frozen=True, slots=True)
class Networks:
    """What a policy that learns may use of the method it works for.

    Attributes:
        embed: token ids [...] → the main model's token embeddings [..., width], without gradient.
        width: of these embeddings.
        counts: [vocabulary] float64, how often each token occurs in the training text.
        seed: of the run.
    """

    embed: Callable[[Tensor], Tensor]
    width: int
    counts: Tensor
    seed: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What one batch showed, after the forward pass.

    Attributes:
        batch, plan: as they were drawn.
        places: [N] int64, flat indices of the predicted tokens. weights: [N] float32, p/π; 0 in spare slots.
        scores: {name: [N] float32}, unweighted: loss, residual (‖softmax − one-hot‖), hidden_gradient
            (‖∂loss/∂hidden‖).
    """

    batch: Batch
    plan: MaskPlan
    places: Tensor
    weights: Tensor
    scores: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the run measured of itself, for policies that decide by it (units: see `cloze.variance`).

    Attributes:
        visits: how often the run sees its text. rate: that the terms were measured at.
        body, head: operations per token and per predicted token, up to one factor.
        data, mask: terms of the gradient's variance; None: not measured.
        break_even_high: upper bound of D + C; None: not measured, or no two disjoint masks fit, or the rows
            of a step cannot be halved.
        saving_low: lower bound of what the policy's own proposal saves of the second moment of its scores;
            None: not measured, or there is no proposal.
    """

    visits: float
    rate: float
    body: float
    head: float
    data: float | None = None
    mask: float | None = None
    break_even_high: float | None = None
    saving_low: float | None = None


class Policy(Protocol):
    """What draws the masks of a run: a policy's own configuration, or what its `build` returns.

    An object with state (`Learner`) keeps it in buffers, so that it is saved, restored and moved with the
    method but left alone by the main optimiser.

    Attributes:
        rate: as configured. learned: whether it has state, and `observe` is to be called.
        copies: masked copies of each row in one step.
    """

    @property
    def rate(self) -> Rate: ...
    @property
    def learned(self) -> bool: ...
    @property
    def copies(self) -> int: ...

    def real(self, rate: float) -> float:
        """The rate that it masks at when asked for `rate`."""

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        """Masks of the batch: a pure function of the policy's state and (seed, sample key, visit, index)."""

    def observe(self, seen: list[Seen]) -> None:
        """Once per global step: learn from its batches, by sums over all processes (`processes.summed`)."""

    def scores(self, batch: Batch) -> Tensor | None:
        """[rows, length] ≥ 0: how much it wants each token masked, from the clean text; None: no opinion."""

    def decide(self, evidence: Evidence) -> list[str]:
        """At a few fixed points of the run: choose by what was measured; lines that say what and why."""

    def log(self) -> dict[str, float]:
        """Numbers about its state, for the run's log."""


class Silent:
    """What a policy says that learns nothing and decides nothing."""

    def real(self, rate: float) -> float:
        """Any rate, up to rounding in each sample."""
        return rate

    def observe(self, seen: list[Seen]) -> None:
        """Nothing to learn."""

    def scores(self, batch: Batch) -> Tensor | None:
        """No opinion."""
        return None

    def decide(self, evidence: Evidence) -> list[str]:
        """Nothing to decide."""
        return []

    def log(self) -> dict[str, float]:
        """Nothing to tell."""
        return {}


class Masking(Silent, Config):
    """A masking policy: which tokens are hidden, which are predicted.

    A policy without state is its own configuration: `plan` is a pure function. A policy that learns
    overrides `build` and returns an object with state.

    Class attributes:
        learned: `build` returns an object with state, which needs a model or a corpus.
        summary: one line for tables.
    """

    learned: ClassVar[bool] = False
    summary: ClassVar[str] = ""

    kind: str
    rate: Rate = 0.3

    @property
    def unbiased(self) -> bool:
        """Whether the expected loss is that of the reference scheme, at any state of the policy.

        If not, the policy changes the objective, and every report says so.
        """
        return True

    @property
    def copies(self) -> int:
        """Masked copies of each row in one step."""
        return 1

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        """Masks of the batch: a pure function of (seed, sample key, visit, token index)."""
        raise NotImplementedError(f"{self.kind}: draws with what `build` returns")

    def build(self, networks: Networks) -> Policy:
        """The object that draws the masks of a run."""
        return self


C = TypeVar("C", bound=Masking)


class Learner(Silent, nn.Module, Generic[C]):
    """Base of what `build` returns for a policy that learns; its state is buffers.

    Args:
        config: the policy's configuration.
    """

    learned = True

    def __init__(self, config: C):
        super().__init__()
        self.config = config

    @property
    def rate(self) -> Rate:
        """As configured."""
        return self.config.rate

    def real(self, rate: float) -> float:
        """As configured."""
        return self.config.real(rate)

    @property
    def copies(self) -> int:
        """As configured."""
        return self.config.copies

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        """Masks of the batch: a pure function of the state and (seed, sample key, visit, token index)."""
        raise NotImplementedError
