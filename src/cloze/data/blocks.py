"""A corpus as blocks that can be read apart, and as parts of a store: what lets many machines share the work.

A block is a run of files (at least as many bytes as a part has characters), or a larger file. No part of a
store goes over the end of a block, so a part depends on its own block alone, and where it stands in the whole
is known when all blocks have been counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from cloze.data.files import TextSplit
from cloze.data.sections import split_records
from cloze.data.sources import DatasetLike, Document, Reader, Source, Stream
from cloze.data.writer import Record
from cloze.errors import ClozeError

PART_CHARS = 8_000_000
_to_json = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Block:
    """Documents that can be read without the others. `size`: of their files in bytes; None: not known."""

    size: int | None
    documents: Callable[[], Iterable[Document]]


@dataclass(frozen=True, slots=True)
class Shard:
    """The `number`th of `of` shares of the work, counted from 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/8". Raises ClozeError for what is no such thing."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ClozeError(f"shard {text!r}: write NUMBER/OF, such as 2/8, from 1/8 to 8/8")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        """As it is parsed."""
        return f"{self.number}/{self.of}"


WHOLE = Shard(1, 1)


@dataclass(frozen=True, slots=True)
class Part:
    """Records that make one file of a store.

    Attributes:
        block, turn: number of its block, and its own within the block.
        first: number, within the block, of the document that its first record is of.
        records: their documents are counted from that one.
    """

    block: int
    turn: int
    first: int
    records: list[Record]


def blocks_of(
    sources: Iterable[Source | DatasetLike],
    text_split: TextSplit,
    text_field: str | None,
    part_chars: int = PART_CHARS,
) -> list[Block]:
    """The blocks of some sources, in order; files are looked up, and not yet read."""
    found = []
    for source in sources:
        reader = Reader(source, text_split, text_field)
        run: list[Stream] = []
        for stream in reader.streams:
            run.append(stream)
            if sum(s.size or 0 for s in run) >= part_chars or stream is reader.streams[-1]:
                sizes = [s.size for s in run]
                size = None if None in sizes else sum(s or 0 for s in sizes)
                found.append(Block(size, partial(reader.documents, run)))
                run = []
    return found


def takers(sizes: Sequence[int | None], of: int) -> list[range]:
    """The shards (from 0) that take the parts of each block in turn: nearly equal shares of the bytes.

    A block that lies in the share of one shard is read by that one alone; a larger one by several, and one of
    unknown size by all.
    """
    total = max(1, sum(size or 0 for size in sizes))
    found, begin = [], 0
    for size in sizes:
        end = begin + (size or 0)
        first = min(begin * of // total, of - 1)
        found.append(range(of) if size is None else range(first, max(first + 1, -(-end * of // total))))
        begin = end
    return found


class Cutter:
    """Iterates over the parts of one shard, and counts on the way.

    Attributes:
        counts: [documents, parts] of each block that was read, by its number.
    """

    def __init__(self, blocks: Sequence[Block], part_chars: int, shard: Shard = WHOLE) -> None:
        self.blocks, self.part_chars, self.shard = blocks, part_chars, shard
        self.counts: dict[int, list[int]] = {}

    def __iter__(self) -> Iterator[Part]:
        """Parts in order; a block that is another shard's is not read."""
        dealt = takers([block.size for block in self.blocks], self.shard.of)
        for number, (block, shards) in enumerate(zip(self.blocks, dealt, strict=True)):
            if self.shard.number - 1 in shards:
                for part in self._cut(number, block):
                    if shards[part.turn % len(shards)] == self.shard.number - 1:
                        yield part

    def _cut(self, number: int, block: Block) -> Iterator[Part]:
        records: list[Record] = []
        documents = turn = size = first = 0
        for document in block.documents():
            meta = _to_json(document.meta)
            for text in split_records(document.text):
                first = first if records else documents
                records.append(Record(documents - first, text, meta))
                size += len(text)
                if size >= self.part_chars:
                    yield Part(number, turn, first, records)
                    records, size, turn = [], 0, turn + 1
            documents += 1
        if records:
            yield Part(number, turn, first, records)
            turn += 1
        self.counts[number] = [documents, turn]
