"""Vectors of texts: what the stock model gives for each text alone, whatever stands beside it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.peers import save, sentence
from helpers import CLS, SEP
from transformers import AutoModel, AutoTokenizer

from cloze.errors import ClozeError
from cloze.evaluation import embedding
from cloze.evaluation.embedding import Embedder, cosines
from cloze.evaluation.subject import Subject

FAMILIES = ("bert", "roberta", "modernbert", "deberta-v2")


def texts(seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(sentence(draw, int(size))) for size in (3, 90, 1, 12, 12, 40)]


@torch.no_grad()
def alone(
    folder: Path, text: str, specials: bool = True, inputs: bool = False, most: int = 256
) -> np.ndarray:
    """The vector by the stock model, without padding."""
    model = AutoModel.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    if ids.shape[1] > most:
        ids = torch.cat([ids[:, : most - 1], ids[:, -1:]], 1)
    states = model.get_input_embeddings()(ids) if inputs else model(input_ids=ids).last_hidden_state
    keep = torch.ones_like(ids, dtype=torch.bool) if specials else (ids != CLS) & (ids != SEP)
    return states[keep].mean(0).numpy()


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "bert")


@pytest.mark.parametrize("specials", [True, False])
def test_a_text_in_a_batch_has_the_vector_it_has_alone(folder: Path, specials: bool) -> None:
    found = Embedder(Subject(folder)).encode(texts(), specials=specials)
    wanted = np.stack([alone(folder, text, specials) for text in texts()])
    other = np.stack([alone(folder, text, not specials) for text in texts()])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(found - other).max() > 1e-2  # the specials do make a difference


def test_input_embeddings(bert: Path) -> None:
    found = Embedder(Subject(bert)).encode(texts(), specials=False, inputs=True)
    wanted = [alone(bert, text, specials=False, inputs=True) for text in texts()]
    np.testing.assert_allclose(found, np.stack(wanted), atol=1e-6)


def test_batches_order_and_repetition_change_nothing(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = texts()
    whole = Embedder(Subject(bert)).encode(given)
    monkeypatch.setattr(embedding, "BATCH_TOKENS", 50)
    monkeypatch.setattr(embedding, "_TOKENIZED_AT_ONCE", 2)
    seen: list[int] = []
    small = Embedder(Subject(bert), meter=seen.append).encode([*given[::-1], *given])
    np.testing.assert_allclose(small[: len(given)][::-1], whole, atol=1e-5)
    assert (small[: len(given)][::-1] == small[len(given) :]).all()
    assert len(seen) > 2 and seen == sorted(seen) and seen[-1] == len(given)


def test_long_texts_are_cut_and_keep_their_specials(bert: Path) -> None:
    draw = np.random.default_rng(1)
    long = " ".join(sentence(draw, 300))
    for length, most in ((None, 256), (20, 20)):
        found = Embedder(Subject(bert), length).encode([long])
        np.testing.assert_allclose(found[0], alone(bert, long, most=most), atol=1e-5)


def test_a_text_without_words_is_the_mean_of_its_specials(bert: Path) -> None:
    embedder = Embedder(Subject(bert))
    np.testing.assert_array_equal(embedder.encode([""], specials=False), embedder.encode([""]))


@pytest.mark.parametrize("length", [2, 323])
def test_a_length_the_model_cannot_take(bert: Path, length: int) -> None:
    with pytest.raises(ClozeError, match=f"--length {length}: .* takes 3 to 322 tokens"):
        Embedder(Subject(bert), length)


def test_a_broken_model_is_told(bert: Path) -> None:
    subject = Subject(bert)
    embedder = Embedder(subject)
    with torch.no_grad():
        embedder._model.get_input_embeddings().weight[7] = torch.nan
    embedder.encode(["w9"])
    with pytest.raises(ClozeError, match="not finite"):
        embedder.encode(["w9", "w7"])


def test_cosines() -> None:
    a = np.array([[1, 0], [1, 1], [0, 0]], np.float32)
    b = np.array([[0, 2], [3, 3], [1, 0]], np.float32)
    np.testing.assert_allclose(cosines(a, b), [0, 1, 0], atol=1e-12)
