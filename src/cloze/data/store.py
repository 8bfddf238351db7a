"""The tokenised corpus on disk: Arrow files that are memory-mapped, never loaded."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cloze.data.writer import PARAGRAPH, SECTION, SENTENCE, UNIT
from cloze.errors import ClozeError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["FORMAT", "INDEX", "PARAGRAPH", "PARTIAL", "SECTION", "SENTENCE", "UNIT", "PartView", "Store"]

FORMAT = 2
_READ = (1, FORMAT)  # in the first one documents were numbered through the whole store
INDEX, PARTIAL, SHARD = "store.json", "store.partial.json", "shard.json"


@dataclass(frozen=True, slots=True)
class PartView:
    """One part of a store as zero-copy views of its memory-mapped file.

    The tokens of the part's record i are `tokens[offsets[i]:offsets[i + 1]]`, its sections' hashes
    `section_hashes[section_offsets[i]:section_offsets[i + 1]]`. `flags` has one entry per token: 1 a unit
    starts here, 2 a sentence, 4 a paragraph, 8 a section. `documents` has one number per record, from
    `first_document` on: records of one long document follow each other and share it. `first_record` and
    `first_document` are store-wide numbers of the part's record 0 and its document.
    """

    first_record: int
    first_document: int
    tokens: np.ndarray
    flags: np.ndarray
    offsets: np.ndarray
    section_hashes: np.ndarray
    section_chars: np.ndarray
    section_offsets: np.ndarray
    documents: np.ndarray


class Store:
    """A tokenised corpus, opened for reading; make one with `cloze.data.prepare.prepare`.

    `len(store)` is the number of records; a record is a document, or a piece of about 4 MB of a very long
    one, and has at least one token. `totals` holds "records", "tokens", "chars" and "documents". Views are
    read-only and cost no copy.
    """

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        """Take an index that has been read and checked; use `Store.open` instead."""
        self.folder = folder
        digests = [part.get("digest") for part in index["parts"]]
        # Of what is in it, wherever the files lay that it was made of; stores of an earlier version lack it.
        self.content = digests if all(digests) else index["fingerprint"]
        self.key: str = index["key"]  # of the text, the tokenizer and the format together
        self.vocabulary: int = index["vocabulary"]
        self.totals: dict[str, int] = index["totals"]
        self._index = index
        self._files = [folder / part["file"] for part in index["parts"]]
        bounds = np.cumsum([0, *(part["records"] for part in index["parts"])])
        self._bounds: list[int] = bounds.tolist()
        self._batches: dict[int, pa.RecordBatch] = {}
        self._views: dict[int, PartView] = {}

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Open a finished store. Raises ClozeError if the folder is none, is unfinished or lacks data."""
        folder = Path(folder)
        try:
            index = json.loads((folder / INDEX).read_text("utf-8"))
        except FileNotFoundError:
            if (folder / PARTIAL).exists():
                raise ClozeError(
                    f"{folder}: this store is unfinished; prepare it again, it goes on from there"
                ) from None
            if any(folder.glob(f"*/{SHARD}")):
                raise ClozeError(
                    f"{folder}: holds shards of a store; cloze prepare --merge --out {folder} joins them"
                ) from None
            raise ClozeError(f"{folder}: no store of tokenised text here (no {INDEX})") from None
        except (OSError, ValueError) as error:
            raise ClozeError(f"{folder / INDEX}: cannot be read ({error}); prepare the store again") from None
        if not isinstance(index, dict) or index.get("format") not in _READ:
            found = index.get("format") if isinstance(index, dict) else None
            raise ClozeError(f"{folder}: store format {found}, this version reads {FORMAT}; prepare it again")
        for part in index["parts"]:
            file = folder / part["file"]
            size = file.stat().st_size if file.exists() else None
            if size != part["bytes"]:
                state = "is missing" if size is None else f"has {size:,} bytes instead of {part['bytes']:,}"
                raise ClozeError(
                    f"{file}: this part of the store {state}; delete the folder and prepare it again"
                )
        return cls(folder, index)

    def __len__(self) -> int:
        """Number of records."""
        return self._bounds[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the folder: worker processes map the files themselves."""
        return Store.open, (self.folder,)

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer of this store is saved, for `load_tokenizer`."""
        return self.folder / "tokenizer"

    @cached_property
    def dataset(self) -> Dataset:
        """All records as one memory-mapped `datasets.Dataset`."""
        from datasets import Dataset, concatenate_datasets

        return concatenate_datasets([Dataset.from_file(str(file)) for file in self._files])

    def record_lengths(self) -> np.ndarray:
        """Tokens in each record; int64, one per record."""
        return np.concatenate([np.diff(part.offsets) for part in self.parts()]).astype(np.int64)

    def tokens(self, record: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Token ids [start, stop) of a record, uint16 or uint32."""
        view, first, last = self._locate(record)
        return view.tokens[first:last][start:stop]

    def flags(self, record: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Flags [start, stop) of a record, uint8: see `PartView`."""
        view, first, last = self._locate(record)
        return view.flags[first:last][start:stop]

    def document(self, record: int) -> int:
        """Number of the document that the record is a piece of."""
        view = self._view(self._part_of(record))
        return view.first_document + int(view.documents[record - view.first_record])

    def sections(self, record: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A record's sections: first tokens (int64), hashes of their texts (uint64), characters (uint32)."""
        view, _, _ = self._locate(record)
        first, last = view.section_offsets[record - view.first_record :][:2]
        starts = np.flatnonzero(self.flags(record) & SECTION)
        return starts, view.section_hashes[first:last], view.section_chars[first:last]

    def meta(self, record: int) -> dict[str, str | int | float]:
        """The other fields of the record's document, as its source gave them."""
        part = self._part_of(record)
        return json.loads(self._batch(part).column("meta")[record - self._bounds[part]].as_py())

    def parts(self) -> Iterator[PartView]:
        """All parts in order, for building an index without touching record after record."""
        return map(self._view, range(len(self._files)))

    def _part_of(self, record: int) -> int:
        if not 0 <= record < len(self):
            raise IndexError(f"record {record} of a store of {len(self)}")
        return bisect_right(self._bounds, record) - 1

    def _locate(self, record: int) -> tuple[PartView, int, int]:
        view = self._view(self._part_of(record))
        index = record - view.first_record
        return view, view.offsets[index], view.offsets[index + 1]

    def _batch(self, part: int) -> pa.RecordBatch:
        if part not in self._batches:
            file = self._files[part]
            try:
                self._batches[part] = pa.ipc.open_stream(pa.memory_map(str(file))).read_next_batch()
            except (OSError, StopIteration, pa.ArrowInvalid) as error:
                raise ClozeError(
                    f"{file}: not a readable part of a store ({error}); prepare it again"
                ) from None
        return self._batches[part]

    def _view(self, part: int) -> PartView:
        if part not in self._views:
            batch = self._batch(part)
            tokens, hashes = batch.column("tokens"), batch.column("section_hashes")
            self._views[part] = PartView(
                first_record=self._bounds[part],
                first_document=self._index["parts"][part].get("first_document", 0),
                tokens=tokens.values.to_numpy(zero_copy_only=True),
                flags=batch.column("flags").values.to_numpy(zero_copy_only=True),
                offsets=tokens.offsets.to_numpy(zero_copy_only=True),
                section_hashes=hashes.values.to_numpy(zero_copy_only=True),
                section_chars=batch.column("section_chars").values.to_numpy(zero_copy_only=True),
                section_offsets=hashes.offsets.to_numpy(zero_copy_only=True),
                documents=batch.column("document").to_numpy(zero_copy_only=True),
            )
        return self._views[part]
