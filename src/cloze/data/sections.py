"""Cutting text: documents into records, records into paragraphs, paragraphs into sections and sentences.

Every cut is lossless: the pieces, joined, are the text. A paragraph keeps the blank lines that follow it, so
a byte-level tokenizer that encodes paragraphs one by one still gives back the text exactly.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import chain

MAX_RECORD = 4_000_000
MAX_PARAGRAPH = 20_000
SECTION_CHARS = 4_000
HEADED_SECTION_CHARS = 1_000

_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
_HEADING = re.compile(r"\s*#{1,6}\s")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？][”’」』）]*\s*")
_ABBREVIATIONS = frozenset(
    {"Mr", "Mrs", "Ms", "Dr", "St", "Prof", "vs", "etc", "cf", "No", "Jr", "Sr", "e.g", "i.e"}
)


def _cut(text: str, start: int, limit: int, separators: Sequence[tuple[str, int]]) -> int:
    """The best place to cut `text` in (start, start + limit]; separators come with their cut's offset."""
    for separator, offset in separators:
        place = text.rfind(separator, start + limit // 2, start + limit - offset)
        if place >= 0:
            return place + offset
    return start + limit


def _pieces(text: str, limit: int, separators: Sequence[tuple[str, int]]) -> list[str]:
    pieces, start = [], 0
    while len(text) - start > limit:
        stop = _cut(text, start, limit, separators)
        pieces.append(text[start:stop])
        start = stop
    pieces.append(text[start:])
    return pieces


def split_records(text: str, limit: int = MAX_RECORD) -> list[str]:
    """Cut a document of more than `limit` characters into records, at a blank line where there is one."""
    return _pieces(text, limit, (("\n\n", 2), ("\n", 1), (" ", 0))) if len(text) > limit else [text]


def split_paragraphs(text: str, limit: int = MAX_PARAGRAPH) -> list[str]:
    """Cut text at blank lines; a longer paragraph than `limit` characters is cut at a line end or a space.

    Blank lines belong to the paragraph before them (at the very start: to the first one). Empty text has no
    paragraph.
    """
    paragraphs: list[str] = []
    start = 0
    for end in chain((gap.end() for gap in _BLANK_LINES.finditer(text)), [len(text)]):
        piece = text[start:end]
        if not piece.isspace() and piece:
            paragraphs.append(piece)
        elif paragraphs:
            paragraphs[-1] += piece
        else:  # white space at the very start waits for the first paragraph
            continue
        start = end
    if start < len(text):
        paragraphs.append(text[start:])
    if len(text) <= limit:
        return paragraphs
    return [piece for paragraph in paragraphs for piece in _pieces(paragraph, limit, (("\n", 1), (" ", 0)))]


def section_starts(paragraphs: Sequence[str]) -> list[int]:
    """Indices of the paragraphs that open a section: runs of about 4,000 characters.

    A Markdown heading opens one early, if the present section has at least 1,000 characters.
    """
    starts: list[int] = []
    size = 0
    for index, paragraph in enumerate(paragraphs):
        # Half of the next paragraph: the section then ends where it is nearest to its target.
        full = size + len(paragraph) // 2 >= SECTION_CHARS
        headed = size >= HEADED_SECTION_CHARS and _HEADING.match(paragraph) is not None
        if not starts or full or headed:
            starts.append(index)
            size = 0
        size += len(paragraph)
    return starts


def split_sections(text: str) -> list[str]:
    """The sections of a document, as the store keeps them."""
    sections = []
    for record in split_records(text):
        paragraphs = split_paragraphs(record)
        starts = section_starts(paragraphs)
        for start, stop in zip(starts, [*starts[1:], len(paragraphs)], strict=True):
            sections.append("".join(paragraphs[start:stop]))
    return sections


def section_hash(text: str) -> int:
    """64-bit BLAKE2b of a section's text without surrounding white space: its identity across stores."""
    digest = hashlib.blake2b(text.strip().encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def sentence_starts(paragraph: str) -> list[int]:
    """Character positions where a sentence starts, the paragraph's own start left out.

    Approximate: a full stop, question or exclamation mark (with closing quotes), white space, and then no
    small letter; not after a single capital or a common English abbreviation. Chinese and Japanese stops need
    no space.
    """
    starts = []
    for end in _SENTENCE_END.finditer(paragraph):
        place, following = end.start(), paragraph[end.end() : end.end() + 1]
        if not following or following.islower():
            continue
        if paragraph[place] == ".":
            words = paragraph[max(0, place - 6) : place].split()
            word = words[-1].lstrip("(\"'“‘[") if words else ""
            if word in _ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I"):
                continue
        starts.append(end.end())
    return starts
