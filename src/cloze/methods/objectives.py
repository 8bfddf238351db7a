"""What is predicted: hidden tokens at their own place, or each token from the one before it."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from cloze.config import Config
from cloze.corruption.pairs import Task
from cloze.corruption.view import View
from cloze.data.batch import Batch
from cloze.masking.plan import MaskPlan


class MlmObjective(Config):
    """The hidden tokens are predicted, each at its own place, by cross entropy weighted with p/π."""

    kind: Literal["mlm"] = "mlm"

    @property
    def everywhere(self) -> bool:
        """Whether tokens are predicted that are not hidden."""
        return False

    @property
    def shift(self) -> int:
        """How many places before a token the output lies that predicts it."""
        return 0

    def predicted(self, plan: MaskPlan, batch: Batch, view: View) -> MaskPlan:
        """The plan with what this objective predicts."""
        return plan


class NextTokenObjective(Config):
    """Each token is predicted from the output at the token before it in its sample.

    Under causal visibility that is language modelling (`targets: all`). Where every token is visible only
    hidden tokens can be predicted (`targets: hidden`: masked next-token prediction, 2410.24159, §2). Specials
    are never predicted, nor is the first token of a sample that begins with no special; in a visible prefix
    (`visibility: prefix`) nothing is.
    """

    kind: Literal["next_token"] = "next_token"
    targets: Literal["all", "hidden"] = Field("all", description="which tokens are predicted")

    @property
    def everywhere(self) -> bool:
        """Whether tokens are predicted that are not hidden."""
        return self.targets == "all"

    @property
    def shift(self) -> int:
        """How many places before a token the output lies that predicts it."""
        return 1

    def predicted(self, plan: MaskPlan, batch: Batch, view: View) -> MaskPlan:
        """The plan with what this objective predicts."""
        able = batch.maskable & follows(batch.segments)
        if view.open is not None:
            able = able & ~view.open
        if self.everywhere:
            certain = able.to(torch.float32)
            return MaskPlan(plan.hidden, able, certain, certain)
        reference = torch.where(able, plan.reference, 0.0)
        return MaskPlan(plan.hidden, plan.predicted & able, plan.inclusion, reference)


class DetectionObjective(Config):
    """Of every token: is it the original one? (2003.10555, §2)

    Binary cross entropy, its mean over all tokens of the text, specials not counted, or as an ablation over
    the hidden ones. A replacement that is equal to the original counts as original.
    """

    kind: Literal["detection"] = "detection"
    on: Literal["all", "hidden"] = Field("all", description="which tokens are judged")
    weight: float = Field(50.0, gt=0.0, description="of this loss beside a generator's")

    @property
    def everywhere(self) -> bool:
        """Whether tokens are judged that are not hidden."""
        return self.on == "all"

    def density(self, *rates: float) -> float:
        """The largest share of the tokens that is judged, of those rates of masking."""
        return 1.0 if self.everywhere else max(rates)

    def predicted(self, plan: MaskPlan, batch: Batch, view: View) -> MaskPlan:
        """The plan with what this objective predicts."""
        if not self.everywhere:
            return plan
        text = batch.index >= 0
        certain = text.to(torch.float32)
        return MaskPlan(plan.hidden, text, certain, certain)


class StructureObjective(Config):
    """Whether two spans belong together, from the output at the first token of `[CLS] a [SEP] b [SEP]`.

    For a method beside another one: it has no held-out loss, and nothing of it goes out.
    """

    kind: Literal["structure"] = "structure"
    task: Task = Field(
        "same_paragraph",
        description="two sentences of one paragraph; a sentence in_paragraph; two paragraphs same_document",
    )

    @property
    def everywhere(self) -> bool:
        """Whether tokens are predicted that are not hidden."""
        return False


class InfillObjective(Config):
    """The hidden runs are written out behind their sentinels, token by token (`methods/infilling.py`).

    By an encoder-decoder (`visibility: enc_dec`), or behind the text itself by one network that sees
    only the past (`causal`) or the whole text and the past of the answer (`prefix`).
    """

    kind: Literal["infill"] = "infill"

    @property
    def everywhere(self) -> bool:
        """Whether tokens are predicted that are not hidden."""
        return False


ObjectiveChoice = Annotated[
    MlmObjective | NextTokenObjective | DetectionObjective | StructureObjective | InfillObjective,
    Field(discriminator="kind"),
]


def follows(segments: Tensor) -> Tensor:
    """[rows, length] bool: the place to the left belongs to the same sample."""
    same = torch.zeros_like(segments, dtype=torch.bool)
    same[:, 1:] = segments[:, 1:] == segments[:, :-1]
    return same
