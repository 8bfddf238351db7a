"""Reading a trained model with any visibility, whatever class it went out under."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cloze.corruption.view import View
from cloze.data.tokenizers import load_tokenizer
from cloze.errors import ClozeError
from cloze.fill import model_folder
from cloze.models.build import check_head, load_masked_lm
from cloze.models.detector import is_detector
from cloze.models.encoder import Encoder, isolate

Sees = Literal["all", "causal", "prefix"]


class Reader:
    """A model and its tokenizer; made by `load`.

    Attributes:
        encoder: runs a `View` (`cloze.models.encoder`). tokenizer: the model's own.
    """

    def __init__(self, encoder: Encoder, path: str):
        self.encoder, self.tokenizer = encoder, load_tokenizer(path)

    @torch.no_grad()
    def logits(self, text: str | Tensor, visibility: Sees = "all", prefix: int = 0) -> Tensor:
        """[tokens, vocabulary] float32, what the output at each token gives.

        It is about that token, or, of a model that was trained to predict the next token, about the one after
        it, whatever the visibility.

        Args:
            text: put between the tokenizer's special tokens; or token ids, [tokens] int64, as they are.
            visibility: "all": every token sees every other; "causal": itself and what is before it; "prefix":
                also the first `prefix` tokens, special tokens counted.

        Errors: a text that is too long; a model that cannot be run causally.
        """
        layer = self.encoder.vocabulary
        ids = torch.tensor(self.tokenizer(text)["input_ids"]) if isinstance(text, str) else text
        if ids.numel() > self.encoder.longest():
            raise ClozeError(
                f"the text has {ids.numel():,} tokens, the model takes {self.encoder.longest():,}: shorten it"
            )
        ids = ids.to(layer.weight.device)[None]
        place = torch.arange(ids.numel(), device=ids.device)[None]
        open = place < prefix if visibility == "prefix" else None
        view = View(ids, torch.zeros_like(ids), place, place, visibility != "all", dense=True, open=open)
        features = self.encoder(view, place[0]).features
        return torch.nn.functional.linear(features, layer.weight, layer.bias).float()


def load(model: str | Path) -> Reader:
    """A run, a model folder or a hub id, ready to be read; in float32, without dropout.

    Errors: no model there, or one without a language model's head.
    """
    path = model_folder(model)
    model_ = load_masked_lm(path, causal=True)
    if is_detector(model_.config):
        check_head(model_, str(model))
    return Reader(isolate(model_).eval(), path)
