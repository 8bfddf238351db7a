"""The stock decoder that computes what an encoder computes under causal visibility, and the way back.

A model whose outputs predict the next token must not go out under a class that shows every token to every
other, and a causal checkpoint can go on as an encoder. The weights are the same; only names and
configuration differ.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    ModernBertConfig,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    ModernBertForMaskedLM,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from cloze.errors import ClozeError

DECODERS: dict[str, type[PreTrainedModel]] = {
    "bert": BertLMHeadModel,
    "modernbert": ModernBertDecoderForCausalLM,
}
"""{family of an encoder: class of its decoder twin}."""


def is_decoder(config: Any) -> bool:
    """Whether a configuration is that of a decoder that has an encoder twin."""
    return config.model_type == "modernbert-decoder" or (config.model_type == "bert" and config.is_decoder)


def is_encoder_decoder(config: Any) -> bool:
    """Whether a configuration is that of an encoder-decoder that can be trained here."""
    return bool(config.model_type == "t5")


def check_twin(model: PreTrainedModel) -> None:
    """Errors: an encoder of a family without a decoder twin."""
    family = model.config.model_type
    if family not in DECODERS:
        raise ClozeError(
            f"{family}: a model that predicts the next token goes out as a decoder, and this family has none "
            f"that computes the same; known are {', '.join(DECODERS)}"
        )


def decoder_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a masked LM as the stock causal LM that is this model under causal visibility.

    Errors: see `check_twin`.
    """
    check_twin(model)
    config = model.config
    if config.model_type == "bert":
        changes: dict[str, Any] = {"is_decoder": True, "use_cache": True}
        return _filled(
            BertLMHeadModel, BertConfig(**_shared(BertConfig, config) | changes), model.state_dict()
        )
    changes = {
        "local_attention": 2 * (config.sliding_window + 1),  # its window counts the token itself
        "bos_token_id": config.cls_token_id if config.bos_token_id is None else config.bos_token_id,
        "eos_token_id": config.sep_token_id if config.eos_token_id is None else config.eos_token_id,
    }
    decoder = ModernBertDecoderConfig(**_shared(ModernBertDecoderConfig, config) | changes)
    return _filled(ModernBertDecoderForCausalLM, decoder, _split(model.state_dict()))


def encoder_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a causal LM (`is_decoder`) as a masked LM, whose tokens see both sides: the inverse."""
    config = model.config
    if config.model_type == "bert":
        bert = BertConfig(**_shared(BertConfig, config) | {"is_decoder": False})
        return _filled(BertForMaskedLM, bert, model.state_dict())
    changes = {"local_attention": 2 * (config.sliding_window - 1)}
    encoder = ModernBertConfig(**_shared(ModernBertConfig, config) | changes)
    return _filled(ModernBertForMaskedLM, encoder, _joined(model.state_dict()))


def _shared(cls: type[Any], config: Any) -> dict[str, Any]:
    """What a configuration says that another class of it knows too; its own class knows all."""
    never = ("architectures", "transformers_version", "dtype", "model_type")
    known = {name: value for name, value in config.to_dict().items() if name not in never and name[0] != "_"}
    names = known if isinstance(config, cls) else {field.name for field in fields(cls)}
    return {name: value for name, value in known.items() if name in names}


def _filled(cls: type[PreTrainedModel], config: Any, tensors: dict[str, Tensor]) -> PreTrainedModel:
    with no_init_weights():  # which would draw random numbers
        model = cls(config)
    model.load_state_dict(tensors)
    model.tie_weights()
    model.config.architectures = [cls.__name__]
    return model


def _split(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """ModernBERT's names to its decoder's: three matrices for one, another name of the head."""
    found = {}
    for name, tensor in tensors.items():
        if ".attn.Wqkv." in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                found[name.replace("Wqkv", f"{part}_proj")] = piece
        else:
            found[f"lm_{name}" if name.startswith("head.") else name] = tensor
    return found


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `_split`."""
    found = {}
    for name, tensor in tensors.items():
        if ".attn.q_proj." in name:
            parts = (tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv")
            found[name.replace("q_proj", "Wqkv")] = torch.cat(tuple(parts))
        elif ".attn.k_proj." not in name and ".attn.v_proj." not in name:
            found[name.removeprefix("lm_") if name.startswith("lm_head.") else name] = tensor
    return found
