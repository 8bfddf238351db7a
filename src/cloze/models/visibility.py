"""Who sees whom: one attention function for packed, causal and local attention.

transformers hands every extra keyword of a model's forward call to the registered attention function, in
every layer. So an encoder becomes packed or causal without a line of its own code: call it with
`visibility=Visibility(...)`. Restarting `position_ids` alone isolates nothing in stock code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from cloze.errors import ClozeError

NAME = "cloze"


class Visibility:
    """Visibility of one forward pass; masks are made once and shared by the layers.

    Args:
        segments: [rows, length] int64; a token sees the tokens of its own segment only.
        causal: a token sees only itself and what is before it.
        dense: all rows are one segment each, so that no mask is needed for it.
    """

    def __init__(self, segments: Tensor, causal: bool = False, dense: bool = False):
        self.segments = segments
        self.causal = causal
        self.dense = dense
        self._masks: dict[int | None, Tensor | None] = {}

    def mask(self, reach: int | None) -> Tensor | None:
        """[rows or 1, 1, length, length] bool, True where the query (dim 2) sees the key; None: everything.

        `reach` is the number of tokens that are visible on each side; None is no limit.
        """
        if reach not in self._masks:
            self._masks[reach] = self._make(reach)
        return self._masks[reach]

    def _make(self, reach: int | None) -> Tensor | None:
        length = self.segments.shape[1]
        local = reach is not None and reach < length - 1
        mask: Tensor | None = None
        if not self.dense:
            mask = self.segments[:, None, :, None] == self.segments[:, None, None, :]
        if local or self.causal:
            place = torch.arange(length, device=self.segments.device)
            ahead = place[None, :] - place[:, None]  # key minus query
            seen = torch.ones_like(ahead, dtype=torch.bool)
            if local:
                assert reach is not None
                seen = ahead.abs() <= reach
            if self.causal:
                seen = seen & (ahead <= 0)
            mask = seen[None, None] if mask is None else mask & seen
        return mask


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    visibility: Visibility | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention for transformers' `AttentionInterface`: [rows, heads, length, width] in and transposed out.

    ModernBERT hands over its half-window + 1 as `sliding_window`.
    """
    if visibility is None:
        raise ClozeError("this model was set up for cloze's attention, but called without `visibility`")
    if attention_mask is not None:
        raise ClozeError("cloze's attention takes no attention_mask: give segments by `visibility` instead")
    if key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    mask = visibility.mask(None if sliding_window is None else sliding_window - 1)
    out = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def _mask_function(*, attention_mask: Tensor | None = None, **_: Any) -> None:
    """Stock code drops a 2-D mask silently when no mask function is registered; this one speaks."""
    if attention_mask is not None:
        raise ClozeError("cloze's attention takes no attention_mask: give segments by `visibility` instead")


def register() -> None:
    """Make the attention known to transformers under `NAME` (harmless when called again)."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, _mask_function)
