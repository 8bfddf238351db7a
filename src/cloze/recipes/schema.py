"""The recipe: everything that defines a run, as one validated tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import Field, model_validator

from cloze.config import Config
from cloze.corruption.replace import Replace
from cloze.data.corpus import Data, TokenizerChoice, TrainTokenizer
from cloze.masking import POLICIES, Masking
from cloze.methods.mlm import MlmObjective
from cloze.models.build import ModelChoice, NewModel, PretrainedModelChoice
from cloze.training.settings import Evaluation, Training

if TYPE_CHECKING:
    MaskingChoice = Masking
else:
    MaskingChoice = Annotated[Union[tuple(POLICIES.values())], Field(discriminator="kind")]  # noqa: UP007


class AllVisible(Config):
    """Every token sees every token of its own sample, and of no other."""

    kind: Literal["all"] = "all"


class Recipe(Config):
    """One way to pretrain: the four choices, and what they are applied to."""

    name: str = Field("custom", pattern=r"^[A-Za-z0-9][\w.-]*$")
    about: str = ""
    paper: str | None = None
    seed: int = Field(0, ge=0)
    data: Data = Data()
    tokenizer: TokenizerChoice = TrainTokenizer()
    model: ModelChoice = NewModel()
    masking: MaskingChoice
    corruption: Replace = Replace()
    visibility: AllVisible = AllVisible()
    objective: MlmObjective = MlmObjective()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _tokenizer_of_model(self) -> Recipe:
        if isinstance(self.model, PretrainedModelChoice) and isinstance(self.tokenizer, TrainTokenizer):
            raise ValueError("a pretrained model has its own tokenizer: set tokenizer.kind=load")
        return self

    @model_validator(mode="after")
    def _measured(self) -> Recipe:
        if self.masking.kind == "auto" and not self.evaluation.variance:
            raise ValueError("masking.kind=auto decides by measured terms: leave evaluation.variance true")
        return self

    def choices(self) -> dict[str, str]:
        """The four choices, a few words each."""
        rate = self.masking.rate
        ends = (rate, rate) if isinstance(rate, float) else (rate.start, rate.end)
        percent = " to ".join(dict.fromkeys(f"{self.masking.real(end):.0%}" for end in ends))
        return {
            "masking": f"{self.masking.summary}, {percent}",
            "corruption": self.corruption.describe(),
            "visibility": self.visibility.kind,
            "objective": self.objective.kind,
        }
