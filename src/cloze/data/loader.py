"""Batches by position: a batch is a pure function of (rows, seed, cursor)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from cloze.data.batch import Batch
from cloze.data.order import permute, quotas, source_of
from cloze.data.rows import Layout, Rows
from cloze.data.store import PARAGRAPH, SENTENCE, UNIT
from cloze.errors import ClozeError
from cloze.random import Stream, bits


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and after a text, such as [CLS] and [SEP]."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for at in range(len(full) - len(bare) + 1):
        if bare and full[at : at + len(bare)] == bare:
            return tuple(full[:at]), tuple(full[at + len(bare) :])
    raise ClozeError("the tokenizer's special tokens cannot be told from its text; check its post-processor")


@dataclass(frozen=True)
class Loader:
    """Batches of rows from weighted sources.

    Attributes:
        sources: rows of each source, all with the same layout.
        weights: share of rows from each; for one source it does not matter.
        seed: of the order. None: rows in their order, once (for evaluation).
        pad: id of padding.
        specials: ids that are never masked.
    """

    sources: tuple[Rows, ...]
    weights: tuple[float, ...]
    seed: int | None
    pad: int
    specials: frozenset[int]

    @property
    def layout(self) -> Layout:
        """How samples are laid in rows."""
        return self.sources[0].layout

    @property
    def fill(self) -> float:
        """Share of the slots that is not padding, sources weighted as they are drawn."""
        total = sum(self.weights)
        return sum(r.fill * w / total for r, w in zip(self.sources, self.weights, strict=True))

    def rows_at(self, places: Sequence[int]) -> list[tuple[int, int, int]]:
        """(source, row, visit) of the rows at positions `places` of the endless sequence."""
        position = torch.tensor(places)
        if self.seed is None:
            source, place = self._in_order(position)
            return list(zip(source.tolist(), place.tolist(), [0] * len(places), strict=True))
        source, place = source_of(position, quotas(list(self.weights)), self.seed)
        row, visit = torch.empty_like(place), torch.empty_like(place)
        for i, rows in enumerate(self.sources):
            mine = source == i
            if bool(mine.any()):
                visit[mine] = place[mine] // len(rows)
                row[mine] = permute(place[mine] % len(rows), len(rows), self.seed + i, visit[mine])
        return list(zip(source.tolist(), row.tolist(), visit.tolist(), strict=True))

    def _in_order(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ends = torch.tensor([len(r) for r in self.sources]).cumsum(0)
        source = torch.searchsorted(ends, position, right=True)
        return source, position - torch.cat([ends.new_zeros(1), ends[:-1]])[source]

    def batch(self, cursor: int, count: int) -> Batch:
        """The rows at positions cursor … cursor + count - 1 as one batch."""
        return replace(self.assemble(self.rows_at(range(cursor, cursor + count))), place=cursor)

    def assemble(self, chosen: Sequence[tuple[int, int, int]]) -> Batch:
        """One batch of the given (source, row, visit)."""
        layout = self.layout
        count = len(chosen)
        ids = np.full((count, layout.length), self.pad, np.int64)
        segments = np.full((count, layout.length), -1, np.int64)
        index, units = segments.copy(), segments.copy()
        starts = np.zeros((count, layout.length), np.uint8)
        names: list[tuple[int, int, int, int, int, int]] = []
        before, after = np.array(layout.prefix, np.int64), np.array(layout.suffix, np.int64)
        for r, (source, row, visit) in enumerate(chosen):
            rows = self.sources[source]
            pieces = rows.pieces
            at = 0
            for p in range(int(pieces.rows[row]), int(pieces.rows[row + 1])):
                record, start, size = int(pieces.record[p]), int(pieces.start[p]), int(pieces.length[p])
                first, last = at + before.size, at + before.size + size
                stop = last + after.size
                ids[r, at:first], ids[r, last:stop] = before, after
                ids[r, first:last] = rows.store.tokens(record, start, start + size)
                segments[r, at:stop] = len(names)
                index[r, first:last] = np.arange(size)
                starts[r, first:last] = rows.store.flags(record, start, start + size)
                starts[r, first] |= UNIT | SENTENCE | PARAGRAPH
                units[r, first:last] = ((starts[r, first:last] & UNIT) > 0).cumsum() - 1
                names.append((source, record, start, size, visit, rows.store.document(record)))
                at = stop
        name = torch.tensor(names, dtype=torch.int64).reshape(-1, 6)
        keys = bits(0, Stream.KEY, *name[:, :4].unbind(1))
        maskable = torch.from_numpy(index >= 0)
        token = torch.from_numpy(ids)
        if self.specials:
            maskable &= ~torch.isin(token, torch.tensor(sorted(self.specials)))
        return Batch(
            token,
            torch.from_numpy(segments),
            torch.from_numpy(index),
            torch.from_numpy(units),
            maskable,
            keys,
            visits=name[:, 4].clone(),
            dense=bool((segments == segments[:, :1]).all()),
            flags=torch.from_numpy(starts),
            documents=bits(0, Stream.KEY, name[:, 0], name[:, 5]),
        )

    def describe(self, cursor: int, count: int) -> list[str]:
        """Where the rows come from, for error messages: "source:record:first token"."""
        found = []
        for source, row, _ in self.rows_at(range(cursor, cursor + count)):
            pieces = self.sources[source].pieces
            first = int(pieces.rows[row])
            found.append(f"{source}:{int(pieces.record[first])}:{int(pieces.start[first])}")
        return found


class _Batches(Dataset[Batch]):
    def __init__(self, loader: Loader):
        self.loader = loader

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        return self.loader.batch(*place)


def stream(loader: Loader, places: Sequence[tuple[int, int]], workers: int) -> Iterator[Batch]:
    """The batches at (cursor, rows) `places`, in order, made by so many worker processes (0: none)."""
    if workers == 0:
        for place in places:
            yield loader.batch(*place)
        return
    # The tokenizer's threads may have run in this process already; its warning about forks is not for us.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    yield from DataLoader(
        _Batches(loader), batch_size=None, sampler=places, num_workers=workers, worker_init_fn=_deaf
    )


def _deaf(_worker: int) -> None:
    """A Ctrl-C in the terminal is for the main process, which needs its workers to finish the step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
