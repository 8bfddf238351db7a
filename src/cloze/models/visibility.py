"""Who sees whom: packed, causal, prefix and local attention as one value that reaches every layer.

transformers hands every extra keyword of a model's forward call to the registered attention function
(attention.py), in every layer. So an encoder becomes packed or causal without a line of its own code: call
it with `visibility=Visibility(...)`. Restarting `position_ids` alone isolates nothing in stock code.

The same visibility in the three forms that kernels want: a mask, a block mask, boundaries of sequences.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from cloze.models.mosaicbert import bias_of


class Visibility:
    """Visibility of one forward pass; masks are made once and shared by the layers.

    Args:
        segments: [rows, length] int64; a token sees the tokens of its own segment only. A segment lies in
            one piece, in one row.
        causal: a token sees only itself and what is before it.
        open: [rows, length] bool, tokens that their whole segment sees although it is causal; None: none are.
        open_layers: numbers of the layers in which nothing is causal.
        dense: all rows are one segment each, so that no mask is needed for it.
        runs: at least as many as there are runs of equal segments in all rows, padding counted; None: not
            known. Only the size of `starts` follows from it.
    """

    def __init__(
        self,
        segments: Tensor,
        causal: bool = False,
        dense: bool = False,
        runs: int | None = None,
        open: Tensor | None = None,
        open_layers: frozenset[int] = frozenset(),
    ):
        self.segments = segments
        self.causal = causal
        self.open = open if causal else None
        self.open_layers = open_layers if causal else frozenset()
        self.dense = dense
        self.runs = segments.numel() if runs is None else runs
        self._masks: dict[int | None, Tensor | None] = {}
        self._blocks: dict[int | None, BlockMask] = {}
        self._starts: Tensor | None = None
        self._bias: Tensor | None = None
        self._both_sides = Visibility(segments, False, dense, runs) if self.open_layers else None

    def at(self, layer: int | None) -> Visibility:
        """What is visible in this layer."""
        if self._both_sides is None or layer not in self.open_layers:
            return self
        return self._both_sides

    def bias(self, slopes: Tensor) -> Tensor:
        """[heads, length, length] float32 of symmetric ALiBi, the same in all layers.

        Segments lie in one piece, so a distance in a row is one in a sample.
        """
        if self._bias is None:
            self._bias = bias_of(slopes, self.segments.shape[1])
        return self._bias

    def local(self, reach: int | None) -> bool:
        """Whether `reach` hides anything in rows of this length."""
        return reach is not None and reach < self.segments.shape[1] - 1

    def mask(self, reach: int | None) -> Tensor | None:
        """[rows or 1, 1, length, length] bool, True where the query (dim 2) sees the key; None: everything.

        `reach` is the number of tokens that are visible on each side; None is no limit.
        """
        if reach not in self._masks:
            self._masks[reach] = self._make(reach)
        return self._masks[reach]

    def _make(self, reach: int | None) -> Tensor | None:
        length = self.segments.shape[1]
        local = self.local(reach)
        mask: Tensor | None = None
        if not self.dense:
            mask = self.segments[:, None, :, None] == self.segments[:, None, None, :]
        if local or self.causal:
            place = torch.arange(length, device=self.segments.device)
            ahead = (place[None, :] - place[:, None])[None, None]  # key minus query
            seen = torch.ones_like(ahead, dtype=torch.bool)
            if self.causal:
                seen = ahead <= 0
            if self.open is not None:
                seen = seen | self.open[:, None, None, :]
            if local:
                assert reach is not None
                seen = seen & (ahead.abs() <= reach)
            mask = seen if mask is None else mask & seen
        return mask

    def blocks(self, reach: int | None) -> BlockMask:
        """The same for `flex_attention`, which leaves out blocks of tokens that do not see each other."""
        if reach not in self._blocks:
            segments, causal, open = self.segments, self.causal, self.open
            rows, length = segments.shape

            def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                seen = segments[row, query] == segments[row, key]
                if reach is not None:
                    seen = seen & ((key - query).abs() <= reach)
                if not causal:
                    return seen
                return seen & (key <= query if open is None else (key <= query) | open[row, key])

            self._blocks[reach] = create_block_mask(sees, rows, None, length, length, segments.device)
        return self._blocks[reach]

    def starts(self) -> Tensor:
        """[runs + 1] int32, where each run of equal segments starts in [rows × length], for `varlen_attn`.

        Padding is a run as well, so that every token sees itself. The rest is filled with the end: empty
        runs. The shape is known before the content, so nothing waits for a GPU and compiled code sees one.
        """
        if self._starts is None:
            fresh = F.pad(self.segments[:, 1:] != self.segments[:, :-1], (1, 0), value=True).flatten()
            total = fresh.numel()
            place = torch.arange(total, dtype=torch.int32, device=fresh.device)
            # Tokens inside a run write the 0 that slot 0 has anyway. A run too many has no slot: an error.
            slot = torch.where(fresh, fresh.cumsum(0) - 1, 0)
            starts = torch.full((self.runs,), total, dtype=torch.int32, device=fresh.device)
            starts = starts.scatter(0, slot, torch.where(fresh, place, 0))
            self._starts = F.pad(starts, (0, 1), value=total)
        return self._starts
