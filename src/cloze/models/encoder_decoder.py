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
from cloze.models.leaks import LENGTH, LONGEST, leaking, noticed
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
    found = leaks(made)
    if found or differs(made):
        seen = f"tokens see what they must not ({'; '.join(found)})"
        why = seen if found else "its logits are something else"
        raise ClozeError(f"{type(model).__name__}: {why}; cloze cannot pretrain it")
    return made


@torch.no_grad()
def leaks(encoder: EncoderDecoder, length: int = LENGTH) -> list[str]:
    """Probe whether an output sees another sample, padding, or later tokens of its answer.

    As `models.leaks.leaks`, with rows of `length` tokens that are read, and as many that are answered.
    """
    table = encoder.vocabulary.weight
    block = max(1, min(length, LONGEST) // 8)
    place = torch.arange(8 * block, device=table.device)
    segments = torch.where(place < 6 * block, place // (3 * block), -1)
    index = torch.where(segments < 0, 0, place % (3 * block))
    third = torch.where(segments < 0, 6, place // block)
    read = torch.where(segments < 0, 2, segments)
    same = segments[:, None] == segments[None]
    allowed = torch.cat([same, same & (place[None] <= place[:, None])], 1)
    blocks, both = torch.cat([read, 3 + third]), torch.cat([segments, segments])

    def run(ids: Tensor) -> Tensor:
        shift = 2 * torch.arange(len(ids), device=ids.device)[:, None]
        numbered = torch.where(segments < 0, -1, segments + shift)
        at = index.expand(len(ids), -1)
        given, answer = ids.split(place.numel(), 1)
        views = View(given, numbered, at, at), View(answer, numbered, at, at, causal=True)
        return encoder(*views, place[:1]).hidden

    training = encoder.training
    encoder.eval()
    try:
        found = noticed(run, blocks, table.shape[0])
    finally:
        encoder.train(training)
    return [f"enc_dec: {what}" for what in leaking(found, allowed, blocks, segments, both)]


@torch.no_grad()
def differs(encoder: EncoderDecoder) -> bool:
    """Probe whether the logits of one sample differ from the stock model's."""
    training = encoder.training
    encoder.eval()
    layer = encoder.vocabulary
    given, answer = (_text(n, layer.weight, causal) for n, causal in ((9, False), (5, True)))
    stock = encoder.model(input_ids=given.ids, decoder_input_ids=answer.ids, use_cache=False).logits[0]
    ours = nn.functional.linear(
        encoder(given, answer, answer.positions[0]).features, layer.weight, layer.bias
    )
    encoder.train(training)
    return not torch.allclose(ours, stock, rtol=1e-3, atol=1e-3)


def _text(length: int, table: Tensor, causal: bool) -> View:
    """A row of one sample."""
    place = torch.arange(length, device=table.device)[None]
    return View((place * 7919 + 13) % table.shape[0], torch.zeros_like(place), place, place, causal)
