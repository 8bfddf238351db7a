"""The suite `heldout`: the run's own loss, and pseudo-perplexity counted by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MASK, tiny_model, widest, word_tokenizer
from transformers import AutoModelForMaskedLM

import cloze.evaluation.suites.heldout as heldout
from cloze.data.tokenizer_training import train_tokenizer
from cloze.errors import ClozeError
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites.base import Options
from cloze.evaluation.suites.heldout import SUITE

METRICS = [
    "loss",
    "accuracy",
    "bits_per_character",
    "pseudo_perplexity",
    "pseudo_bits_per_character",
    "pseudo_bits_per_character_word_l2r",
]


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout, "PSEUDO_TOKENS", 200)


def run(model: Path, **options: Any) -> dict[str, dict[str, float]]:
    found = SUITE.run(Subject(model), Options(**options))
    assert all(len(values) == 1 for metrics in found.values() for values in metrics.values())
    return {task: {m: values[0] for m, values in metrics.items()} for task, metrics in found.items()}


def test_a_run_is_measured_on_its_own_text(trained: Any) -> None:
    found = run(trained.folder)
    assert list(found) == ["held-out text"]
    scores = found["held-out text"]
    assert list(scores) == METRICS
    assert scores["loss"] == pytest.approx(trained.summary["heldout_loss"], abs=1e-5)
    assert scores["accuracy"] == pytest.approx(trained.summary["heldout_accuracy"])
    plain = math.log(scores["pseudo_perplexity"]) / math.log(2)
    ratio = scores["loss"] / math.log(2) / scores["bits_per_character"]  # characters a token
    assert scores["pseudo_bits_per_character"] == pytest.approx(plain / ratio)
    assert 1.5 < ratio < 4
    # The rest of a word gives it away: after six steps by little.
    assert scores["pseudo_bits_per_character_word_l2r"] != scores["pseudo_bits_per_character"]


def test_a_checkpoint_is_measured_on_the_text_of_its_run(trained: Any) -> None:
    last = sorted((trained.folder / "checkpoints").iterdir())[-1]
    assert run(last) == run(trained.folder)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents of 40 words of three characters, of which the tokenizer knows all."""
    path = tmp_path_factory.mktemp("words") / "words.txt"
    texts = [" ".join(f"w{10 + (7 * i + j * j) % 80}" for j in range(40)) for i in range(12)]
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock") / "bert"
    tiny_model("bert").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def test_pseudo_perplexity_is_that_of_one_mask_at_a_time(
    stock: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heldout, "PSEUDO_TOKENS", 10_000)  # all of it
    scores = run(stock, data=str(words))["words.txt"]
    model = AutoModelForMaskedLM.from_pretrained(stock).eval()
    losses = []
    documents = words.read_text("utf-8").split("\n\n")
    characters = sum(map(len, documents))
    for document in documents:
        ids = word_tokenizer()(document, return_tensors="pt")["input_ids"]
        assert ids.shape == (1, 42)
        for place in range(1, 41):
            masked = ids.clone()
            masked[0, place] = MASK
            with torch.no_grad():
                logits = model(input_ids=masked).logits[0, place]
            losses.append(-float(logits.log_softmax(0)[ids[0, place]]))
    mean = sum(losses) / len(losses)
    assert scores["pseudo_perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    bits = sum(losses) / math.log(2) / characters
    assert scores["pseudo_bits_per_character"] == pytest.approx(bits, rel=1e-4)
    assert scores["pseudo_bits_per_character_word_l2r"] == pytest.approx(bits, rel=1e-4)  # words of one token
    expected = scores["loss"] / math.log(2) * len(losses) / characters
    assert scores["bits_per_character"] == pytest.approx(expected)


def test_a_part_of_the_text_is_taken_evenly(stock: Path, words: Path) -> None:
    """Five of the twelve documents: about 200 tokens."""
    corpus = heldout.choose(str(stock), str(words)).corpus()
    loader = corpus.held_out_loader(corpus.layout(64, 64, alone=True))
    samples = heldout._samples(loader)
    assert [int((s.units >= 0).sum()) for s in samples] == [40] * 5
    everything = [loader.batch(i, 1).ids[0, :42].tolist() for i in range(12)]
    assert [everything.index(s.ids.tolist()) for s in samples] == [0, 2, 4, 7, 9]


def test_bits_are_counted_by_characters(words: Path, tmp_path: Path) -> None:
    """A model of zeros needs as many bits for every token, of one character or of several."""
    documents = words.read_text("utf-8").split("\n\n")
    found = {}
    for algorithm in ("characters", "bpe"):
        tokenizer = train_tokenizer(documents * 20, algorithm, 320, False)
        model = tiny_model("bert", vocab_size=320)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        tokenizer.save_pretrained(tmp_path / algorithm)
        model.save_pretrained(tmp_path / algorithm)
        scores = run(tmp_path / algorithm, data=str(words))["words.txt"]
        tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in documents)
        bits = math.log2(320) * tokens / sum(map(len, documents))
        assert scores["loss"] == pytest.approx(math.log(320), rel=1e-5)
        assert scores["pseudo_perplexity"] == pytest.approx(320, rel=1e-4)
        for metric in (name for name in METRICS if "bits" in name):
            assert scores[metric] == pytest.approx(bits, rel=1e-4)
        found[algorithm] = bits
    assert found["bpe"] < 0.6 * found["characters"]  # the control: they are not the same text to both


def test_no_logits_of_all_tokens_exist(stock: Path, words: Path) -> None:
    with widest(96) as recorder:
        run(stock, data=str(words))
    assert 0 < recorder.rows <= 200  # of 12 x 42 tokens, and of 200 copies of 42


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, "no text is given: use --data PATH"),
        ({"data": "nowhere.txt"}, "nowhere.txt: no such file"),
        ({"data": "empty.txt"}, "empty.txt: the file is empty"),
        ({"data": "rows.jsonl"}, "rows.jsonl: which column is the text"),
        ({"data": "rows.jsonl", "columns": ("c",)}, "no column 'c'; the columns are a, b"),
        ({"data": "rows.jsonl", "columns": ("a", "b")}, "--columns a,b: heldout reads one column"),
        ({"data": "rows.jsonl", "columns": ("a",), "length": 400}, "--length 400: the model takes 16 to 322"),
    ],
)
def test_text_that_cannot_be_read(
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], wanted: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("")
    Path("rows.jsonl").write_text(json.dumps({"a": "w5 w6 w7", "b": "w8 w9"}) + "\n", encoding="utf-8")
    with pytest.raises(ClozeError, match=wanted):
        run(stock, **options)


def test_the_column_of_the_text_can_be_named(stock: Path, tmp_path: Path) -> None:
    row = {"a": " ".join(f"w{5 + i}" for i in range(30)), "b": "w8 w9"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = run(stock, data=str(tmp_path / "rows.jsonl"), columns=("a",), length=32)
    assert list(found) == ["rows.jsonl"]
