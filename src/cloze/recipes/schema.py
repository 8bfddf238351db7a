"""The recipe: everything that defines a run, as one validated tree."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field, model_validator

from cloze.config import Config
from cloze.corruption.clusters import Clusters
from cloze.corruption.generator import Generator
from cloze.corruption.replace import Replace
from cloze.corruption.sentinels import Sentinels
from cloze.data.corpus import Data, TokenizerChoice, TrainTokenizer
from cloze.masking import POLICIES, Masking
from cloze.methods.build import Choices
from cloze.methods.composite import MAIN
from cloze.methods.objectives import MlmObjective, ObjectiveChoice
from cloze.methods.visibility import AllVisible, VisibilityChoice
from cloze.models.build import ModelChoice, NewModel, PretrainedModelChoice
from cloze.training.settings import Evaluation, Start, Training

if TYPE_CHECKING:
    MaskingChoice = Masking
else:
    MaskingChoice = Annotated[Union[tuple(POLICIES.values())], Field(discriminator="kind")]  # noqa: UP007


CorruptionChoice = Annotated[Replace | Generator | Clusters | Sentinels, Field(discriminator="kind")]


INFILLED = ("spans", "words", "uniform", "rest")  # policies whose weights are all 1


class Variant(Config):
    """Another method of the same run: what it does not say is the recipe's own choice."""

    masking: MaskingChoice | None = None
    corruption: CorruptionChoice | None = None
    visibility: VisibilityChoice | None = None
    objective: ObjectiveChoice | None = None


class Stage(Start):
    """A part of the run with its own method.

    Attributes:
        share: share of the run's steps; the shares of all stages add up to 1.
        fresh_optimizer: the optimiser forgets its moments when it begins.
        warmup: share of its steps in which the learning rate rises again to what the schedule says.
        use: what is trained: `main` (the recipe's own four choices), one of its `variants`, or a mixture such
            as `{causal: 1, main: 15}`, whose numbers are shares of the rows, hence of the tokens.
    """

    use: str | dict[str, Annotated[float, Field(gt=0.0)]] = MAIN

    def shares(self) -> dict[str, float]:
        """{name: share of the rows} of what is trained, adding up to 1."""
        parts = {self.use: 1.0} if isinstance(self.use, str) else self.use
        total = sum(parts.values())
        return {name: part / total for name, part in parts.items()}


def _can_detect(at: str, choices: Choices) -> None:
    """Errors: choices that leave nothing to detect, or that a detector cannot have."""
    if choices.masking.kind == "none":
        raise ValueError(f"{at}masking.kind=none replaces nothing: choose another one for detection")
    if choices.masking.learned or choices.masking.kind == "auto":
        raise ValueError(
            f"{at}masking.kind={choices.masking.kind} learns from losses of hidden tokens, which "
            "detection has not: choose uniform, words or spans"
        )
    if choices.visibility.kind != "all":
        raise ValueError(
            f"{at}visibility.kind={choices.visibility.kind}: detection reads whole texts, use all"
        )
    corruption = choices.corruption
    if isinstance(corruption, Replace) and (corruption.mask > 0.0 or corruption.random == 0.0):
        raise ValueError(
            f"{at}corruption: a mask token is no riddle, so detection wants corruption.mask=0 and "
            "corruption.random=1"
        )


def _can_pair(at: str, choices: Choices, refused: bool) -> None:
    """Errors: an objective of text structure where it cannot be."""
    if choices.masking.kind != "none" or choices.visibility.kind != "all":
        raise ValueError(
            f"{at}objective.kind=structure asks about clean text that is visible: use masking.kind=none and "
            "visibility.kind=all"
        )
    if refused:
        raise ValueError(
            f"{at}objective.kind=structure is for a variant beside the recipe's own method, and for "
            "training.compile=false: its pairs have no constant number"
        )


VariantName = Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")]


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
    corruption: CorruptionChoice = Replace()
    visibility: VisibilityChoice = AllVisible()
    objective: ObjectiveChoice = MlmObjective()
    variants: dict[VariantName, Variant] = Field(default_factory=dict)
    stages: tuple[Stage, ...] = (Stage(),)
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

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        for name, choices in self.methods().items():
            at = "" if name == MAIN else f"variants.{name}."
            _check_infilling(at, choices, self.training.compile)
            detects = choices.objective.kind == "detection"
            if detects:
                _can_detect(at, choices)
            elif choices.corruption.kind in ("generator", "clusters"):
                raise ValueError(
                    f"{at}corruption.kind={choices.corruption.kind} makes tokens to be detected: use "
                    "objective={kind: detection}, or corruption={kind: replace}"
                )
            elif choices.objective.kind == "structure":
                _can_pair(at, choices, name == MAIN or self.training.compile)
            elif choices.masking.kind == "none" and not choices.objective.everywhere:
                raise ValueError(
                    f"{at}masking.kind=none hides nothing, and {at}objective predicts hidden tokens: choose "
                    "another masking.kind, or objective={kind: next_token}"
                )
            elif choices.objective.everywhere and choices.visibility.kind == "all":
                raise ValueError(
                    f"{at}objective predicts every next token, which {at}visibility.kind=all shows: use "
                    "visibility.kind=causal or prefix, or objective.targets=hidden"
                )
        return self

    @model_validator(mode="after")
    def _used(self) -> Recipe:
        known = [MAIN, *self.variants]
        if MAIN in self.variants:
            raise ValueError(f"variants: {MAIN!r} is the name of the recipe's own choices, take another")
        total = sum(stage.share for stage in self.stages)
        if not self.stages or abs(total - 1.0) > 1e-6:
            raise ValueError(f"the shares of stages must add up to 1, not {total:g}")
        rows = min(phase.rows for phase in self.training.phases)
        for number, stage in enumerate(self.stages):
            if not stage.use:
                raise ValueError(f"stages.{number}.use is empty: known are {', '.join(known)}")
            for name, share in stage.shares().items():
                if name not in known:
                    near = get_close_matches(name, known, n=1)
                    hint = f"did you mean {near[0]!r}? " if near else ""
                    raise ValueError(
                        f"stages.{number}.use: there is no variant {name!r}: {hint}known are "
                        f"{', '.join(known)}"
                    )
                if rows * share < 1.0 - 1e-9:
                    raise ValueError(
                        f"stages.{number}.use: of the {rows} rows in a step {name!r} would not get one (its "
                        f"share is {share:.3g}): use more rows in training.phases"
                    )
        for name in self.variants:
            if not any(name in stage.shares() for stage in self.stages):
                raise ValueError(f"variants.{name} is in no stage: name it in stages, or leave it out")
        return self

    def methods(self) -> dict[str, Choices]:
        """{name: four choices}: its own, named "main", and the variants'."""
        own = Choices(self.masking, self.corruption, self.visibility, self.objective)
        found = {MAIN: own}
        for name, variant in self.variants.items():
            found[name] = Choices(
                variant.masking or own.masking,
                variant.corruption or own.corruption,
                variant.visibility or own.visibility,
                variant.objective or own.objective,
            )
        return found

    @property
    def infills(self) -> bool:
        """Whether one of its methods needs sentinels."""
        return any(choices.objective.kind == "infill" for choices in self.methods().values())

    @property
    def unbiased(self) -> bool:
        """Whether all of its policies are."""
        return all(choices.masking.unbiased for choices in self.methods().values())

    def choices(self, name: str = MAIN) -> dict[str, str]:
        """The four choices, of the recipe or of one of its variants, a few words each."""
        found = self.methods()[name]
        rate = found.masking.rate
        ends = (rate, rate) if isinstance(rate, float) else (rate.start, rate.end)
        percent = "→".join(dict.fromkeys(f"{found.masking.real(end):.0%}" for end in ends))
        nothing = found.masking.kind == "none"
        return {
            "masking": found.masking.summary + ("" if nothing else f", {percent}"),
            "corruption": "none" if nothing else found.corruption.describe(),
            "visibility": found.visibility.kind,
            "objective": found.objective.kind,
        }


def _check_infilling(at: str, choices: Choices, compiled: bool) -> None:
    """Sentinels, their objective and what sees them go together."""
    infills = choices.objective.kind == "infill"
    if infills != (choices.corruption.kind == "sentinels"):
        raise ValueError(
            f"{at}objective={{kind: infill}} goes with {at}corruption={{kind: sentinels}}: set both, or none"
        )
    if not infills:
        if choices.visibility.kind == "enc_dec":
            raise ValueError(f"{at}visibility.kind=enc_dec needs {at}objective={{kind: infill}}")
        return
    if choices.visibility.kind == "all":
        raise ValueError(
            f"{at}objective writes out what is hidden, which {at}visibility.kind=all would show: use "
            "enc_dec, causal or prefix"
        )
    if choices.masking.kind not in INFILLED:
        raise ValueError(
            f"{at}masking.kind={choices.masking.kind}: its weights are for single tokens; with "
            f"{at}objective={{kind: infill}} use one of {', '.join(INFILLED)}"
        )
    if compiled:
        raise ValueError("training.compile: answers differ in length from batch to batch; leave it out")
