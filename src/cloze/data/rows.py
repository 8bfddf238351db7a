"""The rows of one store at one length: an index that is built once and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloze.data.heldout import HeldOut, threshold
from cloze.data.packing import Packer, Pieces, runs_of
from cloze.data.store import SECTION, PartView, Store

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """How samples are laid in rows.

    Attributes:
        length: tokens in a row.
        prefix, suffix: special tokens around every sample.
        longest: most tokens in a sample, specials included.
        alone: one sample a row.
    """

    length: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    longest: int
    alone: bool = False

    @property
    def specials(self) -> int:
        """Special tokens of each sample."""
        return len(self.prefix) + len(self.suffix)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of packed samples of a store, training or held-out ones.

    Attributes:
        store: where the tokens are.
        layout: how samples are laid in rows.
        pieces: the samples, in the order of their rows.
        tokens: tokens of text in all rows.
    """

    store: Store
    layout: Layout
    pieces: Pieces
    tokens: int

    def __len__(self) -> int:
        return self.pieces.rows.size - 1

    @property
    def used(self) -> int:
        """Slots that are not padding: text and special tokens."""
        return self.tokens + self.pieces.record.size * self.layout.specials

    @property
    def fill(self) -> float:
        """Share of the slots that is not padding."""
        return self.used / max(1, len(self) * self.layout.length)


def _sections(part: PartView) -> tuple[np.ndarray, np.ndarray]:
    """Place of each section's first token in its part, and its number of tokens, int64."""
    places = np.flatnonzero(part.flags & SECTION)
    return places, np.diff(np.append(places, part.tokens.size))


def held_out_threshold(stores: Sequence[Store], config: HeldOut) -> int:
    """The section hash up to which sections of these stores are held out; kept in the first one's folder."""
    file = _kept(stores[0], "limit", [[s.key for s in stores], config.share, config.minimum])
    file = file.with_suffix(".json")
    if file.is_file():
        return int(json.loads(file.read_text("utf-8")))
    parts = (part for store in stores for part in store.parts())
    limit = threshold(((part.section_hashes, _sections(part)[1]) for part in parts), config)
    if os.access(stores[0].folder, os.W_OK):
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(limit), "utf-8")
        os.replace(temporary, file)
    return limit


def shared_text(stores: Iterable[Store], held_out: Iterable[Store]) -> float:
    """Share of the tokens of `held_out` whose section is, word for word, in `stores` as well."""
    parts = [part for store in held_out for part in store.parts()]
    hashes = np.concatenate([part.section_hashes for part in parts])
    tokens = np.concatenate([_sections(part)[1] for part in parts])
    seen = np.zeros(hashes.size, bool)
    for store in stores:
        for part in store.parts():
            seen |= np.isin(hashes, part.section_hashes)
    return float(tokens[seen].sum() / max(1, tokens.sum()))


def build_rows(store: Store, layout: Layout, limit: int | None, held_out: bool) -> Rows:
    """Rows of the sections whose hash is above `limit` (or, `held_out`, not above); None: all sections.

    The index is kept in the store's folder and found again there; where that cannot be written, in memory.
    """
    shape = [layout.length, layout.specials, layout.longest, layout.alone]
    folder = _kept(store, "rows", [*shape, limit, held_out])
    if (folder / "rows.npy").is_file():
        pieces = _read(folder)
    else:
        pieces = _pack(store, layout, limit, held_out)
        if os.access(store.folder, os.W_OK):
            _write(folder, pieces)
            pieces = _read(folder)
    return Rows(store, layout, pieces, int(pieces.length.sum()))


def _kept(store: Store, what: str, of: list[object]) -> Path:
    """Where in the store's folder something is kept that is made of it."""
    name = json.dumps([_FORMAT, store.key, *of])
    return store.folder / f"{what}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"


_PartRuns = tuple[PartView, np.ndarray, np.ndarray, np.ndarray]  # with record, start and stop of each run


def _runs(store: Store, limit: int | None, held_out: bool) -> Iterator[_PartRuns]:
    for part in store.parts():
        places, _ = _sections(part)
        counts = np.diff(part.section_offsets)
        record = np.repeat(np.arange(counts.size), counts)
        starts = places - part.offsets[record]
        held = np.ones(places.size, bool) if limit is None else part.section_hashes <= np.uint64(limit)
        wanted = True if limit is None else held_out
        yield part, *runs_of(starts, held, np.diff(part.offsets), part.section_offsets, wanted)


def _pack(store: Store, layout: Layout, limit: int | None, held_out: bool) -> Pieces:
    packer = Packer(layout.length, layout.specials, layout.longest, layout.alone)
    for part, record, start, stop in _runs(store, limit, held_out):
        for r, a, b in zip((record + part.first_record).tolist(), start.tolist(), stop.tolist(), strict=True):
            packer.add(r, a, b)
    return packer.pieces()


def _read(folder: Path) -> Pieces:
    return Pieces(
        *(np.load(folder / f"{c}.npy", mmap_mode="r") for c in ("record", "start", "length", "rows"))
    )


def _write(folder: Path, pieces: Pieces) -> None:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for column in ("record", "start", "length", "rows"):
        np.save(temporary / f"{column}.npy", getattr(pieces, column))
    try:
        os.replace(temporary, folder)
    except OSError:  # another process was first, with the same content
        shutil.rmtree(temporary, ignore_errors=True)


def count_tokens(store: Store, limit: int | None, held_out: bool, size: int) -> np.ndarray:
    """How often each token id occurs in the (held-out) text: [size] int64. Kept in the store's folder."""
    file = _kept(store, "counts", [limit, held_out, size]).with_suffix(".npy")
    if file.is_file():
        return np.load(file)
    counts = _count(store, limit, held_out, size)
    if os.access(store.folder, os.W_OK):
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as target:
            np.save(target, counts)
        os.replace(temporary, file)
    return counts


def _count(store: Store, limit: int | None, held_out: bool, size: int) -> np.ndarray:
    counts = np.zeros(size, np.int64)
    for part, record, start, stop in _runs(store, limit, held_out):
        first = part.offsets[record]
        edges = np.zeros(part.tokens.size + 1, np.int8)
        edges[first + start] += 1
        edges[first + stop] -= 1
        inside = edges[:-1].cumsum(dtype=np.int8).astype(bool)
        counts += np.bincount(part.tokens[inside], minlength=size)[:size]
    return counts


def count_held_out(store: Store, limit: int | None) -> tuple[int, int]:
    """Characters and tokens of the sections that are held out; None: of all."""
    characters = tokens = 0
    for part in store.parts():
        held = slice(None) if limit is None else part.section_hashes <= np.uint64(limit)
        characters += int(part.section_chars[held].sum(dtype=np.int64))
        tokens += int(_sections(part)[1][held].sum())
    return characters, tokens
