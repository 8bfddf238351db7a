"""Log-likelihoods of texts, batched, against one sentence and one token at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CLS, FIRST, MASK, SEP, SIZE, tiny_model, widest, word_tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import cloze.evaluation.likelihood as module
from cloze.corruption.view import View
from cloze.errors import ClozeError
from cloze.evaluation.likelihood import framed, log_likelihoods, prefix_of
from cloze.evaluation.pseudo_likelihood import Tokens, pseudo_log_likelihoods
from cloze.evaluation.readings import readable
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites.base import Options
from cloze.evaluation.suites.minimal_pairs import SUITE
from cloze.models.encoder import Encoder, isolate
from cloze.models.twins import decoder_twin


def sequences(sizes: tuple[int, ...] = (7, 3, 7, 80, 1)) -> list[Tokens]:
    draw = np.random.default_rng(0)
    found = []
    for size in sizes:
        text = draw.integers(FIRST, SIZE, size)
        units = np.concatenate([[-1], np.arange(size) // 2, [-1]])
        found.append(Tokens(np.concatenate([[CLS], text, [SEP]]), units))
    return found


@pytest.fixture(scope="module", params=["bert", "modernbert"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return isolate(tiny_model(request.param)).eval()


@torch.no_grad()
def one_by_one(encoder: Encoder, tokens: Tokens, prefix: int = 0) -> Tensor:
    """log p of each scored token from a forward pass of its own, in which nothing behind it is there."""
    found = []
    for place in np.flatnonzero(tokens.units >= 0).tolist():
        ids = torch.from_numpy(tokens.ids[:place])[None]
        at = torch.arange(ids.numel())[None]
        open = at < prefix if place >= prefix else torch.zeros_like(at, dtype=torch.bool)
        view = View(ids, torch.zeros_like(ids), at, at, causal=True, dense=True, open=open)
        layer = encoder.vocabulary
        logits = torch.nn.functional.linear(encoder(view, at[0, -1:]).features[0], layer.weight, layer.bias)
        found.append(logits.log_softmax(0)[tokens.ids[place]].double())
    return torch.stack(found)


def test_scores_are_those_of_one_token_at_a_time(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        module.FORWARD_TOKENS, "cpu", 20
    )  # several batches of a length, and one sequence alone
    told: list[tuple[int, int]] = []
    found = log_likelihoods(encoder, sequences(), tell=lambda *x: told.append(x))
    for own, tokens in zip(found, sequences(), strict=True):
        assert torch.allclose(own, one_by_one(encoder, tokens), atol=1e-4)
    assert told[-1] == (sum(s.ids.size for s in sequences()),) * 2


def test_a_decoder_twin_gives_the_same(encoder: Encoder) -> None:
    stock = decoder_twin(encoder.model).eval()
    for a, b in zip(log_likelihoods(encoder, sequences()), log_likelihoods(stock, sequences()), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_behind_a_prefix_half_of_the_text_is_seen_from_both_sides(encoder: Encoder) -> None:
    found = log_likelihoods(encoder, sequences(), prefix=True)
    plain = log_likelihoods(encoder, sequences())
    for own, causal, tokens in zip(found, plain, sequences(), strict=True):
        half = own.numel() // 2
        assert prefix_of(tokens) == 1 + half
        assert torch.allclose(own, one_by_one(encoder, tokens, 1 + half), atol=1e-4)
        assert torch.equal(own[:half], causal[:half])
        assert half < 2 or not torch.allclose(own[half:], causal[half:], atol=1e-3)


def test_logits_are_made_of_the_predicted_tokens_only() -> None:
    encoder = isolate(tiny_model("bert")).eval()
    with widest(SIZE) as seen:
        log_likelihoods(encoder, sequences((40, 40)))
    assert seen.rows == 80  # of 84


def test_a_shifted_prediction_is_read_one_place_before(encoder: Encoder) -> None:
    (tokens,) = sequences((6,))
    plain = pseudo_log_likelihoods(encoder, MASK, [tokens], shift=1).plain
    total = 0.0
    for place in range(1, 7):
        ids = torch.from_numpy(tokens.ids)[None].clone()
        ids[0, place] = MASK
        at = torch.arange(8)[None]
        with torch.no_grad():
            features = encoder(View(ids, torch.zeros_like(ids), at, at), torch.tensor([place - 1])).features
            layer = encoder.vocabulary
            logits = torch.nn.functional.linear(features[0], layer.weight, layer.bias)
        total += float(logits.log_softmax(0)[tokens.ids[place]])
    assert float(plain) == pytest.approx(total, abs=1e-4)
    assert float(plain) != pytest.approx(
        float(pseudo_log_likelihoods(encoder, MASK, [tokens]).plain), abs=0.1
    )


def test_a_replaced_token_is_read_behind_another_word(encoder: Encoder) -> None:
    """With one word to draw from it is that word, and never the mask token."""
    (tokens,) = sequences((6,))
    word = torch.tensor([FIRST + 3])
    found = pseudo_log_likelihoods(encoder, word, [tokens]).plain
    assert torch.equal(found, pseudo_log_likelihoods(encoder, int(word), [tokens]).plain)
    many = torch.arange(FIRST, SIZE)
    assert not torch.equal(found, pseudo_log_likelihoods(encoder, many, [tokens]).plain)
    twice = [pseudo_log_likelihoods(encoder, many, [tokens]).plain for _ in range(2)]
    assert torch.equal(*twice)


# -- stock models -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of random weights whose tokenizer has no mask token and puts nothing around a text."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
    GPT2LMHeadModel(GPT2Config(vocab_size=SIZE, bos_token_id=1, eos_token_id=1, **shape)).save_pretrained(
        folder
    )
    tokenizer = word_tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.to_str()) | {"post_processor": None, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "[UNK]", "eos_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"model_max_length": 64}), "utf-8")
    return folder


def pairs(count: int = 12) -> Iterator[tuple[str, str]]:
    draw = np.random.default_rng(1)
    for _ in range(count):
        words = [f"w{i}" for i in draw.integers(FIRST, SIZE, draw.integers(2, 9))]
        yield " ".join(words), " ".join(draw.permutation(words))


def test_a_stock_causal_model_scores_minimal_pairs(stock: Path, tmp_path: Path) -> None:
    rows = [{"sentence_good": a, "sentence_bad": b} for a, b in pairs()]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    subject = Subject(stock)
    found = SUITE.run(subject, Options(data=str(tmp_path / "x.jsonl")))
    model = GPT2LMHeadModel.from_pretrained(stock).eval()

    @torch.no_grad()
    def score(text: str) -> float:
        ids = torch.tensor([1, *(int(word[1:]) for word in text.split())])[None]
        return -float(model(input_ids=ids, labels=ids).loss) * (ids.numel() - 1)

    right = [score(a) > score(b) for a, b in pairs()]
    assert 0 < sum(right) < len(right)
    assert found == {"x": {"accuracy": [sum(right) / len(right)]}}


def test_what_a_stock_causal_model_cannot_do_is_said_in_one_line(stock: Path) -> None:
    model = readable(Subject(stock))
    assert dict(model.shifts) == {"causal": 1}
    with pytest.raises(ClozeError, match=r"^--reading masked: .* is read causal$"):
        model.chosen("masked")
    with pytest.raises(ClozeError, match=r"GPT2LMHeadModel has no encoder twin; only minimal-pairs can"):
        _ = model.encoder


def test_a_text_that_starts_without_a_special_gets_one() -> None:
    bare = Tokens(np.array([7, 8]), np.array([0, 1]))
    (made,) = framed([bare], 1)
    assert (made.ids.tolist(), made.units.tolist()) == ([1, 7, 8], [-1, 0, 1])
    assert framed(sequences(), 1)[0].ids.tolist() == sequences()[0].ids.tolist()
    assert framed([bare], None) == [bare]
