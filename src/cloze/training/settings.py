"""Settings of the training loop and of the held-out evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from cloze.config import Config
from cloze.errors import ClozeError
from cloze.training.budget import Budget
from cloze.training.optimisers import OptimizerChoice
from cloze.training.schedules import Schedule

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class Phase(Config):
    """A part of the run with its own row length and batch.

    Attributes:
        share: share of the run's steps; the shares of all phases add up to 1.
        length: tokens in a row.
        rows: rows in one step, over all processes and micro-batches.
    """

    share: float = Field(1.0, gt=0.0, le=1.0)
    length: int = Field(128, ge=8)
    rows: int = Field(32, ge=1)


class Start(Config):
    """How a part of the run with its own method begins.

    Attributes:
        share: share of the run's steps; the shares of all parts add up to 1.
        fresh_optimizer: the optimiser forgets its moments.
        warmup: share of the part's steps in which the learning rate rises again to what the schedule says.
    """

    share: float = Field(1.0, gt=0.0, le=1.0)
    fresh_optimizer: bool = False
    warmup: float = Field(0.0, ge=0.0, lt=1.0)


class Training(Config):
    """How a run is trained."""

    budget: str = "10Mtok"
    phases: tuple[Phase, ...] = (Phase(),)
    micro_tokens: int | None = Field(None, ge=8, description="most tokens in one forward pass of a process")
    optimizer: OptimizerChoice = OptimizerChoice()
    schedule: Schedule = Schedule()
    clip: float = Field(1.0, gt=0.0, description="largest norm of the gradient")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    sharding: Literal["none", "full"] = Field(
        "none", description="full: several processes divide weights, gradients and moments (FSDP2)"
    )
    deterministic: bool = Field(
        False, description="the same bits from run to run on a GPU too (docs/reliability.md); slower there"
    )
    gradient_checkpointing: bool = False
    workers: int = Field(0, ge=0, description="processes that build batches; 0 is the loop itself")
    log_every: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints that are kept")
    trackers: tuple[Tracker, ...] = ()

    @field_validator("budget")
    @classmethod
    def _budget(cls, value: str) -> str:
        try:
            Budget.parse(value)
        except ClozeError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _shares(self) -> Training:
        total = sum(p.share for p in self.phases)
        if not self.phases or abs(total - 1.0) > 1e-6:
            raise ValueError(f"the shares of training.phases must add up to 1, not {total:g}")
        if self.compile and self.sharding != "none":
            raise ValueError(
                "training.compile does not go with training.sharding=full: leave one of them out"
            )
        if self.deterministic and self.compile:
            raise ValueError(
                "training.deterministic: compiled code may choose kernels by the time they take: use "
                "training.compile=false"
            )
        return self


class Evaluation(Config):
    """The held-out loss: always on the same fixed uniform masks, so that recipes compare."""

    times: int = Field(
        10, ge=1, description="evaluations over the run, besides the one before the first step"
    )
    tokens: int = Field(50_000, ge=1, description="most held-out tokens in one evaluation")
    rate: float = Field(0.15, gt=0.0, lt=1.0)
    length: int = Field(128, ge=8, description="tokens in a row; losses compare at equal length only")
    variance: bool = Field(
        True,
        description="measure the gradient's variance at four points of the run, by at most 2% of its work",
    )
