"""A batch is a pure function of (rows, seed, cursor), and says who is who in it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CLS, MASK, PAD, SEP, by_sample, word_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from cloze.data.batch import Batch, positions
from cloze.data.heldout import HeldOut
from cloze.data.loader import Loader, special_tokens, stream
from cloze.data.prepare import prepare
from cloze.data.rows import Layout, Rows, build_rows, held_out_threshold
from cloze.data.sources import Document
from cloze.data.store import UNIT, Store
from cloze.data.tokenizer_training import train_tokenizer
from cloze.errors import ClozeError

FIELDS = ("ids", "segments", "index", "units", "maskable", "keys", "visits")


@pytest.fixture(scope="module")
def store(
    stories: list[Document], bpe: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    folder = tmp_path_factory.mktemp("loader") / "store"
    return prepare(stories, bpe, folder, fingerprint="stories", workers=1, part_chars=80_000)


def rows(store: Store, tokenizer: PreTrainedTokenizerFast, length: int = 128, held_out: bool = False) -> Rows:
    limit = held_out_threshold([store], HeldOut(share=0.1, minimum=2000))
    return build_rows(store, Layout(length, *special_tokens(tokenizer), longest=length), limit, held_out)


def loader_of(tokenizer: PreTrainedTokenizerFast, *sources: Rows, seed: int | None = 0) -> Loader:
    weights = tuple(float(i + 1) for i in range(len(sources)))
    return Loader(sources, weights, seed, tokenizer.pad_token_id, frozenset(tokenizer.all_special_ids))


@pytest.fixture(scope="module")
def loader(store: Store, bpe: PreTrainedTokenizerFast) -> Loader:
    return loader_of(bpe, rows(store, bpe))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in FIELDS)


def test_special_tokens(bpe: PreTrainedTokenizerFast, stories: list[Document]) -> None:
    assert special_tokens(word_tokenizer()) == ((CLS,), (SEP,))
    wordpiece = train_tokenizer((s.text for s in stories[:2]), "wordpiece", 512)
    for tokenizer in (bpe, wordpiece):
        before, after = special_tokens(tokenizer)
        text = tokenizer("The end.", add_special_tokens=False)["input_ids"]
        assert tokenizer("The end.")["input_ids"] == [*before, *text, *after]
        assert before
        assert after
    bare = word_tokenizer()
    bare.backend_tokenizer.post_processor = processors.Sequence([])
    assert special_tokens(bare) == ((), ())


def test_special_tokens_that_cannot_be_told_are_an_error() -> None:
    class Odd:
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [9, 8] if add_special_tokens else [5]}

    with pytest.raises(ClozeError, match="post-processor"):
        special_tokens(Odd())  # type: ignore[arg-type]


def test_every_field_of_a_batch(loader: Loader, store: Store, bpe: PreTrainedTokenizerFast) -> None:
    batch = loader.batch(3, 64)
    assert batch.ids.shape == (64, 128)
    assert {getattr(batch, f).dtype for f in FIELDS} == {torch.int64, torch.bool}
    (cls,), (sep,) = special_tokens(bpe)
    pieces = loader.sources[0].pieces
    number = 0
    for r, (_, row, visit) in enumerate(loader.rows_at(range(3, 67))):
        at = 0
        for p in range(pieces.rows[row], pieces.rows[row + 1]):
            record, start, n = int(pieces.record[p]), int(pieces.start[p]), int(pieces.length[p])
            text = store.tokens(record, start, start + n)
            assert batch.ids[r, at : at + n + 2].tolist() == [cls, *text.tolist(), sep]
            assert (batch.segments[r, at : at + n + 2] == number).all()
            assert batch.index[r, at : at + n + 2].tolist() == [-1, *range(n), -1]
            words = (store.flags(record, start, start + n) & UNIT) > 0
            words[0] = True  # a sample may begin inside a word
            assert batch.units[r, at : at + n + 2].tolist() == [-1, *(words.cumsum() - 1).tolist(), -1]
            assert batch.visits[number] == visit == 0
            at, number = at + n + 2, number + 1
        assert (batch.ids[r, at:] == bpe.pad_token_id).all()
        for name in ("segments", "index", "units"):
            assert (getattr(batch, name)[r, at:] == -1).all()
    assert batch.samples == number > 64
    assert torch.equal(batch.maskable, batch.index >= 0)


def test_specials_inside_the_text_are_not_maskable(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    text = "w5 w6 [MASK] w7 [SEP] w8 " * 50
    made = prepare([Document(text, {})], tokenizer, tmp_path / "s", fingerprint="s", workers=1)
    layout = Layout(64, (CLS,), (SEP,), longest=64)
    batch = loader_of(tokenizer, build_rows(made, layout, None, False)).batch(0, 4)
    odd = torch.isin(batch.ids, torch.tensor([PAD, CLS, SEP, MASK]))
    assert (batch.ids[batch.index >= 0] == MASK).any()
    assert torch.equal(batch.maskable, ~odd)


def test_a_batch_does_not_depend_on_what_was_asked_before(loader: Loader) -> None:
    alone = loader.batch(37, 5)
    for cursor, count in ((0, 8), (1000, 3), (30, 20)):
        loader.batch(cursor, count)
    assert same(loader.batch(37, 5), alone)
    together = loader.batch(35, 10)
    assert torch.equal(together.ids[2:7], alone.ids)
    mine = by_sample(alone, alone.ids)
    assert mine == {k: v for k, v in by_sample(together, together.ids).items() if k in mine}
    torch.manual_seed(123)
    assert same(loader.batch(37, 5), alone)
    assert not same(loader.batch(38, 5), alone)


def test_an_epoch_sees_every_row_once_and_the_next_in_another_order(loader: Loader) -> None:
    size = len(loader.sources[0])
    epochs = [loader.rows_at(range(i * size, (i + 1) * size)) for i in range(2)]
    for visit, epoch in enumerate(epochs):
        assert sorted(row for _, row, _ in epoch) == list(range(size))
        assert {v for *_, v in epoch} == {visit}
    orders = [[row for _, row, _ in epoch] for epoch in epochs]
    assert orders[0] != orders[1]
    assert orders[0] != list(range(size))
    assert [r for _, r, _ in replace(loader, seed=1).rows_at(range(size))] != orders[0]


def test_visits_are_in_the_batch_and_keys_stay(loader: Loader) -> None:
    size = len(loader.sources[0])
    first, second = loader.batch(0, size), loader.batch(size, size)
    assert set(first.visits.tolist()) == {0}
    assert set(second.visits.tolist()) == {1}
    assert by_sample(first, first.ids) == by_sample(second, second.ids)
    assert first.keys.unique().numel() == first.samples


def test_two_sources_keep_their_shares_and_keys(store: Store, bpe: PreTrainedTokenizerFast) -> None:
    mine = rows(store, bpe)
    two = loader_of(bpe, mine, mine)  # weights 1 and 2
    chosen = two.rows_at(range(3000))
    counts = Counter(source for source, *_ in chosen)
    assert abs(counts[0] - 1000) <= 3
    for source in (0, 1):
        seen = Counter((row, visit) for s, row, visit in chosen if s == source)
        assert set(seen.values()) == {1}
        complete = counts[source] // len(mine)
        for visit in range(max(0, complete - 1)):
            assert sum(v == visit for _, v in seen) == len(mine)
    batch = two.assemble([(0, 4, 0), (1, 4, 0)])
    assert torch.equal(batch.ids[0], batch.ids[1])
    assert batch.keys.unique().numel() == batch.samples  # the same text from two sources is two samples


def test_evaluation_goes_through_the_held_out_rows_in_order(
    store: Store, bpe: PreTrainedTokenizerFast
) -> None:
    mine = rows(store, bpe, held_out=True)
    held = loader_of(bpe, mine, mine, seed=None)
    total = 2 * len(mine)
    wanted = [(s, r, 0) for s in (0, 1) for r in range(len(mine))]
    assert held.rows_at(range(total)) == wanted
    train = loader_of(bpe, rows(store, bpe)).batch(0, len(rows(store, bpe)))
    assert not set(train.keys.tolist()) & set(held.batch(0, total).keys.tolist())


def test_keys_name_the_text_not_the_row(store: Store, bpe: PreTrainedTokenizerFast) -> None:
    """A sample that is the same in another layout has the same key, hence the same masks."""
    packed = rows(store, bpe)
    alone = build_rows(store, replace(packed.layout, alone=True), None, False)
    names: list[dict[int, tuple[int, int, int]]] = []
    for loader in (loader_of(bpe, packed), loader_of(bpe, alone)):
        pieces = loader.sources[0].pieces
        batch = loader.assemble([(0, r, 0) for r in range(len(loader.sources[0]))])
        columns = (pieces.record.tolist(), pieces.start.tolist(), pieces.length.tolist())
        names.append(dict(zip(batch.keys.tolist(), zip(*columns, strict=True), strict=True)))
    shared = names[0].keys() & names[1].keys()
    assert shared
    assert all(names[0][k] == names[1][k] for k in shared)
    assert len(set(names[0].values()) & set(names[1].values())) == len(shared)


def test_alone_is_one_sample_a_row(store: Store, bpe: PreTrainedTokenizerFast) -> None:
    layout = Layout(64, *special_tokens(bpe), longest=64, alone=True)
    batch = loader_of(bpe, build_rows(store, layout, None, False)).batch(0, 32)
    assert batch.samples == 32
    assert (batch.segments.max(dim=1).values == torch.arange(32)).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_the_same_batches_in_order(loader: Loader, workers: int) -> None:
    places = [(0, 4), (4, 4), (8, 1), (100, 7), (0, 4)]
    found = list(stream(loader, places, workers))
    assert len(found) == len(places)
    for batch, place in zip(found, places, strict=True):
        assert same(batch, loader.batch(*place))


def test_describe_names_source_record_and_token(loader: Loader) -> None:
    (_, row, _), *_ = loader.rows_at([11])
    pieces = loader.sources[0].pieces
    first = pieces.rows[row]
    assert loader.describe(11, 1) == [f"0:{pieces.record[first]}:{pieces.start[first]}"]


def test_positions_restart_and_padding_has_none() -> None:
    segments = torch.tensor([[0, 0, 0, 1, 1, -1, -1, -1], [2, 2, 2, 2, 2, 2, 2, 2]])
    assert positions(segments).tolist() == [[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7]]


def test_a_batch_moves_whole() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    batch = Batch(*(torch.ones(2, 3) for _ in range(5)), empty, empty)
    assert all(getattr(batch.to("meta"), f).device.type == "meta" for f in FIELDS)
    assert np.prod(batch.ids.shape) == 6
