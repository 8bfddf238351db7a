"""Stores that are made in the cache, by whoever comes first."""

import shutil
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cloze.data import corpus as module
from cloze.data.corpus import Data, TrainTokenizer, open_corpus
from cloze.data.sources import Document
from cloze.data.store import Store

CHOICE = TrainTokenizer(vocabulary=320)


@pytest.fixture
def data(stories: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    monkeypatch.setenv("CLOZE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(story.text for story in stories), "utf-8")
    return Data(sources=[str(path)], heldout={"minimum": 100})


def test_a_store_of_an_older_format_is_made_anew(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr("cloze.data.prepare.FORMAT", 1)
        older.setattr("cloze.data.corpus.FORMAT", 1)
        open_corpus(data, CHOICE)
    assert open_corpus(data, CHOICE).stores


def most_at_once(data: Data, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of three runs that start together tokenise at the same time."""
    inside, most, prepare = 0, 0, module.prepare

    def slow(*args: Any, **options: Any) -> Store:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.1)
        inside -= 1
        with guard:  # what is tested is the wait before it
            return prepare(*args, **options)

    guard = threading.Lock()
    found: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "prepare", slow)
        threads = [threading.Thread(target=lambda: found.append(open_corpus(data, CHOICE))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({str(corpus.digests()) for corpus in found}) == 1 and len(found) == 3
    return most


def test_runs_that_start_together_tokenise_once(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_corpus(data, CHOICE)  # the tokenizer is there
    stores = tmp_path / "cache" / "stores"
    shutil.rmtree(stores)
    assert most_at_once(data, monkeypatch) == 1
    shutil.rmtree(stores)
    with monkeypatch.context() as patch:  # the control
        patch.setattr(module, "_alone", lambda folder: nullcontext())
        assert most_at_once(data, monkeypatch) > 1
