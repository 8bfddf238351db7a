"""Tokenising one part of a corpus and writing it as an Arrow file; what a worker process of `prepare` runs.

Imports neither torch, transformers nor datasets, so that worker processes start at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Encoding, Tokenizer

from cloze.data.sections import section_hash, section_starts, sentence_starts, split_paragraphs
from cloze.data.units import UnitRule

UNIT, SENTENCE, PARAGRAPH, SECTION = 1, 2, 4, 8
_BATCH_CHARS = 1_000_000


@dataclass(frozen=True, slots=True)
class Record:
    """A document or a piece of a very long one: its number in the corpus, text, and other fields as JSON."""

    document: int
    text: str
    meta: str


@dataclass(frozen=True, slots=True)
class PartCounts:
    """What one part holds: records, tokens, characters of text read, and a digest of the tokens and sections.

    Parts that an earlier version wrote have no digest.
    """

    records: int
    tokens: int
    chars: int
    digest: str = ""


@dataclass
class PartWriter:
    """Tokenises parts with one tokenizer. `dtype` is the type of the token ids: np.uint16 or np.uint32."""

    tokenizer: Tokenizer
    dtype: type[np.unsignedinteger]
    rule: UnitRule = field(init=False)

    def __post_init__(self) -> None:
        """Switch off what would change tokens: truncation, padding, special tokens spelt out in text."""
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        # A "[MASK]" written in somebody's text is text, not the special token.
        self.tokenizer.encode_special_tokens = True
        self.rule = UnitRule.probe(self.tokenizer)

    def write(self, records: Sequence[Record], path: Path) -> PartCounts:
        """Tokenise `records` into the Arrow stream file `path`, which appears only when complete.

        Records without a token are left out. Raises OSError when the disk does not take it.
        """
        columns, counts = self._columns(records)
        write_part(columns, counts, path)
        return counts

    def _columns(self, records: Sequence[Record]) -> tuple[dict[str, pa.Array], PartCounts]:
        paragraphs: list[str] = []
        firsts = [0]  # of each record, the index of its first paragraph
        for record in records:
            paragraphs += split_paragraphs(record.text)
            firsts.append(len(paragraphs))
        ids, flags, bounds = self._encode(paragraphs)
        places = bounds.tolist()
        opened, hashes, chars, sections_of = [], [], [], [0]
        for first, last in pairwise(firsts):
            starts = [first + start for start in section_starts(paragraphs[first:last])]
            for start, stop in pairwise([*starts, last]):
                if places[stop] > places[start]:
                    text = "".join(paragraphs[start:stop])
                    opened.append(places[start])
                    hashes.append(section_hash(text))
                    chars.append(len(text))
            sections_of.append(len(hashes))
        flags[opened] |= SECTION
        ends = bounds[firsts]
        kept = np.flatnonzero(np.diff(ends) > 0).tolist()
        # Records left out have no tokens and no sections, so their offsets can simply be skipped.
        offsets = pa.array(np.append(ends[kept], ends[-1]), pa.int32())
        section_offsets = pa.array(np.append(np.array(sections_of)[kept], sections_of[-1]), pa.int32())
        columns = {
            "tokens": pa.ListArray.from_arrays(offsets, pa.array(ids)),
            "flags": pa.ListArray.from_arrays(offsets, pa.array(flags)),
            "section_hashes": pa.ListArray.from_arrays(section_offsets, pa.array(hashes, pa.uint64())),
            "section_chars": pa.ListArray.from_arrays(section_offsets, pa.array(chars, pa.uint32())),
            "document": pa.array([records[index].document for index in kept], pa.int64()),
            "meta": pa.array([records[index].meta for index in kept], pa.string()),
        }
        digest = blake2b(digest_size=16)
        for array in (ids, flags, ends, np.array(hashes, np.uint64)):
            digest.update(np.ascontiguousarray(array).tobytes())
        characters = sum(len(record.text) for record in records)
        return columns, PartCounts(len(kept), len(ids), characters, digest.hexdigest())

    def _encode(self, paragraphs: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids and flags of all paragraphs end to end, and the paragraphs' bounds in them."""
        ids, flags, lengths = [], [], [np.zeros(1, dtype=np.int64)]
        for batch in _batches(paragraphs):
            encodings = self.tokenizer.encode_batch(batch, add_special_tokens=False)
            count = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
            batch_ids, batch_flags = self._arrays(batch, encodings, np.concatenate([[0], np.cumsum(count)]))
            ids.append(batch_ids)
            flags.append(batch_flags)
            lengths.append(count)
        if not ids:
            return np.zeros(0, self.dtype), np.zeros(0, np.uint8), np.zeros(1, np.int64)
        return np.concatenate(ids), np.concatenate(flags), np.cumsum(np.concatenate(lengths))

    def _arrays(
        self, paragraphs: Sequence[str], encodings: Sequence[Encoding], bounds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        ids = np.empty(int(bounds[-1]), dtype=self.dtype)
        sentences = []
        for paragraph, encoding, first, last in zip(
            paragraphs, encodings, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True
        ):
            ids[first:last] = encoding.ids
            for place in sentence_starts(paragraph):
                token = encoding.char_to_token(place)
                if token is not None:
                    sentences.append(first + token)
        flags = self.rule.starts(encodings, ids, bounds).astype(np.uint8)
        flags[sentences] |= SENTENCE
        flags[bounds[:-1][np.diff(bounds) > 0]] |= UNIT | SENTENCE | PARAGRAPH
        return ids, flags


def write_part(columns: dict[str, pa.Array], counts: PartCounts, path: Path) -> None:
    """Write the columns of a part, as files.md lists them, into a file that appears only when complete."""
    batch = pa.RecordBatch.from_pydict(columns).replace_schema_metadata(
        {"cloze": json.dumps([counts.records, counts.tokens, counts.chars, counts.digest])}
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        with pa.ipc.new_stream(file, batch.schema) as stream:
            stream.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _batches(paragraphs: Sequence[str]) -> list[Sequence[str]]:
    """Runs of about a million characters: encodings are large, and only one run's are alive at a time."""
    batches, first, size = [], 0, 0
    for index, paragraph in enumerate(paragraphs):
        size += len(paragraph)
        if size >= _BATCH_CHARS:
            batches.append(paragraphs[first : index + 1])
            first, size = index + 1, 0
    if first < len(paragraphs):
        batches.append(paragraphs[first:])
    return batches


def read_counts(path: Path) -> PartCounts:
    """The counts of a finished part, from its file. Raises OSError or ArrowInvalid if it is not one."""
    with pa.memory_map(str(path)) as file:
        return PartCounts(*json.loads(pa.ipc.open_stream(file).schema.metadata[b"cloze"]))
