"""An encoder-decoder as a method sees it: a text is read, and outputs of the decoder predict another one.

T5 has relative positions only, so rows of packed samples need nothing but masks: 4-D ones, which transformers
hands through as they are. The head runs at chosen places, as in `encoder.py`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cloze.corruption.view import View
from cloze.errors import ClozeError
from cloze.models.encoder import Encoded, Encoder, isolate
from cloze.models.twins import is_encoder_decoder
from cloze.models.visibility import Visibility

HIDDEN = -1e9  # added to the scores of what is not seen


class EncoderDecoder(nn.Module):
    """Wraps a model such as `T5ForConditionalGeneration`; owns all of its parameters under `model`.

    Attributes:
        isolates: packed samples are kept apart; always, for models that do not are refused.
    """

    isolates = True

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.training = model.training
        self.start = int(model.config.decoder_start_token_id)

    @property
    def vocabulary(self) -> nn.Linear:
        """The layer from features to logits."""
        return cast(nn.Linear, self.model.get_output_embeddings())

    def longest(self) -> int:
        """Greatest number of tokens of a sample that it was made for; relative positions go on beyond it."""
        return int(getattr(self.model.config, "n_positions", 512))

    def forward(self, given: View, answer: View, places: Tensor) -> Encoded:
        """Read `given`, run the decoder on `answer`; `places` [N] are flat indices into its tokens.

        Returns: hidden states of the decoder [rows, length of the answer, width], and features [N, width].
        """
        model: Any = self.model
        read = model.encoder(
            input_ids=given.ids, attention_mask=_added(Visibility(given.segments).mask(None))
        )
        seen = answer.segments[:, None, :, None] == given.segments[:, None, None, :]
        out = model.decoder(
            input_ids=answer.ids,
            attention_mask=_added(Visibility(answer.segments, causal=True).mask(None)),
            encoder_hidden_states=read.last_hidden_state,
            encoder_attention_mask=_added(seen),
            use_cache=False,
        )
        hidden = out.last_hidden_state
        features = hidden.flatten(0, 1).index_select(0, places)
        if model.config.scale_decoder_outputs:
            features = features * model.config.d_model**-0.5
        return Encoded(hidden, features)


def _added(mask: Tensor | None) -> Tensor:
    assert mask is not None
    return torch.where(mask, 0.0, HIDDEN)


def wrap(model: PreTrainedModel) -> Encoder | EncoderDecoder:
    """The model as methods see it; packed samples are known to be apart, or rows are to hold one sample each.

    Errors: an encoder-decoder that lets packed samples see each other, or whose logits are something else.
    """
    if not is_encoder_decoder(model.config):
        return isolate(model)
    made = EncoderDecoder(model)
    if leaks(made) or differs(made):
        raise ClozeError(f"{type(model).__name__}: packed samples see each other; cloze cannot pretrain it")
    return made


def _views(sizes: list[tuple[int, int]], size: int, shift: int) -> tuple[View, View]:
    """One row of samples of (given, answer) tokens; `shift` changes the tokens of the last one."""
    parts = []
    for number in range(2):
        lengths = torch.tensor([pair[number] for pair in sizes])
        segments = torch.arange(len(sizes)).repeat_interleave(lengths)
        place = torch.arange(segments.numel())
        ids = (place * 7919 + 13 + torch.where(segments == len(sizes) - 1, shift, 0)) % size
        index = torch.cat([torch.arange(n) for n in lengths.tolist()])
        parts.append(View(ids[None], segments[None], index[None], place[None], causal=number == 1))
    return parts[0], parts[1]


@torch.no_grad()
def leaks(encoder: EncoderDecoder) -> bool:
    """Probe: change one of two packed samples, in what is read and in what is answered; look at the other."""
    training = encoder.training
    encoder.eval()
    table = encoder.vocabulary.weight
    hidden = []
    for shift in (0, table.shape[0] // 2):
        views = [v.to(table.device) for v in _views([(9, 5), (7, 4)], table.shape[0], shift)]
        hidden.append(encoder(*views, views[1].positions[0]).hidden[0, :5])
    encoder.train(training)
    return not torch.equal(*hidden)


@torch.no_grad()
def differs(encoder: EncoderDecoder) -> bool:
    """Probe whether the logits of one sample differ from the stock model's."""
    training = encoder.training
    encoder.eval()
    layer = encoder.vocabulary
    given, answer = (v.to(layer.weight.device) for v in _views([(9, 5)], layer.weight.shape[0], 0))
    stock = encoder.model(input_ids=given.ids, decoder_input_ids=answer.ids, use_cache=False).logits[0]
    ours = nn.functional.linear(
        encoder(given, answer, answer.positions[0]).features, layer.weight, layer.bias
    )
    encoder.train(training)
    return not torch.allclose(ours, stock, rtol=1e-3, atol=1e-3)
