"""Packing loses and repeats nothing, fills the rows, and never leaves a crumb of a text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze.data.packing import SHORTEST, Packer, Pieces, runs_of


def packed(sizes: list[int], length: int, specials: int, longest: int, alone: bool = False) -> Pieces:
    packer = Packer(length, specials, longest, alone)
    for record, size in enumerate(sizes):
        packer.add(record, 100, 100 + size)
    return packer.pieces()


def check(pieces: Pieces, sizes: list[int], length: int, specials: int, longest: int, alone: bool) -> None:
    """Everything that any packing must keep."""
    at = dict.fromkeys(range(len(sizes)), 100)
    for record, start, size in zip(pieces.record, pieces.start, pieces.length, strict=True):
        assert start == at[int(record)]  # in order, without a gap or an overlap
        assert 0 < size <= min(length, longest) - specials
        at[int(record)] += int(size)
    assert at == {record: 100 + size for record, size in enumerate(sizes)}
    assert (np.diff(pieces.record) >= 0).all()
    assert pieces.rows[0] == 0
    assert pieces.rows[-1] == pieces.record.size
    assert (np.diff(pieces.rows) > 0).all()
    used = np.add.reduceat(pieces.length + specials, pieces.rows[:-1]) if sum(sizes) else np.zeros(0)
    assert (used <= length).all()
    if alone:
        assert (np.diff(pieces.rows) == 1).all()
    most = min(length, longest) - specials
    if most >= 2 * SHORTEST:
        for size, record in zip(pieces.length, pieces.record, strict=True):
            assert size >= min(SHORTEST, sizes[int(record)])
        if not alone and used.size:
            assert (length - used[:-1] < 2 * SHORTEST + specials).all()


LAYOUTS = st.tuples(st.integers(4, 80), st.integers(0, 3), st.integers(4, 100), st.booleans())
RUNS = st.lists(st.one_of(st.integers(1, 30), st.integers(1, 500)), max_size=30)


@given(RUNS, LAYOUTS)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_nothing_is_lost_and_rows_are_full(sizes: list[int], layout: tuple[int, int, int, bool]) -> None:
    check(packed(sizes, *layout), sizes, *layout)


def test_the_check_finds_a_lost_token_and_a_crumb() -> None:
    layout = 40, 2, 40, False
    good = packed([100], *layout)
    check(good, [100], *layout)
    with pytest.raises(AssertionError):
        check(good, [101], *layout)
    crumbs = Pieces(*(np.array(x) for x in ([0, 0, 0], [100, 138, 176], [38, 38, 3], [0, 1, 2, 3])))
    with pytest.raises(AssertionError):
        check(crumbs, [79], *layout)


def test_no_crumbs_where_a_short_text_meets_the_end_of_a_row() -> None:
    """A text of 14 tokens with 12 slots left would leave 2 tokens in a row of their own."""
    pieces = packed([24, 14], length=40, specials=2, longest=40)
    assert pieces.length.tolist() == [24, 14]
    assert pieces.rows.tolist() == [0, 1, 2]


def plain(sizes: list[int], length: int, specials: int, longest: int, alone: bool) -> list[list[int]]:
    """Sizes of the samples of each row, one sample after the other."""
    most = min(length, longest) - specials
    rows: list[list[int]] = []
    room = 0
    for size in sizes:
        while size:
            fits = min(room - specials, most)
            if alone or fits < (SHORTEST if size >= 2 * SHORTEST else size):
                rows.append([])
                room, fits = length, most
            take = min(size, fits)
            if take < size < take + SHORTEST and size >= 2 * SHORTEST:
                take = size - SHORTEST
            rows[-1].append(take)
            room -= take + specials
            size -= take
    return rows


@given(st.lists(st.integers(1, 3000), max_size=6), LAYOUTS)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_short_cut_for_long_runs_gives_the_same_rows(
    sizes: list[int], layout: tuple[int, int, int, bool]
) -> None:
    pieces = packed(sizes, *layout)
    assert [pieces.length[a:b].tolist() for a, b in zip(pieces.rows, pieces.rows[1:], strict=False)] == plain(
        sizes, *layout
    )


def test_alone_is_one_sample_a_row_even_if_short() -> None:
    pieces = packed([3, 4, 100], length=40, specials=2, longest=40, alone=True)
    assert pieces.length.tolist() == [3, 4, 38, 38, 24]
    assert pieces.rows.tolist() == [0, 1, 2, 3, 4, 5]


def test_longest_cuts_samples_within_a_row() -> None:
    pieces = packed([300], length=100, specials=2, longest=50)
    assert pieces.length.tolist() == [48, 48, 48, 48, 48, 48, 12]
    assert pieces.rows.tolist() == [0, 2, 4, 6, 7]


def test_rows_are_98_percent_full_for_books_and_for_short_texts() -> None:
    draw = np.random.default_rng(0)
    for sizes in ([40_000] * 12, np.maximum(1, draw.lognormal(5.0, 1.0, 3000)).astype(int).tolist()):
        for length in (128, 512, 1024):
            pieces = packed(sizes, length, 2, length)
            rows = pieces.rows.size - 1
            used = sum(sizes) + 2 * pieces.record.size
            assert used / (rows * length) > (0.98 if length > 128 else 0.96)


def test_no_text_gives_no_rows() -> None:
    pieces = packed([], 32, 2, 32)
    assert pieces.rows.tolist() == [0]
    assert pieces.record.size == 0


def test_rows_without_room_for_text_are_an_error() -> None:
    with pytest.raises(ValueError, match="hold no text"):
        Packer(2, 2, 512)


RECORDS = st.lists(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=6), max_size=6)


@given(RECORDS, st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_runs_are_the_maximal_ones(records: list[list[tuple[int, bool]]], wanted: bool) -> None:
    records = [sections for sections in records if sections]  # every record of a store has a section
    if not records:
        return
    starts = np.concatenate([np.cumsum([0, *(n for n, _ in s)])[:-1] for s in records])
    held = np.array([h for s in records for _, h in s])
    lengths = np.array([sum(n for n, _ in s) for s in records])
    first = np.cumsum([0, *map(len, records)])
    found = runs_of(starts, held, lengths, first, wanted)
    expected: list[tuple[int, int, int]] = []
    for r, sections in enumerate(records):
        at, last = 0, None
        for size, is_held in sections:
            if is_held == wanted:
                if last is not None and last[2] == at:
                    last = (r, last[1], at + size)
                    expected[-1] = last
                else:
                    last = (r, at, at + size)
                    expected.append(last)
            at += size
    assert list(zip(*(x.tolist() for x in found), strict=True)) == expected
