"""What the tests of the data package share: a little text and a tokenizer trained on it."""

import pytest
from transformers import PreTrainedTokenizerFast

from cloze.data.embedded import books
from cloze.data.sources import Document, Source, read
from cloze.data.tokenizer_training import train_tokenizer


@pytest.fixture(scope="session")
def stories() -> list[Document]:
    """The beginnings of the packaged books, 30,000 characters each."""
    documents = read(Source(path=str(books())))
    return [Document(document.text[:30_000], document.meta) for document in documents]


@pytest.fixture(scope="session")
def bpe(stories: list[Document]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 1,024 entries."""
    return train_tokenizer((story.text for story in stories), "bpe", 1024)
