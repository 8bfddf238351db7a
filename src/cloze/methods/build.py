"""From the four choices to a method."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from cloze.corruption.replace import Replace, Vocabulary
from cloze.data.tokenizers import ids_of
from cloze.masking.base import Masking, Networks
from cloze.methods.base import Method
from cloze.methods.mlm import Mlm, MlmObjective
from cloze.models.encoder import Encoder


def vocabulary_of(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    """What corruptions need of a tokenizer: random replacements come from all ids but the specials."""
    specials = set(tokenizer.all_special_ids)
    ordinary = sorted(set(tokenizer.get_vocab().values()) - specials)
    return Vocabulary(ids_of(tokenizer), tokenizer.mask_token_id, torch.tensor(ordinary))


def build_method(
    objective: MlmObjective,
    masking: Masking,
    corruption: Replace,
    encoder: Encoder,
    vocabulary: Vocabulary,
    counts: Tensor,
    seed: int,
) -> Method:
    """The method of a recipe's choices; `counts` [vocabulary]: how often each token occurs in the text."""
    table = cast(nn.Embedding, encoder.model.get_input_embeddings())

    def embed(ids: Tensor) -> Tensor:
        return table.weight.detach()[ids]

    networks = Networks(embed, table.weight.shape[1], counts, seed)
    return Mlm(encoder, masking.build(networks), corruption, vocabulary, seed)
