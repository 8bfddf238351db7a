"""What a method is given: rows of packed samples, and who is who in them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of packed samples, before anything is masked.

    A *sample* is a chunk of one document: the thing that is masked, keyed and counted. Samples are
    numbered through the whole batch, so one scatter reaches all of them.

    Attributes:
        ids: [rows, length] int64, the clean tokens, specials and padding included.
        segments: [rows, length] int64, number of the sample in this batch; -1 is padding.
        index: [rows, length] int64, place of the token in its sample, specials not counted; -1 for
            specials and padding. Masks are keyed by it, so packing does not change them.
        units: [rows, length] int64, number of the unit (word, k-mer) within the sample; -1 as above.
        maskable: [rows, length] bool, a token that may be hidden or predicted.
        keys: [samples] int64, a name for each sample that outlives this batch.
        visits: [samples] int64, how often each sample was seen before.
        dense: every row is one sample without padding, so that attention needs no mask. Known where the
            batch is made, for looking it up on a GPU would wait for the GPU.
        place: of the first row in the run's endless sequence of rows; the others follow it.
        flags: [rows, length] uint8, what starts at a token of text, as in a store (`PartView`): a unit, a
            sentence, a paragraph, a section. A sample's first token starts the first three. None: not known.
        documents: [samples] int64, a name for the document of each sample. None: not known.
    """

    ids: Tensor
    segments: Tensor
    index: Tensor
    units: Tensor
    maskable: Tensor
    keys: Tensor
    visits: Tensor
    dense: bool = False
    place: int = 0
    flags: Tensor | None = None
    documents: Tensor | None = None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.keys.numel()

    def repeat(self, copies: int) -> Batch:
        """Every row `copies` times, as more visits: visit v becomes v·copies, v·copies + 1, and so on."""
        if copies == 1:
            return self
        number = torch.arange(copies, device=self.ids.device)
        apart = (number * self.samples)[:, None, None]
        segments = torch.where(self.segments >= 0, self.segments + apart, -1)
        return Batch(
            self.ids.repeat(copies, 1),
            segments.flatten(0, 1),
            self.index.repeat(copies, 1),
            self.units.repeat(copies, 1),
            self.maskable.repeat(copies, 1),
            self.keys.repeat(copies),
            (self.visits * copies + number[:, None]).flatten(),
            self.dense,
            self.place,
            None if self.flags is None else self.flags.repeat(copies, 1),
            None if self.documents is None else self.documents.repeat(copies),
        )

    def take(self, rows: Tensor) -> Batch:
        """Some of its rows, [n] int64; samples keep their numbers, and those of other rows stay as names."""
        names = ("ids", "segments", "index", "units", "maskable", *(() if self.flags is None else ("flags",)))
        return replace(self, **{name: getattr(self, name).index_select(0, rows) for name in names})

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: x.to(device, non_blocking=True) for k, x in values.items() if isinstance(x, Tensor)}
        return Batch(**(values | moved))


def positions(segments: Tensor) -> Tensor:
    """Positions that restart at each sample, 0 in padding: [rows, length] int64, from the segments."""
    length = segments.shape[1]
    place = torch.arange(length, device=segments.device).expand_as(segments)
    fresh = torch.ones_like(segments, dtype=torch.bool)
    fresh[:, 1:] = segments[:, 1:] != segments[:, :-1]
    start = torch.where(fresh, place, 0).cummax(dim=1).values
    # Padding may be longer than any sample, and than the model has positions for.
    return torch.where(segments >= 0, place - start, 0)
