"""Files at addresses: read as local ones are, by any driver that is there, and nothing else is asked."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from fsspec.implementations.memory import MemoryFileSystem

from cloze.data import remote
from cloze.data.corpus import make_store, source_tokens
from cloze.data.shards import merge
from cloze.data.sources import Document, Source, fingerprint, read
from cloze.errors import ClozeError

ROWS = [{"text": "One\n\ntwo", "n": 1}, {"text": "three 😀", "n": 2}]
DOCUMENTS = [Document("One\n\ntwo", {"n": 1}), Document("three 😀", {"n": 2})]


@pytest.fixture
def bucket() -> Iterator[MemoryFileSystem]:
    """memory://b with a file of each kind."""
    system = fsspec.filesystem("memory")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    system.pipe("/b/a.jsonl", lines)
    system.pipe("/b/deep/b.jsonl.gz", gzip.compress(lines))
    system.pipe("/b/deep/c.jsonl.zst", pa.Codec("zstd").compress(lines, asbytes=True))
    with system.open("/b/d.parquet", "wb") as file:
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    system.pipe("/b/e.txt", b"four\n\nfive\n")
    system.pipe("/b/deep/.hidden.txt", b"no")
    system.pipe("/b/deep/picture.png", b"\0")
    system.pipe("/b/deep/empty.txt", b"")
    yield system
    system.rm("/b", recursive=True)


def documents(path: str) -> list[Document]:
    return list(read(Source.parse(path)))


def complaint(work: Callable[[], object]) -> str:
    with pytest.raises(ClozeError) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("name", ["a.jsonl", "deep/b.jsonl.gz", "deep/c.jsonl.zst", "d.parquet"])
def test_files_of_each_kind(name: str) -> None:
    assert documents(f"memory://b/{name}") == DOCUMENTS
    assert documents(f"news=0.5:memory://b/{name}") == DOCUMENTS


@pytest.mark.usefixtures("bucket")
def test_folders_and_globs() -> None:
    text = [Document("four", {}), Document("five", {})]
    assert documents("memory://b") == documents("memory://b/") == [*DOCUMENTS * 4, *text]
    assert documents("memory://b/*.jsonl") == DOCUMENTS
    assert documents("memory://b/**/*.jsonl*") == DOCUMENTS * 3
    assert Source.parse("web=2:memory://b/a=1:x.txt") == Source(
        path="memory://b/a=1:x.txt", name="web", weight=2
    )
    assert source_tokens(_data(), Source(path="memory://b"))[0].startswith("memory://b: 5 files, about ")


def _data() -> Any:
    from cloze.data.corpus import Data

    return Data()


def test_what_stands_at_an_address_is_what_stands_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    assert documents(f"file://{tmp_path}/a.jsonl") == documents(str(tmp_path / "a.jsonl")) == DOCUMENTS
    assert documents(f"file://{tmp_path}") == DOCUMENTS


def test_fingerprints_see_another_content(bucket: MemoryFileSystem) -> None:
    first = fingerprint(Source(path="memory://b"))
    assert fingerprint(Source(path="memory://b")) == first
    bucket.pipe("/b/e.txt", b"four\n\nfour\n")
    assert fingerprint(Source(path="memory://b")) != first


@pytest.mark.usefixtures("bucket")
def test_what_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "memory://b/none.txt: cannot be read, FileNotFoundError" in complaint(
        lambda: documents("memory://b/none.txt")
    )
    assert "memory://b/*.md: no file there; accepted are .txt" in complaint(
        lambda: documents("memory://b/*.md")
    )
    assert "no readable file there" in complaint(lambda: documents("memory://b/deep/picture.png"))
    assert "all files are empty" in complaint(lambda: documents("memory://b/deep/empty.txt"))
    assert "nothing://x: cannot be read, ValueError: Protocol not known" in complaint(
        lambda: documents("nothing://x")
    )

    def missing(_: str) -> None:
        raise ImportError("no module")

    monkeypatch.setattr(remote.fsspec, "url_to_fs", missing)
    for scheme, package in (("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")):
        assert f"{scheme}://b/x.jsonl: pip install {package} (" in complaint(
            lambda scheme=scheme: documents(f"{scheme}://b/x.jsonl")
        )


def test_a_store_that_stops_half_way_is_one_line(bucket: MemoryFileSystem) -> None:
    bucket.pipe("/b/deep/b.jsonl.gz", bucket.cat("/b/deep/b.jsonl.gz")[:-12])
    assert "memory://b/deep/b.jsonl.gz: cannot be read after line" in complaint(
        lambda: documents("memory://b/deep/b.jsonl.gz")
    )
    bucket.pipe("/b/d.parquet", b"PAR1 no")
    assert "memory://b/d.parquet: cannot be read" in complaint(lambda: documents("memory://b/d.parquet"))


def test_data_sets_of_the_hub_are_streamed_and_their_files_are_files(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(*arguments: object, **options: object) -> Dataset:
        calls.append((arguments, options))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("cloze.data.sources.offline", lambda: False)
    assert documents("hf://datasets/org/name") == documents("0=1:hf://datasets/org/name") == DOCUMENTS
    assert calls == [(("org/name", None), {"split": "train", "streaming": True})] * 2
    monkeypatch.setattr("cloze.data.sources.offline", lambda: True)
    assert "cannot be reached" in complaint(lambda: documents("hf://datasets/org/name"))
    asked = []
    monkeypatch.setattr("cloze.data.sources.find_all", lambda path: asked.append(path) or [])
    with pytest.raises(ClozeError):
        documents("hf://datasets/org/name/data/*.parquet")
    assert asked == ["hf://datasets/org/name/data/*.parquet"]


def test_a_store_from_addresses_and_its_shards(bpe: Any, tmp_path: Path) -> None:
    """Nothing is kept on this machine but the store, which shards make as well."""
    system = fsspec.filesystem("memory")
    for number in range(3):
        system.pipe(f"/c/{number}.txt", b"the old river and the sea\n\n" * 40 * (number + 1))
    bpe.save_pretrained(tmp_path / "tokenizer")
    options: dict[str, Any] = {"tokenizer": str(tmp_path / "tokenizer"), "workers": 1, "part_chars": 1_000}
    try:
        make_store(["memory://c"], tmp_path / "one", **options)
        for number in (1, 2):
            make_store(["memory://c"], tmp_path / "two", shard=f"{number}/2", **options)
    finally:
        system.rm("/c", recursive=True)
    merge(tmp_path / "two")
    first, second = (
        {f.name: f.read_bytes() for f in (tmp_path / name).rglob("*") if f.is_file()}
        for name in ("one", "two")
    )
    assert first == second and len(first) > 5
