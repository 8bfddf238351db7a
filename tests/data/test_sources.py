"""Every kind of corpus comes out as documents, and every mistake as one line."""

import gzip
import json
import logging
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from cloze.data import files
from cloze.data.files import TextSplit
from cloze.data.sources import Document, Source, fingerprint, read
from cloze.errors import ClozeError

ROWS = [
    {"text": "One\n\ntwo", "year": 1901, "long": "x" * 300},
    {"text": "Three 😀", "year": 1902, "long": "s"},
]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
DOCUMENTS = [
    Document("One\n\ntwo", {"year": 1901}),
    Document("Three 😀", {"year": 1902, "long": "s"}),
]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = pa.Codec("zstd").compress(data, asbytes=True)
    path.write_bytes(data)
    return path


def documents(path: Path | str, split: TextSplit = "paragraphs", field: str | None = None) -> list[Document]:
    return list(read(Source(path=str(path)), split, field))


def texts(path: Path | str, split: TextSplit = "paragraphs", field: str | None = None) -> list[str]:
    return [document.text for document in documents(path, split, field)]


def complaint(work: Callable[[], object]) -> str:
    with pytest.raises(ClozeError) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson", "a.json", "A.JSONL.GZ"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = JSONL.encode()
    path.write_bytes(data)
    if name.lower().endswith(("gz", "zst")):
        write(path.with_suffix(path.suffix.lower()), JSONL)
        path = path.with_suffix(path.suffix.lower())
    assert documents(path) == DOCUMENTS


@pytest.mark.parametrize("content", [json.dumps(ROWS, indent=1), json.dumps(ROWS)])
def test_json_array(tmp_path: Path, content: str) -> None:
    assert documents(write(tmp_path / "a.json", content)) == DOCUMENTS
    assert texts(write(tmp_path / "b.json", '{\n"text": "alone"\n}')) == ["alone"]


def test_parquet_and_datasets_objects(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet") == DOCUMENTS
    data = Dataset.from_list(ROWS)
    assert list(read(data)) == DOCUMENTS
    assert list(read(IterableDataset.from_generator(lambda: iter(ROWS)))) == DOCUMENTS
    assert list(read(DatasetDict(train=data))) == list(read(DatasetDict(only=data))) == DOCUMENTS
    assert "no split 'train'; there are a, b" in complaint(lambda: list(read(DatasetDict(a=data, b=data))))
    data.save_to_disk(tmp_path / "saved")
    assert documents(tmp_path / "saved") == DOCUMENTS
    DatasetDict(test=data, dev=data).save_to_disk(tmp_path / "splits")
    assert len(list(read(Source(path=str(tmp_path / "splits"), split="dev")))) == 2
    assert "there are" in complaint(lambda: documents(tmp_path / "splits"))
    assert fingerprint(data) != fingerprint(data.select([0]))
    assert fingerprint(DatasetDict(train=data)) == fingerprint(DatasetDict(train=data))


def test_text_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffone\r\ntwo\r\n \r\n\r\nthree\u2028x\n")
    assert texts(path) == ["one\ntwo", "three\u2028x"]
    assert texts(path, "lines") == ["one", "two", "three\u2028x"]
    assert texts(path, "file") == ["one\ntwo\n \n\nthree\u2028x\n"]
    assert texts(write(tmp_path / "b.md.zst", "# Title\n\nwords"), "file") == ["# Title\n\nwords"]


def test_tsv_has_no_quoting_and_csv_has(tmp_path: Path) -> None:
    tsv = write(tmp_path / "a.tsv", 'label\tsentence\n1\t"He said\n2\tit\'s "so"\n\n')
    assert documents(tsv) == [Document('"He said', {"label": "1"}), Document('it\'s "so"', {"label": "2"})]
    path = write(tmp_path / "a.csv.gz", 'n,words\r\n1,"a, ""b""\r\nc"\r\n2,d\r\n')
    assert documents(path) == [Document('a, "b"\nc', {"n": "1"}), Document("d", {"n": "2"})]


def test_folders_globs_and_odd_names(tmp_path: Path) -> None:
    write(tmp_path / "b" / "two.txt", "two")
    write(tmp_path / "a=1:x" / "one.txt.gz", "one")
    write(tmp_path / ".hidden" / "no.txt", "no")
    write(tmp_path / "b" / "picture.png", b"\0")
    write(tmp_path / "b" / "empty.txt", "")
    assert texts(tmp_path) == ["one", "two"]
    assert texts(f"{tmp_path}/**/*.txt*") == ["one", "two"]
    assert [d.text for d in read(Source.parse(str(tmp_path / "a=1:x" / "one.txt.gz")))] == ["one"]


def test_a_line_as_long_as_a_library(tmp_path: Path) -> None:
    text = "word " * 1_000_000
    assert texts(write(tmp_path / "a.jsonl.gz", json.dumps({"text": text}))) == [text]


def test_text_is_made_clean(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a\\r\\nb \\ud83d c \\ud83d\\ude00", "n": null, "l": [1]}\n')
    assert documents(path) == [Document("a\nb \ufffd c 😀", {})]


def test_records_without_text_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = '{"text": "a"}\n{"text": null}\n{"text": 3}\n{"text": " "}\n{}\n\n{"text": "b"}\n'
    with caplog.at_level(logging.WARNING):
        assert texts(write(tmp_path / "a.jsonl", rows)) == ["a", "b"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'a.jsonl'}: 4 records left out, no text in 'text' (empty, null or not a string)"
    ]
    nothing = write(tmp_path / "b.jsonl", '{"text": null}\n')
    assert "no record has text in 'text', all 1" in complaint(lambda: texts(nothing))


def test_the_text_column_is_named_or_obvious(tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", '{"title": "t", "words": "w", "n": 1}\n')
    assert texts(rows, field="words") == ["w"]
    assert [d.text for d in read(Source(path=str(rows), text_field="title"), text_field="words")] == ["t"]
    assert "Give text_field; the columns are title, words, n" in complaint(lambda: texts(rows))
    assert "no column 'text'; the columns are title, words, n" in complaint(lambda: texts(rows, field="text"))
    assert texts(write(tmp_path / "b.csv", "score,review\n1.5,fine\n")) == ["fine"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl: line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("a.json", "[1]\n", "entry 1 is not a JSON object"),
        ("a.json", "[1\n", "a.json: is not JSON"),
        ("a.jsonl", "", "the file is empty"),
        ("a.jsonl", "\n \n", "holds no records"),
        ("a.jsonl.gz", "", "holds no records"),
        ("a.txt", b"ab\nc\0d", r"binary data \(a NUL byte in line 2\), not UTF-8"),
        ("a.txt", b"ok\nfa\xe7ade\n", r"line 2 is not UTF-8 .byte 0xe7.; .* Latin-1: iconv"),
        ("a.csv", 'text\n"a" b\n', "a.csv: line 2 is not CSV"),
        ("a.tsv", "text\tn\na\tb\tc\n", "a.tsv: line 2 has 3 fields, the header names 2"),
        ("a.doc", "text", "unknown kind of file; accepted are .txt"),
        ("a.parquet", b"PAR1 no", "a.parquet: cannot be (opened|read)"),
    ],
)  # fmt: skip
def test_unreadable_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ClozeError, match=message) as error:
        documents(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_broken_archives(tmp_path: Path, ending: str) -> None:
    whole = write(tmp_path / f"a.jsonl.{ending}", os.urandom(50_000).hex().join(['{"text": "', '"}\n']))
    whole.write_bytes(whole.read_bytes()[:-20])
    assert f"a.jsonl.{ending}: cannot be read after line" in complaint(lambda: texts(whole))
    whole.write_bytes(JSONL.encode())
    assert f"a.jsonl.{ending}: cannot be read after line 0" in complaint(lambda: texts(whole))


def test_missing_files(tmp_path: Path) -> None:
    write(tmp_path / "news.jsonl", JSONL)
    assert "no such file or folder; there is news.jsonl in" in complaint(
        lambda: texts(tmp_path / "new.jsonl")
    )
    assert "nowhere does not exist either" in complaint(lambda: texts(tmp_path / "nowhere" / "a.jsonl"))
    assert "0 matches, none of them readable" in complaint(lambda: texts(tmp_path / "*.txt"))
    (tmp_path / "empty").mkdir()
    assert "no readable file in this folder; accepted are .txt" in complaint(
        lambda: texts(tmp_path / "empty")
    )
    write(tmp_path / "store" / "store.json", "{}")
    assert "store of tokenised text" in complaint(lambda: texts(tmp_path / "store"))


def test_a_hub_dataset_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setattr("cloze.data.sources.offline", lambda: False)
    message = complaint(lambda: texts("some-organisation/corpus"))
    assert message == "some-organisation/corpus: cannot be opened, ConnectionError: Couldn't reach the hub"
    monkeypatch.setattr("cloze.data.sources.offline", lambda: True)
    assert "the hub, where it may be, cannot be reached" in complaint(
        lambda: texts("some-organisation/corpus")
    )


def test_a_hub_dataset_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(*arguments: object, **options: object) -> Dataset:
        calls.append((arguments, options))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("cloze.data.sources.offline", lambda: False)
    assert list(read(Source.parse("org/name:en"))) == DOCUMENTS
    assert calls == [(("org/name", "en"), {"split": "train", "streaming": True})]


def test_parse(tmp_path: Path) -> None:
    assert Source.parse("news.jsonl") == Source(path="news.jsonl")
    assert Source.parse("news=0.7:a/b=c:d.txt") == Source(path="a/b=c:d.txt", name="news", weight=0.7)
    assert Source.parse("org/name") == Source(path="org/name")
    assert Source.parse("web=2:org/name:en") == Source(path="org/name", name="web", weight=2, config="en")
    path = str(write(tmp_path / "a=1:b.txt", "x"))
    assert Source.parse(path) == Source(path=path)
    for wrong in ("news=much:a.txt", "news=0:a.txt", "news=-1:a.txt", "news=inf:a.txt", ""):
        assert "write PATH or NAME=WEIGHT:PATH" in complaint(lambda wrong=wrong: Source.parse(wrong))


def test_fingerprints(tmp_path: Path) -> None:
    path = write(tmp_path / "a" / "a.jsonl", JSONL)
    source = Source(path=str(path))
    first = fingerprint(source)
    assert fingerprint(Source(path=str(path), name="n", weight=2.0)) == first
    assert fingerprint(source, "lines") != first != fingerprint(source, text_field="text")
    assert fingerprint(Source(path=str(path), text_field="text")) != first
    folder = fingerprint(Source(path=str(tmp_path)))
    os.utime(path, ns=(1, 1))
    assert fingerprint(source) != first
    assert fingerprint(Source(path=str(tmp_path))) != folder
    folder = fingerprint(Source(path=str(tmp_path)))
    write(tmp_path / "b.txt", "more")
    assert fingerprint(Source(path=str(tmp_path))) != folder
    assert fingerprint(Source(path="org/name")) != fingerprint(Source(path="org/name", config="en"))
    assert "no such file" in complaint(lambda: fingerprint(Source(path=str(tmp_path / "none.txt"))))


def test_a_stream_without_a_name_is_refused() -> None:
    """Two streams with the same columns would pass for one text."""
    from datasets import IterableDataset

    stream = IterableDataset.from_generator(lambda: iter([{"text": "a b c"}]))
    with pytest.raises(ClozeError, match=r"datasets\.Dataset"):
        fingerprint(stream)


def test_each_file_of_a_folder_has_its_own_column(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.jsonl", JSONL)
    write(tmp_path / "b.jsonl", "".join(json.dumps({"content": f"body {i}"}) + "\n" for i in range(40)))
    write(tmp_path / "c.txt", "plain")
    found = [d.text for d in read(Source(path=str(tmp_path)))]
    assert len(found) == 2 + 40 + 1
    assert found[-1] == "plain"
    assert not caplog.records
    write(tmp_path / "b.jsonl", json.dumps({"n": 1}) + "\n")
    assert "b.jsonl: which column is the text?" in complaint(lambda: list(read(Source(path=str(tmp_path)))))


def test_a_named_column_does_not_concern_plain_text(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"text": "no", "body": "yes"}\n')
    write(tmp_path / "b.md", "plain")
    assert [d.text for d in read(Source(path=str(tmp_path)), text_field="body")] == ["yes", "plain"]


# -- hostile text -----------------------------------------------------------------------------------------


def peak(work: Callable[[], object]) -> int:
    """Most bytes that Python held while it worked."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "a.csv.gz", "a.json.gz"])
def test_an_archive_that_unpacks_to_more_than_memory(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LONGEST", 1 << 20)
    path = tmp_path / name
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(60):
            file.write(b"a" * (1 << 20))
    assert path.stat().st_size < 1 << 20
    said = []
    assert peak(lambda: said.append(complaint(lambda: texts(path)))) < 8 << 20
    assert f"{name}: line 1 has more than 1,048,576 bytes" in said[0]


@pytest.mark.parametrize("split", ["paragraphs", "file"])
def test_text_without_an_end_comes_in_pieces(
    tmp_path: Path, split: TextSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LONGEST", 1 << 18)
    path = tmp_path / "a.txt.gz"
    line = "the river and the stone\n"
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
        for _ in range(200_000):
            file.write(line)
    found = []

    def read_all() -> None:
        for document in read(Source(path=str(path)), split):
            found.append(len(document.text))

    assert peak(read_all) < 8 << 20
    assert 200_000 * len(line) - len(found) <= sum(found) <= 200_000 * len(line)
    assert max(found) <= 1 << 18


def test_an_array_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.json", "[\n" + ",\n".join(['{"text": "a"}'] * 1000) + "]")
    assert len(texts(path)) == 1000
    monkeypatch.setattr(files, "WHOLE", 5000)
    assert "write an object a line (.jsonl)" in complaint(lambda: texts(path))


def test_a_file_that_vanishes_while_another_is_read(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        write(tmp_path / name, "one\n\ntwo")
    stream = read(Source(path=str(tmp_path)))
    assert next(stream).text == "one"
    (tmp_path / "b.txt").unlink()
    said = complaint(lambda: list(stream))
    assert "b.txt: cannot be read after line 0" in said


@pytest.mark.parametrize("name", ["~nobody-of-this-name/a.txt", "a" * 300 + ".txt", "a\0b.txt"])
def test_names_that_no_file_can_have(name: str) -> None:
    assert "no file can have this name" in complaint(lambda: Source.parse(name))


def test_half_characters_are_replaced_in_every_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a\\ud800b", "m\\udfff": "c\\ud83d", "n": 1}\n')
    assert documents(path) == [Document("a\ufffdb", {"m\ufffd": "c\ufffd", "n": 1})]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", "[" * 100_000), ("a.json", "[" * 100_000), ("b.json", "{\n" + '"a":{' * 100_000)],
)
def test_nesting_without_end(tmp_path: Path, name: str, content: str) -> None:
    assert "JSON" in complaint(lambda: texts(write(tmp_path / name, content)))


def test_encodings_that_change_within_a_file(tmp_path: Path) -> None:
    mixed = "naïve\n".encode() + "naïve\n".encode("latin-1")
    assert "line 2 is not UTF-8 (byte 0xef)" in complaint(lambda: texts(write(tmp_path / "a.txt", mixed)))
    for encoding in ("utf-16", "utf-32"):
        path = write(tmp_path / f"{encoding}.txt", "text".encode(encoding))
        assert "not UTF-8" in complaint(lambda path=path: texts(path))


@pytest.mark.slow
def test_one_line_of_100_mb(tmp_path: Path) -> None:
    line = "the river " * 10_000_000
    assert [len(text) for text in texts(write(tmp_path / "a.txt", line))] == [len(line)]
    path = write(tmp_path / "a.jsonl", json.dumps({"text": line}) + "\n")
    assert [len(text) for text in texts(path)] == [len(line)]


@pytest.mark.slow
def test_a_million_empty_documents(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n' * 1_000_000 + '{"text": "river"}\n', encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert peak(lambda: texts(path)) < 8 << 20
    assert "1,000,000 records left out" in caplog.text
