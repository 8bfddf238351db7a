"""MosaicBERT: an encoder without position embeddings, which reads longer texts than it was trained on.

Post-norm blocks, symmetric ALiBi, gated linear units, a tied head (2312.17482, section 2). transformers has
no such class. A saved model brings this file along as remote code, so it imports nothing of cloze.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple

HIDDEN = -30_000.0  # added to the score of a padding token: nothing is left of it, in half precision too


class MosaicBertConfig(PreTrainedConfig):
    """Sizes of a MosaicBERT; the defaults are those of its base size.

    `intermediate_size` is that of the gated units, so a layer has more weights than BERT's of the same size.
    `max_position_embeddings` is only what is meant to be read: attention knows distances, not positions.
    """

    model_type = "mosaicbert"

    vocab_size: int = 30_528
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.0
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    tie_word_embeddings: bool = True
    position_bias: str = "alibi"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        file = "mosaicbert"
        self.auto_map = {"AutoConfig": f"{file}.MosaicBertConfig", "AutoModel": f"{file}.MosaicBertModel"} | {
            f"AutoModelFor{head}": f"{file}.MosaicBertFor{head}"
            for head in ("MaskedLM", "SequenceClassification", "TokenClassification")
        }


def slopes_of(heads: int, device: torch.device | None = None) -> Tensor:
    """[heads] float32: how fast each head's score falls with distance (ALiBi, 2108.12409, section 3).

    A geometric sequence whose first term and ratio are 2^(-8 / heads).
    """
    return torch.exp2(torch.arange(1, heads + 1, device=device, dtype=torch.float32) * (-8.0 / heads))


def bias_of(slopes: Tensor, length: int) -> Tensor:
    """[heads, length, length] float32, -slope · |i - j|, what is added to the scores."""
    place = torch.arange(length, device=slopes.device)
    return -slopes[:, None, None] * (place[None, :] - place[:, None]).abs()


def _eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, *,
    scaling: float, dropout: float = 0.0, **_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scores = query @ key.transpose(-1, -2) * scaling + attention_mask
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(
        query.dtype
    )
    return (F.dropout(weights, dropout) @ value).transpose(1, 2).contiguous(), weights


class MosaicBertEmbeddings(nn.Module):
    """Of tokens, and of nothing else."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inputs: Tensor) -> Tensor:
        """[rows, length, width] of the tokens' own embeddings."""
        output: Tensor = self.dropout(self.norm(inputs))
        return output


class MosaicBertAttention(nn.Module):
    """Attention of all heads, without positions: the bias comes with the mask, or as `slopes`."""

    is_causal = False

    def __init__(self, config: MosaicBertConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.width = config.hidden_size // config.num_attention_heads
        self.dropout_share = config.attention_probs_dropout_prob
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, bias: Tensor | None, **kwargs: Any) -> Tensor:
        """[rows, length, width]; `bias` [rows or 1, heads, length, length]: what is added to the scores."""
        shape = hidden.shape[:-1]
        query, key, value = self.Wqkv(hidden).view(*shape, 3, -1, self.width).permute(2, 0, 3, 1, 4)
        run = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _eager)
        mask = bias.to(query.dtype) if bias is not None and bias.is_floating_point() else bias
        dropout = self.dropout_share if self.training else 0.0
        mixed, _ = run(self, query, key, value, mask, dropout=dropout, scaling=self.width**-0.5, **kwargs)
        output: Tensor = self.Wo(mixed.reshape(*shape, -1))
        return output


class MosaicBertGatedUnit(nn.Module):
    """GELU(gate) · value between two projections without bias (2002.05202)."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor) -> Tensor:
        """[rows, length, width]."""
        gate, value = self.Wi(hidden).chunk(2, dim=-1)
        output: Tensor = self.Wo(self.dropout(F.gelu(gate) * value))
        return output


class MosaicBertLayer(GradientCheckpointingLayer):
    """Attention and gated units, each added to what came in and then normalised."""

    def __init__(self, config: MosaicBertConfig, layer_idx: int):
        super().__init__()
        self.attention = MosaicBertAttention(config, layer_idx)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MosaicBertGatedUnit(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, bias: Tensor | None, **kwargs: Any) -> Tensor:
        """[rows, length, width]."""
        hidden = self.attention_norm(hidden + self.dropout(self.attention(hidden, bias, **kwargs)))
        output: Tensor = self.mlp_norm(hidden + self.mlp(hidden))
        return output


class MosaicBertPreTrainedModel(PreTrainedModel):
    """What all of its classes share."""

    config_class = MosaicBertConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MosaicBertLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True


class MosaicBertModel(MosaicBertPreTrainedModel):
    """The encoder without a head."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__(config)
        self.embeddings = MosaicBertEmbeddings(config)
        self.layers = nn.ModuleList(MosaicBertLayer(config, i) for i in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another table."""
        self.embeddings.word_embeddings = cast(nn.Embedding, value)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Final states [rows, length, width].

        Args:
            attention_mask: [rows, length], 0 for padding. position_ids: not looked at.
            kwargs: for the attention function. One that is given `visibility` gets no mask, but `slopes`.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        slopes, bias = slopes_of(self.config.num_attention_heads, inputs_embeds.device), attention_mask
        if kwargs.get("visibility") is None:
            bias = bias_of(slopes, inputs_embeds.shape[1])[None]
            if attention_mask is not None:
                bias = bias.masked_fill(attention_mask[:, None, None, :] == 0, HIDDEN)
        hidden = self.embeddings(inputs_embeds)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, bias, slopes=slopes, **kwargs)
            states.append(hidden)
        return BaseModelOutput(hidden, tuple(states) if output_hidden_states else None)


class MosaicBertHead(nn.Module):
    """What comes before the vocabulary."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """[…, width]."""
        output: Tensor = self.norm(F.gelu(self.dense(hidden)))
        return output


class MosaicBertForMaskedLM(MosaicBertPreTrainedModel):
    """With a masked-language-model head whose matrix is that of the embeddings."""

    _tied_weights_keys = {"decoder.weight": "model.embeddings.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: MosaicBertConfig):
        super().__init__(config)
        self.model = MosaicBertModel(config)
        self.head = MosaicBertHead(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The layer that makes logits."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Another one."""
        self.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Logits [rows, length, vocabulary]; a loss if there are labels (-100: none)."""
        output = self.model(input_ids, attention_mask, **kwargs)
        logits = self.decoder(self.head(output[0]))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return MaskedLMOutput(loss, logits, output.hidden_states)


class _Classifier(MosaicBertPreTrainedModel):
    """An encoder, dropout and a linear layer."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__(config)
        self.model = MosaicBertModel(config)
        share = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(share)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 1)
        self.post_init()


class MosaicBertForSequenceClassification(_Classifier):
    """One label, or one number (`num_labels` 1), for the mean of a text's states."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits [rows, labels]."""
        output = self.model(input_ids, attention_mask, **kwargs)
        hidden = output[0]
        seen = torch.ones_like(hidden[..., 0]) if attention_mask is None else attention_mask.to(hidden.dtype)
        logits = self.classifier(self.dropout((hidden * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)))
        loss = None
        if labels is not None and self.config.num_labels == 1:
            loss = F.mse_loss(logits.squeeze(-1).float(), labels.float())
        elif labels is not None:
            loss = F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss, logits, output.hidden_states)


class MosaicBertForTokenClassification(_Classifier):
    """A label for each token."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Logits [rows, length, labels]; a loss if there are labels (-100: none)."""
        output = self.model(input_ids, attention_mask, **kwargs)
        logits = self.classifier(self.dropout(output[0]))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return TokenClassifierOutput(loss, logits, output.hidden_states)


# So that `save_pretrained` copies this file beside the weights.
MosaicBertModel.register_for_auto_class("AutoModel")
MosaicBertForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
MosaicBertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
MosaicBertForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
