"""The model that is evaluated, whoever made it: a run of cloze, or any encoder that transformers loads."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from cloze.data.hub import offline
from cloze.data.tokenizers import load_tokenizer
from cloze.fill import model_folder
from cloze.models.build import check_head, load_body, load_decoder, load_masked_lm
from cloze.models.encoder import Encoder, isolate, position_offset
from cloze.models.opened import OpenedDecoder


class Subject:
    """A model, opened as each suite needs it.

    Args:
        model: a run's folder, a model folder or a hub id.
        unmask: groups of layers of a causal model in which later tokens are visible (`opened_layers`), for
            suites that fine-tune; None: a model is read as it is, or as its encoder twin.

    Errors: `ClozeError` where there is no model, or its tokenizer has no mask token or is not a fast one.

    Attributes:
        name: as the user gave it. path: the model folder, or the hub id.
        device: where it is evaluated.
    """

    def __init__(self, model: str | Path, unmask: str | None = None):
        self.name, self.path, self.unmask = str(model), model_folder(model), unmask
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Its tokenizer; decoders may have one without a mask token."""
        return load_tokenizer(self.path, add_mask_token=self.unmask is not None)

    @cached_property
    def masked_lm(self) -> Encoder:
        """The model with its masked-LM head, without dropout. Errors: it has no such head."""
        model = load_masked_lm(self.path)
        check_head(model, self.name)
        return isolate(model.eval()).to(self.device).eval()

    def body(self) -> PreTrainedModel:
        """A new copy of the encoder without a head, in float32 and without dropout (`eval`).

        A causal language model is read as an encoder, whose tokens see both sides.
        Each call loads it afresh, so everything that is fine-tuned starts from the same weights.
        """
        return load_body(self.path).eval().to(self.device)

    def tunable(self) -> PreTrainedModel | OpenedDecoder:
        """What is fine-tuned or probed: `body`, or the decoder with its opened layers.

        Errors: `unmask` does not fit the model.
        """
        if self.unmask is None:
            return self.body()
        return OpenedDecoder(load_decoder(self.path).eval().to(self.device), self.unmask)

    @cached_property
    def longest(self) -> int:
        """Greatest number of tokens of a sequence, special tokens included."""
        return self.longest_of(self.tokenizer)

    def longest_of(self, tokenizer: PreTrainedTokenizerFast) -> int:
        """The same with its tokenizer, which for a causal language model needs no mask token."""
        local = Path(self.path).exists() or offline()
        config = AutoConfig.from_pretrained(self.path, local_files_only=local, trust_remote_code=False)
        positions = getattr(config, "max_position_embeddings", None) or 2**31
        return min(positions - position_offset(config), int(tokenizer.model_max_length))
