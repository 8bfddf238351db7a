"""The head that judges tokens, and the stock model that goes out with it.

Any encoder can judge its tokens: the head is that of the stock class which reads such a model, without its
body, so that what is trained is what transformers computes later.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForTokenClassification,
    ElectraConfig,
    ElectraForPreTraining,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput

from cloze.errors import ClozeError
from cloze.random import Stream, integer

LABELS = {0: "original", 1: "replaced"}


class _Given(nn.Module):
    """Stands for the body in a stock model: hands on the hidden states that come as its embeddings."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


class Detector(nn.Module):
    """Hidden states [N, width] of an encoder to logits [N]: above 0, the token is not the original one.

    ELECTRA's own head for that family (`ElectraForPreTraining`), else the family's token classification with
    two labels, whose logit is the difference of theirs.

    Args:
        model: the encoder, of which the head takes configuration and precision.
        seed: of its first weights.

    Errors: a family without token classification.
    """

    def __init__(self, model: PreTrainedModel, seed: int):
        super().__init__()
        config = copy.deepcopy(model.config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(integer(seed, Stream.HEAD, 0))
            try:
                if config.model_type == "electra":
                    whole: PreTrainedModel = ElectraForPreTraining(cast(ElectraConfig, config))
                else:
                    config.num_labels = len(LABELS)
                    config.id2label, config.label2id = LABELS, {name: i for i, name in LABELS.items()}
                    whole = AutoModelForTokenClassification.from_config(config)
            except ValueError as error:
                raise ClozeError(
                    f"objective.kind=detection: {config.model_type} has no class that judges tokens; use "
                    "model.family=modernbert, bert or electra"
                ) from error
        setattr(whole, whole.base_model_prefix, _Given())
        self.model = whole.to(dtype=model.dtype)  # type: ignore[call-arg]

    @property
    def output(self) -> nn.Linear:
        """The last layer."""
        return [layer for layer in self.model.modules() if isinstance(layer, nn.Linear)][-1]

    def forward(self, hidden: Tensor) -> Tensor:
        logits = cast(Tensor, self.model(inputs_embeds=hidden[None]).logits)[0]
        return logits if logits.ndim == 1 else logits[:, 1] - logits[:, 0]

    def export(self, body: PreTrainedModel) -> PreTrainedModel:
        """The stock model of a body and this head; it shares their weights."""
        whole = copy.copy(self.model)
        whole._modules = dict(self.model._modules)
        setattr(whole, whole.base_model_prefix, body)
        whole.config.architectures = [type(whole).__name__]
        return whole


def is_detector(config: Any) -> bool:
    """Whether a configuration is that of a model which judges tokens, as `Detector` exports it."""
    kinds = config.architectures or []
    names = getattr(config, "id2label", None) or {}
    judges = {int(i): name for i, name in names.items()} == LABELS
    return kinds == ["ElectraForPreTraining"] or (judges and kinds[0].endswith("ForTokenClassification"))
