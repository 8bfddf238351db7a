"""A small masked language model of another one's family, with the same token embeddings."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from cloze.errors import ClozeError
from cloze.random import Stream, integer


def build_generator(model: PreTrainedModel, width: float, depth: float, seed: int) -> PreTrainedModel:
    """A masked LM with a share of the layers and of their width, whose token embeddings are the model's own.

    Errors: `width` below 1 where token embeddings are as wide as the layers.
    """
    config: Any = copy.deepcopy(model.config)
    if width < 1.0 and not hasattr(config, "embedding_size"):
        raise ClozeError(
            f"corruption.width={width:g}: a {config.model_type} generator shares its token embeddings, which "
            "are as wide as its layers: use model.family=electra, or corruption.width=1 and a smaller "
            "corruption.depth"
        )
    hidden = max(16, round(config.hidden_size * width))
    most = max(1, round(config.num_attention_heads * width))
    heads = next(n for n in range(most, 0, -1) if hidden % n == 0 and (hidden // n) % 2 == 0)
    config.intermediate_size = max(16, round(config.intermediate_size * hidden / config.hidden_size))
    config.hidden_size, config.num_attention_heads = hidden, heads
    config.num_hidden_layers = max(1, round(config.num_hidden_layers * depth))
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer(seed, Stream.GENERATOR, 0))
        made = type(model)(config)
    made = made.to(dtype=model.dtype)  # type: ignore[call-arg]
    table = cast(nn.Embedding, model.get_input_embeddings())
    made.set_input_embeddings(table)
    cast(nn.Linear, made.get_output_embeddings()).weight = table.weight
    return made
