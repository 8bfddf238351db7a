"""Shards from many machines make the very files that one machine makes; a wrong one is one line."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from cloze.data import shards as module
from cloze.data.blocks import Shard, blocks_of, takers
from cloze.data.corpus import Data, LoadTokenizer, TrainTokenizer, make_store, open_corpus
from cloze.data.prepare import prepare
from cloze.data.rows import held_out_threshold
from cloze.data.shards import merge, shard_folder
from cloze.data.sources import Document, Source, read
from cloze.data.store import Store
from cloze.errors import ClozeError

PART = 20_000


@pytest.fixture(scope="module")
def texts(stories: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven files: one of many parts, packed; small ones that share a block; one without any token."""
    folder = tmp_path_factory.mktemp("texts")
    with gzip.open(folder / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        for story in stories[:6]:
            file.write(json.dumps({"text": story.text[:25_000], "n": 1}) + "\n")
        file.write(json.dumps({"text": "the old river " * 9_000}) + "\n")
    for number, story in enumerate(stories[6:9]):
        (folder / f"a{number}.txt").write_text(story.text[: 8_000 * number + 2_000], "utf-8")
    (folder / "c.txt").write_text(stories[9].text, "utf-8")
    (folder / "d.jsonl").write_text('{"text": "one"}\n{"text": " "}\n{"text": "\\n\\n x"}\n', "utf-8")
    (folder / "e.jsonl").write_text('{"text": null}\n', "utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer(bpe: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe.save_pretrained(folder)
    return str(folder)


Make = Callable[..., dict[str, int]]


@pytest.fixture(scope="module")
def make(texts: Path, tokenizer: str) -> Make:
    """`make(out, shard)`: the store, or a shard of it."""

    def run(out: Path, shard: str | None = None, **changes: Any) -> dict[str, int]:
        options = {"tokenizer": tokenizer, "workers": 1, "part_chars": PART, "shard": shard} | changes
        return make_store(options.pop("sources", [str(texts)]), out, **options)

    return run


@pytest.fixture(scope="module")
def whole(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one machine makes."""
    out = tmp_path_factory.mktemp("whole") / "store"
    make(out)
    return out


@pytest.fixture(scope="module")
def thirds(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards, to be copied."""
    out = tmp_path_factory.mktemp("thirds") / "store"
    for number in (1, 2, 3):
        make(out, f"{number}/3")
    return out


@pytest.fixture
def three(thirds: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(thirds, tmp_path / "store"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("of", [1, 2, 3, 5, 40])
def test_any_number_of_shards_makes_the_same_files(of: int, make: Make, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    sizes = [make(out, f"{number}/{of}")["tokens"] for number in range(of, 0, -1)]
    store = merge(out)
    assert content(out) == content(whole)
    assert len(store) == len(Store.open(whole)) > 20
    assert sum(sizes) == store.totals["tokens"]
    if of in (2, 3):
        assert min(sizes) > 0
    if of == 40:
        assert 0 in sizes  # more shards than parts: some have nothing to do
    assert make(out, f"1/{of}") == store.totals  # a machine that comes late finds the work done
    assert merge(out).totals == store.totals


def test_the_control_other_shards_make_other_files(make: Make, whole: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        make(tmp_path / "store", f"{number}/2", part_chars=PART + 5_000)
    merge(tmp_path / "store")
    assert content(tmp_path / "store") != content(whole)


def test_parts_know_their_documents(texts: Path, whole: Path, bpe: PreTrainedTokenizerFast) -> None:
    store = Store.open(whole)
    documents = list(read(Source(path=str(texts))))
    assert store.totals["documents"] == len(documents)
    numbers = [store.document(record) for record in range(len(store))]
    assert numbers == sorted(numbers)
    for record, number in enumerate(numbers):
        assert bpe.decode(store.tokens(record)) == documents[number].text
    parts = [part.first_document + part.documents for part in store.parts()]
    assert np.concatenate(parts).tolist() == numbers
    assert len({part.first_document for part in store.parts()}) > 3


def test_blocks_change_neither_records_nor_the_held_out_part(
    texts: Path, whole: Path, bpe: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Against a store of one block, as it is made of documents from Python."""
    one = prepare(
        read(Source(path=str(texts))), bpe, tmp_path / "one", fingerprint="f", workers=1, part_chars=PART
    )
    store = Store.open(shutil.copytree(whole, tmp_path / "whole"))
    assert [store.tokens(r).tolist() for r in range(len(store))] == [
        one.tokens(r).tolist() for r in range(len(one))
    ]
    assert [store.document(r) for r in range(len(store))] == [one.document(r) for r in range(len(one))]
    held = Data(sources=[str(whole)], heldout={"minimum": 3_000}).heldout
    assert held_out_threshold([store], held) == held_out_threshold([one], held)


def test_a_merged_store_trains_as_one_does(whole: Path, three: Path, tmp_path: Path) -> None:
    merge(three)
    found = []
    for folder in (shutil.copytree(whole, tmp_path / "whole"), three):
        data = Data(sources=[str(folder)], heldout={"minimum": 3_000})
        corpus = open_corpus(data, TrainTokenizer())
        layout = corpus.layout(32, 32, alone=False)
        batches = [corpus.loader(layout, 5).batch(7, 4), corpus.held_out_loader(layout).batch(0, 4)]
        found.append((corpus.digests(), corpus.limits, [(b.ids.tolist(), b.keys.tolist()) for b in batches]))
    assert found[0] == found[1]


def test_an_interrupted_shard_goes_on(make: Make, three: Path, tmp_path: Path) -> None:
    folder = shard_folder(three, Shard(2, 3))
    first = (folder / "part-00000.arrow").stat().st_mtime_ns
    os.replace(folder / "shard.json", tmp_path / "away")
    (folder / "part-00001.arrow").unlink()
    key = json.loads((tmp_path / "away").read_text())["key"]
    (folder / "store.partial.json").write_text(json.dumps({"key": module.digest_of(key, "2/3")}))
    with pytest.raises(ClozeError, match="shard-00002-of-00003: this shard is unfinished; prepare it again"):
        merge(three)
    make(three, "2/3")
    assert (folder / "part-00000.arrow").stat().st_mtime_ns == first
    assert json.loads((folder / "shard.json").read_text()) == json.loads((tmp_path / "away").read_text())


@pytest.mark.parametrize("stop", ["_link", "copytree", "finish", "rmtree"])
def test_an_interrupted_merge_leaves_shards_or_a_store(
    stop: str, three: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    calls = 0
    owner: Any = shutil if stop in ("copytree", "rmtree") else module
    real = getattr(owner, stop)

    def some(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 or stop in ("finish", "copytree"):
            if stop == "rmtree":
                (arguments[0] / "shard.json").unlink()
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(owner, stop, some)
    with pytest.raises(Killed):
        merge(three)
    monkeypatch.undo()
    if stop == "_link":
        (three / ".part-00009.arrow.99999.tmp").write_bytes(b"torn")
    if (three / "store.json").exists():
        assert len(Store.open(three)) == len(Store.open(whole))
    else:
        with pytest.raises(ClozeError, match=r"holds shards of a store; cloze prepare --merge --out"):
            Store.open(three)
    merge(three)
    assert content(three) == content(whole)


def test_a_file_system_without_links(three: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    merge(three)
    assert content(three) == content(whole)


def complaint(work: Callable[[], object]) -> str:
    with pytest.raises(ClozeError) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_double_and_damaged_shards_are_one_line(three: Path, tmp_path: Path) -> None:
    second = shard_folder(three, Shard(2, 3))
    copy = shutil.copytree(second, three / "shard-00002-of-00003 (copy)")
    assert "is shard 2 as shard-00002-of-00003 is; delete one" in complaint(lambda: merge(three))
    shutil.rmtree(copy)
    shutil.move(second, tmp_path / "away")
    assert "of 3 shards these are missing: 2; prepare them by --shard 2/3" in complaint(lambda: merge(three))
    shutil.move(tmp_path / "away", second)
    part = second / "part-00000.arrow"
    whole = part.read_bytes()
    part.write_bytes(whole[:-8])
    assert f"has {len(whole) - 8:,} bytes instead of {len(whole):,}" in complaint(lambda: merge(three))
    part.unlink()
    assert "part-00000.arrow: this part is missing" in complaint(lambda: merge(three))
    assert "no shards here" in complaint(lambda: merge(tmp_path / "nowhere"))
    assert not (three / "store.json").exists()


@pytest.mark.parametrize("foreign", ["number", "tokenizer", "text", "version", "options", "changed"])
def test_foreign_shards_are_one_line(
    foreign: str,
    three: Path,
    make: Make,
    texts: Path,
    stories: list[Document],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes: dict[str, Any] = {}
    shard = "3/3"
    if foreign == "number":
        shard = "4/4"
    elif foreign == "tokenizer":
        path = tmp_path / "text.txt"
        path.write_text(stories[0].text, "utf-8")
        corpus = open_corpus(
            Data(sources=[str(path)], heldout={"minimum": 100}), TrainTokenizer(vocabulary=320)
        )
        corpus.tokenizer.save_pretrained(tmp_path / "other")
        changes["tokenizer"] = str(tmp_path / "other")
    elif foreign == "text":
        changes["sources"] = [str(texts / "a*.txt")]
    elif foreign == "version":
        monkeypatch.setattr(module, "__version__", "0.0.0")
    elif foreign == "options":
        changes["part_chars"] = PART + 1
    wanted = {
        "number": r"shard-00004-of-00004: is one of another number of shards \(4\) than shard-00001-of-00003",
        "tokenizer": "was made with another tokenizer",
        "text": "was made from other text",
        "version": r"was made by another version \(cloze 0.0.0, tokenizers .*\) than .* \(cloze",
        "options": "was made with other options",
        "changed": "the text has changed meanwhile",
    }[foreign]
    if foreign == "changed":  # as a hub data set may, whose name stays the same
        file = shard_folder(three, Shard(1, 3)) / "shard.json"
        about = json.loads(file.read_text())
        about["blocks"][-1][1] += 1
        file.write_text(json.dumps(about))
    else:
        make(three, shard, **changes)
    with pytest.raises(ClozeError, match=wanted):
        merge(three)
    assert not (three / "store.json").exists()


def test_shares_of_the_work() -> None:
    draw = np.random.default_rng(0)
    for of in (1, 2, 7, 64):
        sizes = draw.integers(1, 1000, 300).tolist()
        dealt = takers(sizes, of)
        assert all(len(shards) >= 1 and shards[0] >= 0 and shards[-1] < of for shards in dealt)
        assert [shards[0] for shards in dealt] == sorted(shards[0] for shards in dealt)
        loads = [sum(s for s, shards in zip(sizes, dealt, strict=True) if i in shards) for i in range(of)]
        assert max(loads) <= sum(sizes) / of + 2 * max(sizes)
    assert takers([10], 4) == takers([None], 4) == [range(4)]
    assert takers([None, 5, 5], 2) == [range(2), range(1), range(1, 2)]
    assert takers([0, 0], 3) == [range(1), range(1)]


def test_small_files_share_a_block(texts: Path) -> None:
    blocks = blocks_of([Source(path=str(texts))], "paragraphs", None, PART)
    assert len(blocks) == 4
    assert sum(block.size or 0 for block in blocks) == sum(file.stat().st_size for file in texts.iterdir())


def test_shard_numbers() -> None:
    assert Shard.parse("2/8") == Shard(2, 8)
    for wrong in ("0/3", "4/3", "3", "1/x", "-1/2", "", "1/2/3"):
        assert "write NUMBER/OF, such as 2/8" in complaint(lambda wrong=wrong: Shard.parse(wrong))


def test_the_commands(cloze: Callable[..., Any], texts: Path, tokenizer: str, tmp_path: Path) -> None:
    out = tmp_path / "store"
    common = ("prepare", "--data", texts, "--out", out, "--tokenizer", tokenizer, "--workers", 1)
    for number in (1, 2):
        result = cloze(*common, "--shard", f"{number}/2")
        assert result.code == 0 and f"shard {number}/2: " in result.out
    assert "leave --data and --shard out" in cloze(*common, "--merge").err
    result = cloze("prepare", "--out", out, "--merge")
    assert result.code == 0 and "documents" in result.out
    assert "write NUMBER/OF" in cloze(*common, "--shard", "3/2").err
    result = cloze("prepare", "--out", tmp_path / "other")
    assert result.code == 2 and len(result.err.splitlines()) == 1


def test_a_tokenizer_that_is_trained_is_the_same_on_every_machine(
    make: Make, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        monkeypatch.setenv("CLOZE_CACHE", str(tmp_path / f"machine{number}"))
        make(tmp_path / "store", f"{number}/2", tokenizer=None, vocabulary=320)
    store = merge(tmp_path / "store")
    assert store.vocabulary == 320
    assert LoadTokenizer(path=str(store.tokenizer_folder))
