"""Cuts are lossless and fall where they should."""

from hypothesis import given
from hypothesis import strategies as st

from cloze.data.sections import (
    section_hash,
    section_starts,
    sentence_starts,
    split_paragraphs,
    split_records,
)

PIECES = st.lists(
    st.sampled_from(["a b", "\n", "\n\n", " ", "\t", "# x", "é😀", "\u2028", "ab" * 30]), max_size=40
)


@given(PIECES)
def test_paragraphs_and_records_lose_nothing(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert "".join(split_paragraphs(text, limit=20)) == text
    assert "".join(split_paragraphs(text)) == text
    records = split_records(text, limit=25)
    assert "".join(records) == text
    assert max(map(len, records)) <= 25
    if text.strip():
        assert not any(paragraph.isspace() for paragraph in split_paragraphs(text))


def test_paragraphs_end_with_their_blank_lines() -> None:
    assert split_paragraphs("\n\n one\ntwo\n \n\nthree\n\n\n") == ["\n\n one\ntwo\n \n\n", "three\n\n\n"]
    assert split_paragraphs("") == []


def test_long_paragraphs_are_cut_at_white_space() -> None:
    pieces = split_paragraphs("word " * 10_000)
    assert len(pieces) == 3
    assert all(15_000 < len(piece) <= 20_000 for piece in pieces[:-1])
    assert pieces[1].startswith(" word")
    assert [len(piece) for piece in split_paragraphs("x" * 45_000)] == [20_000, 20_000, 5_000]


def test_records_are_cut_at_blank_lines() -> None:
    assert split_records("aaaa\n\nbbbb\n\ncc", limit=13) == ["aaaa\n\nbbbb\n\n", "cc"]


def test_sections_are_runs_of_about_4000_characters_or_open_at_a_heading() -> None:
    assert section_starts(["x" * 1000] * 9) == [0, 4, 8]
    assert section_starts(["x" * 1200, "## Chapter\n\n", "x" * 200, "# Soon\n\n", "x"]) == [0, 1]
    assert section_starts(["x" * 15_000, "y"]) == [0, 1]
    assert section_starts([]) == []


def test_section_hashes_are_stable() -> None:
    assert section_hash("The Jungle Book") == section_hash("  The Jungle Book\n\n") == 11836679760364186253
    assert section_hash("The Jungle Book") != section_hash("The jungle Book")


def test_sentences() -> None:
    text = 'He went to Mr. Fox. "Stop!" he said. (Why?) J. Smith, e.g. Tom, ate 3.5 pies… Good.'
    starts = sentence_starts(text)
    assert [text[start : start + 5] for start in starts] == ['"Stop', "(Why?", "J. Sm", "Good."]
    assert sentence_starts("我来了。你呢？好") == [4, 7]
    assert sentence_starts("no end") == sentence_starts("One. ") == []
