"""What a store holds: text, flags, sections, numbers; and which folders are none."""

import json
import pickle
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cloze.data.prepare import prepare
from cloze.data.sections import section_hash, split_paragraphs
from cloze.data.sources import Document
from cloze.data.store import FORMAT, PARAGRAPH, SECTION, SENTENCE, UNIT, Store
from cloze.data.tokenizer_training import train_tokenizer
from cloze.data.tokenizers import load_tokenizer
from cloze.errors import ClozeError

ODD = [
    Document("", {}),
    Document("👩‍👩‍👧 family. 😀\n\nמרחבا עולם. مرحبا!\n", {"language": "several", "n": 1}),
    Document("a [MASK] [SEP] b", {}),
    Document("\n\n  \n", {}),
    Document("x", {"year": 1.5}),
]


@pytest.fixture(scope="module")
def store(
    stories: list[Document], bpe: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    folder = tmp_path_factory.mktemp("stores") / "s"
    return prepare([*stories, *ODD], bpe, folder, fingerprint="f", workers=1, part_chars=80_000)


def test_text_comes_back(store: Store, stories: list[Document], bpe: PreTrainedTokenizerFast) -> None:
    expected = [document for document in [*stories, *ODD] if document.text]
    assert len(store) == len(expected)
    for record, document in enumerate(expected):
        assert bpe.decode(store.tokens(record)) == document.text
        assert store.meta(record) == document.meta
    assert store.totals["documents"] == len(stories) + len(ODD)
    assert store.vocabulary == len(load_tokenizer(store.tokenizer_folder)) == 1024


def test_special_tokens_spelt_out_are_text(
    store: Store, stories: list[Document], bpe: PreTrainedTokenizerFast
) -> None:
    tokens = store.tokens(len(stories) + 1)
    assert bpe.decode(tokens) == "a [MASK] [SEP] b"
    assert not set(tokens.tolist()) & set(bpe.all_special_ids)


def test_views_cost_no_copy(store: Store) -> None:
    whole = store.tokens(1)
    part = store.tokens(1, 10, 20)
    assert whole.dtype == np.uint16
    assert np.shares_memory(whole, part)
    assert part.tolist() == whole[10:20].tolist()
    assert not whole.flags.writeable
    assert store.flags(1, 10, 20).tolist() == store.flags(1)[10:20].tolist()
    with pytest.raises(IndexError):
        store.tokens(len(store))


def test_parts_and_lengths_and_dataset_agree(store: Store) -> None:
    lengths = store.record_lengths()
    assert lengths.dtype == np.int64
    assert lengths.min() > 0
    assert lengths.sum() == store.totals["tokens"]
    record = 0
    for part in store.parts():
        assert part.first_record == record
        for index in range(len(part.documents)):
            tokens = part.tokens[part.offsets[index] : part.offsets[index + 1]]
            assert tokens.tolist() == store.tokens(record).tolist() == store.dataset[record]["tokens"]
            assert part.documents[index] == store.dataset[record]["document"]
            record += 1
    assert record == len(store) == store.dataset.num_rows
    numbers = np.concatenate([part.first_document + part.documents for part in store.parts()])
    assert numbers.tolist() == [number for number in range(len(store) + 1) if number != len(store) - 4]


def test_flags(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    text = "The man went. He had a book!\n\nSo it was.\n"
    store = prepare([Document(text, {})], bpe, tmp_path, fingerprint="f")
    tokens, flags = store.tokens(0), store.flags(0)

    def opened(flag: int) -> list[str]:
        starts = [*np.flatnonzero(flags & flag), len(tokens)]
        return [bpe.decode(tokens[a:b]) for a, b in pairwise(starts)]

    assert opened(SECTION) == [text]
    assert opened(PARAGRAPH) == ["The man went. He had a book!\n\n", "So it was.\n"]
    assert opened(SENTENCE) == ["The man went.", " He had a book!\n\n", "So it was.\n"]
    words = [
        "The",
        " man",
        " went",
        ".",
        " He",
        " had",
        " a",
        " book",
        "!",
        "\n\n",
        "So",
        " it",
        " was",
        ".",
        "\n",
    ]
    assert opened(UNIT) == words
    assert flags[0] == UNIT | SENTENCE | PARAGRAPH | SECTION


def test_sections_are_known_by_their_text(
    store: Store, stories: list[Document], bpe: PreTrainedTokenizerFast
) -> None:
    starts, hashes, chars = store.sections(2)
    assert starts[0] == 0
    assert hashes.dtype == np.uint64
    assert chars.sum() == len(stories[2].text)
    stops = [*starts[1:], None]
    pieces = [bpe.decode(store.tokens(2, a, b)) for a, b in zip(starts, stops, strict=True)]
    assert [section_hash(piece) for piece in pieces] == hashes.tolist()
    assert [len(piece) for piece in pieces] == chars.tolist()
    assert 2_000 < np.median(chars) < 6_000
    part = next(store.parts())
    assert part.section_hashes[part.section_offsets[2] : part.section_offsets[3]].tolist() == hashes.tolist()


def test_hashes_do_not_depend_on_the_tokenizer(store: Store, stories: list[Document], tmp_path: Path) -> None:
    wordpiece = train_tokenizer([story.text for story in stories[:2]], "wordpiece", 512)
    other = prepare(stories[:1], wordpiece, tmp_path, fingerprint="f")
    assert other.sections(0)[1].tolist() == store.sections(0)[1].tolist()


def test_sections_without_tokens_are_left_out(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "[MASK]": 1}, merges=[]))  # drops what it does not know
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]")
    texts = ["b" * 5_000 + "\n\n" + "a" * 4_000, "bbb", "a", "a" * 4_000 + "\n\n" + "b" * 4_000 + "\n\naa"]
    store = prepare([Document(text, {}) for text in texts], fast, tmp_path, fingerprint="f")
    assert store.record_lengths().tolist() == [4_000, 1, 4_002]
    assert [part.documents.tolist() for part in store.parts()] == [[0, 2, 3]]
    for record, starts, chars in ((0, [0], [4_000]), (1, [0], [1]), (2, [0, 4_000], [4_002, 2])):
        assert store.sections(record)[0].tolist() == starts
        assert store.sections(record)[2].tolist() == chars


def test_a_line_as_long_as_a_library(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    text = "the old river " * 360_000
    store = prepare(
        [Document("x", {}), Document(text, {"n": 1}), Document("y", {})], bpe, tmp_path, fingerprint="f"
    )
    assert len(store) == 4
    assert np.concatenate([part.documents for part in store.parts()]).tolist() == [0, 1, 1, 2]
    assert bpe.decode(store.tokens(1)) + bpe.decode(store.tokens(2)) == text
    assert sum(store.sections(1)[2]) + sum(store.sections(2)[2]) == len(text)
    assert store.meta(2) == {"n": 1}


def test_a_large_vocabulary_takes_32_bits(tmp_path: Path) -> None:
    vocabulary = {"[MASK]": 0} | {f"w{index}": index for index in range(1, 70_000)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[MASK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]")
    store = prepare([Document("w1 w69999", {})], fast, tmp_path, fingerprint="f")
    assert store.tokens(0).dtype == np.uint32
    assert store.tokens(0).tolist() == [1, 69_999]


def test_pickled_as_its_folder(store: Store) -> None:
    assert len(pickle.dumps(store)) < 500
    assert pickle.loads(pickle.dumps(store)).tokens(3).tolist() == store.tokens(3).tolist()


def test_folders_that_are_no_store(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    def complaint(folder: Path) -> str:
        with pytest.raises(ClozeError) as error:
            Store.open(folder).tokens(0)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no store of tokenised text here" in complaint(tmp_path / "nowhere")
    folder = tmp_path / "s"
    prepare([Document("some text", {})], bpe, folder, fingerprint="f")
    part, index = folder / "part-00000.arrow", folder / "store.json"
    data, content = part.read_bytes(), index.read_text()
    part.write_bytes(data[:-100])
    assert "this part of the store has" in complaint(folder)
    part.write_bytes(b"x" * len(data))
    assert "not a readable part" in complaint(folder)
    part.unlink()
    assert "this part of the store is missing" in complaint(folder)
    index.write_text(json.dumps(json.loads(content) | {"format": FORMAT + 1}))
    assert f"store format {FORMAT + 1}" in complaint(folder)
    index.write_text("[]")
    assert "store format None" in complaint(folder)
    index.write_text(content[:20])
    assert "cannot be read" in complaint(folder)


def test_opening_reads_no_part(tmp_path: Path) -> None:
    parts = []
    for number in range(2_500):
        file = f"part-{number:05d}.arrow"
        (tmp_path / file).write_bytes(b"")
        parts.append({"file": file, "records": 4_000, "tokens": 1, "chars": 1, "bytes": 0})
    index = {"format": FORMAT, "fingerprint": "f", "key": "k", "vocabulary": 64, "totals": {}, "parts": parts}
    (tmp_path / "store.json").write_text(json.dumps(index))
    begin = time.perf_counter()
    assert len(Store.open(tmp_path)) == 10_000_000
    assert time.perf_counter() - begin < 2


def test_workers_import_no_heavy_library() -> None:
    check = "import sys, cloze.data.workers; print(*{'torch', 'transformers', 'datasets'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_units_follow_the_paragraphs(store: Store, stories: list[Document]) -> None:
    paragraphs = split_paragraphs(stories[0].text)
    assert np.count_nonzero(store.flags(0) & PARAGRAPH) == len(paragraphs)
    assert np.count_nonzero(store.flags(0) & UNIT) > len(stories[0].text.split())
