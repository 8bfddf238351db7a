"""Preparing a store: any number of workers, any interruption, the same bytes; mistakes in one line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from cloze.data.prepare import prepare
from cloze.data.sources import Document
from cloze.data.store import Store
from cloze.errors import ClozeError

PART = 40_000


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*.arrow")}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".") or "partial" in path.name]


def children() -> set[str]:
    """Process ids of this process's children."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


class Interrupted(Exception):
    """Stands for whatever ends a run from outside."""


def until(documents: list[Document], count: int, error: BaseException) -> Iterator[Document]:
    yield from documents[:count]
    raise error


def test_any_number_of_workers_writes_the_same_bytes(
    stories: list[Document], bpe: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    one = prepare(stories, bpe, tmp_path / "1", fingerprint="f", workers=1, part_chars=PART)
    three = prepare(
        stories,
        bpe,
        tmp_path / "3",
        fingerprint="f",
        workers=3,
        part_chars=PART,
        progress=lambda *counts: seen.append(counts),
    )
    assert len(parts(tmp_path / "1")) > 4
    assert parts(tmp_path / "1") == parts(tmp_path / "3")
    assert not leftovers(tmp_path / "3")
    assert one.totals == three.totals
    assert [sum(column) for column in zip(*seen, strict=True)] == [one.totals["chars"], one.totals["tokens"]]


def test_a_finished_store_is_returned_at_once(
    stories: list[Document], bpe: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    prepare(stories[:2], bpe, tmp_path / "s", fingerprint="f")
    again = prepare(until([], 0, Interrupted()), bpe, tmp_path / "s", fingerprint="f")
    assert len(again) == 2
    with pytest.raises(ClozeError, match=r"holds a store of other data, options or tokenizer"):
        prepare(stories[:1], bpe, tmp_path / "s", fingerprint="g")
    replaced = prepare(stories[:1], bpe, tmp_path / "s", fingerprint="g", overwrite=True)
    assert len(replaced) == len(Store.open(tmp_path / "s")) == 1


@pytest.mark.parametrize("error", [Interrupted(), KeyboardInterrupt()])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_goes_on(
    stories: list[Document],
    bpe: PreTrainedTokenizerFast,
    tmp_path: Path,
    error: BaseException,
    workers: int,
) -> None:
    whole = prepare(stories, bpe, tmp_path / "whole", fingerprint="f", workers=1, part_chars=PART)
    before = children()
    with pytest.raises(type(error)):
        prepare(
            until(stories, 7, error), bpe, tmp_path / "s", fingerprint="f", workers=workers, part_chars=PART
        )
    assert children() == before
    with pytest.raises(ClozeError, match="unfinished"):
        Store.open(tmp_path / "s")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("part-*.arrow")}
    assert kept
    (tmp_path / "s" / ".part-00009.arrow.999999999.tmp").write_bytes(b"torn")
    store = prepare(stories, bpe, tmp_path / "s", fingerprint="f", workers=workers, part_chars=PART)
    assert (
        kept.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*.arrow")}.items()
    )
    assert parts(tmp_path / "s") == parts(tmp_path / "whole")
    assert store.totals == whole.totals
    assert not leftovers(tmp_path / "s")


@pytest.mark.parametrize("change", ["fingerprint", "part_chars", "tokenizer"])
def test_parts_of_other_data_are_not_kept(
    stories: list[Document], bpe: PreTrainedTokenizerFast, tmp_path: Path, change: str
) -> None:
    with pytest.raises(Interrupted):
        prepare(until(stories, 6, Interrupted()), bpe, tmp_path, fingerprint="f", workers=1, part_chars=PART)
    old = (tmp_path / "part-00000.arrow").stat().st_mtime_ns
    if change == "tokenizer":
        bpe = type(bpe)(tokenizer_object=bpe.backend_tokenizer, unk_token="[UNK]", mask_token="<m>")
    prepare(
        stories,
        bpe,
        tmp_path,
        fingerprint="g" if change == "fingerprint" else "f",
        workers=1,
        part_chars=PART + (change == "part_chars"),
    )
    assert (tmp_path / "part-00000.arrow").stat().st_mtime_ns != old


def test_a_dead_worker_and_a_failing_one_are_one_line(
    stories: list[Document], bpe: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    before = children()

    def kill_one() -> Iterator[Document]:
        yield from stories[:6]
        os.kill(int(min(children() - before)), signal.SIGKILL)
        yield from stories

    with pytest.raises(ClozeError, match=r"a worker process died \(code -9\).*finished parts are kept"):
        prepare(kill_one(), bpe, tmp_path / "s", fingerprint="f", workers=2, part_chars=PART)
    assert children() == before
    bad = [*stories[:4], Document("half a pair \ud83d", {}), *stories[4:]]
    for workers in (1, 2):
        with pytest.raises(ClozeError, match=r"tokenising stopped, .*; finished parts are kept") as error:
            prepare(bad, bpe, tmp_path / f"b{workers}", fingerprint="f", workers=workers, part_chars=PART)
        assert "\n" not in str(error.value)
    assert children() == before


def test_workers_end_with_a_killed_main_process(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    bpe.save_pretrained(tmp_path / "tokenizer")
    script = f"""
import itertools, pathlib
from cloze.data.prepare import prepare
from cloze.data.sources import Document
from cloze.data.tokenizers import load_tokenizer
documents = (Document("word " * 4000, {{}}) for _ in itertools.count())
prepare(documents, load_tokenizer({str(tmp_path / "tokenizer")!r}), {str(tmp_path / "s")!r}, fingerprint="f",
        workers=2, part_chars=100_000)
"""
    main = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    children_of = Path(f"/proc/{main.pid}/task/{main.pid}/children")
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "s").glob("part-*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children_of.read_text().split()
    main.kill()
    main.wait()
    assert len(workers) == 2
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(worker) for worker in workers)


def alive(process: str) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"  # a zombie is only waiting for its adopter


def test_folders_of_other_things_are_refused(
    stories: list[Document], bpe: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ClozeError, match="is not empty and no store; give a new folder"):
        prepare(stories, bpe, tmp_path, fingerprint="f")
    with pytest.raises(ClozeError, match="is a file; give a folder"):
        prepare(stories, bpe, tmp_path / "thesis.txt", fingerprint="f")


def test_nothing_to_store(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(ClozeError, match="no document gave a single token"):
        prepare([Document("", {})], bpe, tmp_path / "s", fingerprint="f")
    with pytest.raises(ClozeError, match="no document gave a single token"):
        prepare([], bpe, tmp_path / "s", fingerprint="f")
