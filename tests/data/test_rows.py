"""Rows cover the text exactly once, training and held-out apart, and are kept on disk."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import cloze.data.rows
from cloze.data.heldout import HeldOut
from cloze.data.prepare import prepare
from cloze.data.rows import Layout, Rows, build_rows, count_tokens, held_out_threshold
from cloze.data.sources import Document
from cloze.data.store import Store

LAYOUT = Layout(length=128, prefix=(2,), suffix=(3,), longest=128)
CONFIG = HeldOut(share=0.1, minimum=2000)


@pytest.fixture(scope="module")
def store(
    stories: list[Document], bpe: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """Twelve books in four parts."""
    folder = tmp_path_factory.mktemp("rows") / "store"
    return prepare(stories, bpe, folder, fingerprint="stories", workers=1, part_chars=80_000)


@pytest.fixture(scope="module")
def limit(store: Store) -> int:
    return held_out_threshold([store], CONFIG)


def places(rows: Rows) -> Counter[tuple[int, int]]:
    """How often each (record, token) occurs."""
    found: Counter[tuple[int, int]] = Counter()
    for record, start, size in zip(rows.pieces.record, rows.pieces.start, rows.pieces.length, strict=True):
        found.update((int(record), i) for i in range(int(start), int(start + size)))
    return found


def sections(store: Store) -> Iterator[tuple[int, int, int, int]]:
    """(record, start, stop, hash) of every section."""
    for record in range(len(store)):
        starts, hashes, _ = store.sections(record)
        stops = [*starts[1:].tolist(), store.tokens(record).size]
        yield from zip([record] * starts.size, starts.tolist(), stops, hashes.tolist(), strict=True)


def test_the_store_has_several_parts(store: Store) -> None:
    assert len(list(store.parts())) > 2


def test_every_token_is_in_one_sample_either_for_training_or_held_out(store: Store, limit: int) -> None:
    train, held = (places(build_rows(store, LAYOUT, limit, held_out)) for held_out in (False, True))
    assert set(train.values()) == set(held.values()) == {1}
    assert not train.keys() & held.keys()
    wanted = {True: set(), False: set()}  # type: ignore[var-annotated]
    for record, start, stop, hashed in sections(store):
        wanted[hashed <= limit].update((record, i) for i in range(start, stop))
    assert train.keys() == wanted[False]
    assert held.keys() == wanted[True]
    assert len(train) + len(held) == store.totals["tokens"]
    assert 0.04 < len(held) / store.totals["tokens"] < 0.2


def test_where_the_minimum_decides_its_last_section_is_held_out_too(store: Store) -> None:
    config = HeldOut(share=0.001, minimum=10_000)
    limit = held_out_threshold([store], config)
    assert limit in {h for *_, h in sections(store)}
    assert build_rows(store, LAYOUT, limit, held_out=True).tokens >= 10_000
    assert build_rows(store, LAYOUT, limit - 1, held_out=True).tokens < 10_000


def test_no_sample_crosses_a_held_out_section(store: Store, limit: int) -> None:
    """Not even where the tokens of both are there: a context must not jump."""
    rows = build_rows(store, LAYOUT, limit, held_out=False)
    inside = np.diff(rows.pieces.rows)
    assert (inside > 0).all()
    bad = [(r, a, b) for r, a, b, h in sections(store) if h <= limit]
    assert bad
    for record, start, stop in bad:
        mine = rows.pieces.record == record
        first, last = rows.pieces.start[mine], (rows.pieces.start + rows.pieces.length)[mine]
        assert not ((first < stop) & (last > start)).any()


@pytest.mark.parametrize("length", [64, 128, 512])
def test_rows_are_never_too_long_and_98_percent_full(store: Store, limit: int, length: int) -> None:
    rows = build_rows(store, replace(LAYOUT, length=length, longest=length), limit, held_out=False)
    used = np.add.reduceat(rows.pieces.length + 2, rows.pieces.rows[:-1])
    assert used.max() <= length
    assert rows.tokens == rows.pieces.length.sum()
    assert rows.fill == pytest.approx(used.sum() / (length * len(rows)))
    assert rows.fill > 0.98


def test_alone_and_longest(store: Store) -> None:
    alone = build_rows(store, replace(LAYOUT, alone=True), None, held_out=False)
    assert (np.diff(alone.pieces.rows) == 1).all()
    short = build_rows(store, replace(LAYOUT, longest=50), None, held_out=False)
    assert short.pieces.length.max() == 48
    assert places(alone) == places(short)
    assert len(short) < len(short.pieces.record)


def test_without_a_limit_all_text_is_wanted_either_way(store: Store) -> None:
    for held_out in (False, True):
        assert build_rows(store, LAYOUT, None, held_out).tokens == store.totals["tokens"]


def test_the_index_is_found_again_on_disk(store: Store, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = replace(LAYOUT, length=200)
    first = build_rows(store, layout, limit, held_out=False)
    folders = set(store.folder.glob("rows-*"))
    monkeypatch.setattr(cloze.data.rows, "_pack", None)  # packing again would fail
    again = build_rows(Store.open(store.folder), layout, limit, held_out=False)
    for column in ("record", "start", "length", "rows"):
        assert np.array_equal(getattr(first.pieces, column), getattr(again.pieces, column))
        assert isinstance(getattr(again.pieces, column), np.memmap)
    assert set(store.folder.glob("rows-*")) == folders
    assert not list(store.folder.glob(".rows-*"))


def test_every_choice_has_an_index_of_its_own(store: Store, limit: int) -> None:
    choices = [
        (LAYOUT, limit, False),
        (LAYOUT, limit, True),
        (LAYOUT, limit + 1, False),
        (LAYOUT, None, False),
        (replace(LAYOUT, length=96), limit, False),
        (replace(LAYOUT, longest=96), limit, False),
        (replace(LAYOUT, suffix=()), limit, False),
        (replace(LAYOUT, alone=True), limit, False),
    ]
    before = set(store.folder.glob("rows-*"))
    for choice in choices:
        build_rows(store, *choice)
    made = set(store.folder.glob("rows-*"))
    assert len(made | before) >= len(choices)
    for choice in choices:
        build_rows(store, *choice)
    assert set(store.folder.glob("rows-*")) == made


def test_a_second_process_that_was_first_wins(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both write the same, so the loser only cleans up."""
    layout = replace(LAYOUT, length=72)
    pack = cloze.data.rows._pack

    def slowly(*args):  # type: ignore[no-untyped-def]
        pieces = pack(*args)
        monkeypatch.setattr(cloze.data.rows, "_pack", pack)
        build_rows(store, layout, None, held_out=False)  # meanwhile
        return pieces

    monkeypatch.setattr(cloze.data.rows, "_pack", slowly)
    rows = build_rows(store, layout, None, held_out=False)
    assert rows.tokens == store.totals["tokens"]
    assert not list(store.folder.glob(".rows-*"))


def test_counts_are_those_of_the_rows(store: Store, limit: int) -> None:
    size = store.vocabulary
    for held_out in (False, True):
        rows = build_rows(store, LAYOUT, limit, held_out)
        wanted = np.zeros(size, np.int64)
        for record, start, n in zip(rows.pieces.record, rows.pieces.start, rows.pieces.length, strict=True):
            wanted += np.bincount(store.tokens(int(record), int(start), int(start + n)), minlength=size)
        for _ in range(2):  # made, and kept
            assert np.array_equal(count_tokens(store, limit, held_out, size), wanted)
    assert count_tokens(store, None, False, size).sum() == store.totals["tokens"]


def test_text_that_is_added_moves_nothing_across_the_split(
    store: Store, stories: list[Document], bpe: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """By share. (Only while the share is less than the minimum may more text move the limit.)"""
    config = HeldOut(share=0.15, minimum=100)
    extra = [Document("## News\n\n" + f"Something else happened {i} times.\n\n" * 150, {}) for i in range(5)]
    more = prepare([*extra, *stories[::-1]], bpe, tmp_path / "more", fingerprint="more", workers=1)
    split: list[dict[bool, set[int]]] = []
    for s in (store, more):
        limit = held_out_threshold([s], config)
        split.append({side: {h for *_, h in sections(s) if (h <= limit) == side} for side in (True, False)})
    old, new = split
    assert old[True] <= new[True]
    assert old[False] <= new[False]
    assert len(new[True] | new[False]) > len(old[True] | old[False])
