"""View: what one forward pass of a network gets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cloze.data.batch import Batch, positions


@dataclass(frozen=True, slots=True)
class View:
    """The input of one forward pass. Labels are read from the batch through `origin`.

    Attributes:
        ids: [rows, length] int64, what the network sees; the length may differ from the batch's.
        segments: [rows, length] int64, as in `Batch`; tokens see only their own segment.
        positions: [rows, length] int64, restarting at each sample, from 0.
        origin: [rows, length] int64, flat index into the batch's [rows × length] tokens; -1 for tokens
            that were inserted and for padding.
        causal: a token sees only itself and what is before it.
        open: [rows, length] bool, of a causal view: tokens that their whole sample sees; None: none.
        dense: as in `Batch`.
        runs: as in `Visibility`: an upper bound that is known without looking at a GPU's memory.
    """

    ids: Tensor
    segments: Tensor
    positions: Tensor
    origin: Tensor
    causal: bool = False
    dense: bool = False
    runs: int | None = None
    open: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch, ids: Tensor, causal: bool = False) -> View:
        """A view with the batch's own layout and other ids."""
        flat = torch.arange(ids.numel(), device=ids.device).view_as(ids)
        origin = torch.where(batch.segments >= 0, flat, -1)
        runs = batch.samples + batch.ids.shape[0]  # at most one piece of padding a row, at its end
        return cls(ids, batch.segments, positions(batch.segments), origin, causal, batch.dense, runs)

    def to(self, device: torch.device | str) -> View:
        """The same view on another device."""
        tensors = ("ids", "segments", "positions", "origin", *(() if self.open is None else ("open",)))
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in tensors})
