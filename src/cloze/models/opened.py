"""A causal model whose mask is removed in some groups of layers, for tasks that need both sides (2401.14556).

Its weights stay what they are: an opened layer lets each token see the whole text, the others only what is
before it. For fine-tuning, not for generation: there is no cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from cloze.errors import ClozeError
from cloze.models.attention import NAME, check_attention, register
from cloze.models.visibility import Visibility


def opened_layers(groups: str, layers: int) -> frozenset[int]:
    """The numbers of the layers in which later tokens are visible.

    Args:
        groups: a bit for each group of neighbouring layers, those nearest to the input first: "0011" opens
            the upper half. layers: how many there are; groups differ by one layer at most.

    Errors: something else than bits, or more groups than layers.
    """
    if not groups or set(groups) - {"0", "1"}:
        raise ClozeError(f"--unmask {groups}: write a 0 or 1 for each group of layers, such as 0011, or all")
    if len(groups) > layers:
        raise ClozeError(f"--unmask {groups}: the model has {layers} layers: give at most {layers} bits")
    return frozenset(n for n in range(layers) if groups[n * len(groups) // layers] == "1")


class OpenedDecoder(nn.Module):
    """The body of a decoder in which some groups of layers are open; `groups` as in `opened_layers`.

    Errors: a model that is not causal, or one whose attention cannot be changed (found by a probe).
    """

    config: Any

    def __init__(self, body: PreTrainedModel, groups: str):
        super().__init__()
        register()
        self.body, self.config = body, body.config
        layers = int(body.config.num_hidden_layers)
        self.open_layers = opened_layers(groups, layers)
        _check(self, layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        """States of padded rows.

        Args:
            input_ids: [rows, length]; those that the model does not know are padding, or stand for no text.
            attention_mask: [rows, length], 0 for the padding at the end of a row.
        """
        check_attention(self.body.config)
        rows, length = input_ids.shape
        table: Any = self.body.get_input_embeddings()
        ids = input_ids.masked_fill(input_ids >= table.num_embeddings, 0)
        place = torch.arange(length, device=ids.device).expand(rows, length)
        segments = torch.where(attention_mask.bool(), 0, -1)
        output: BaseModelOutput = self.body(
            input_ids=ids,
            position_ids=place,
            visibility=Visibility(segments, causal=True, runs=2 * rows, open_layers=self.open_layers),
            use_cache=False,
            return_dict=True,
        )
        return output


@torch.no_grad()
def _check(decoder: OpenedDecoder, layers: int) -> None:
    """Set our attention, and see that it computes the model's own and can be opened."""
    body, name, wanted = decoder.body, type(decoder.body).__name__, decoder.open_layers
    device = body.device
    ids = (torch.arange(12, device=device) * 7919 + 13) % body.config.vocab_size
    other = torch.cat([ids[:-1], (ids[-1:] + 1) % body.config.vocab_size])
    pair, mask = torch.stack([ids, other]), torch.ones(2, 12, dtype=torch.long, device=device)
    training = body.training
    body.eval()
    own = body(input_ids=pair, use_cache=False).last_hidden_state
    if not torch.allclose(own[0, :-1], own[1, :-1], atol=1e-5):
        raise ClozeError(f"{name}: its tokens see both sides already; --unmask is for causal language models")
    try:
        body.set_attn_implementation(NAME)
        decoder.open_layers = frozenset()
        closed = decoder(pair, mask).last_hidden_state
        decoder.open_layers = frozenset({layers - 1})
        opened = decoder(pair, mask).last_hidden_state
    except (ValueError, ImportError, TypeError, RuntimeError, ClozeError) as error:
        raise ClozeError(f"{name}: cannot be run by cloze ({' '.join(str(error).split())})") from error
    if not torch.allclose(closed, own, rtol=1e-3, atol=1e-3) or torch.equal(opened[0, 0], opened[1, 0]):
        raise ClozeError(f"{name}: cannot be run by cloze, whose attention it ignores or uses in its own way")
    decoder.open_layers = wanted
    body.train(training)
