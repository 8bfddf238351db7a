"""The held-out loss: the same masks for every run, and what the stock model says about them."""

import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_model, widest
from transformers import PreTrainedModel

import cloze.evaluation.heldout
from cloze.corruption.replace import Vocabulary
from cloze.data.corpus import Corpus, Data, TrainTokenizer, open_corpus
from cloze.data.heldout import HeldOut
from cloze.data.loader import Loader
from cloze.errors import ClozeError
from cloze.evaluation.heldout import HeldOutSet, unigram_losses
from cloze.evaluation.samples import samples
from cloze.methods.build import vocabulary_of
from cloze.models.encoder import Encoder, isolate

LENGTH = 128
ROWS = 12


@pytest.fixture(scope="module")
def tokenized(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    data = Data.model_validate(
        {
            "sources": [str(corpus)],
            "heldout": HeldOut(minimum=3000),
            "store": str(tmp_path_factory.mktemp("s")),
        }
    )
    return open_corpus(data, TrainTokenizer(vocabulary=320))


@pytest.fixture(scope="module")
def held_out(tokenized: Corpus) -> HeldOutSet:
    loader = tokenized.held_out_loader(tokenized.layout(LENGTH, LENGTH, alone=False))
    return HeldOutSet(loader, vocabulary_of(tokenized.tokenizer), rate=0.15, tokens=ROWS * LENGTH)


def model(family: str = "bert", **changes: int) -> PreTrainedModel:
    return tiny_model(family, vocab_size=320, **changes)


def brute_force(stock: PreTrainedModel, held: HeldOutSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and guesses, each sample alone through the stock model with all its logits."""
    losses, guesses = [], []
    for batch, view, _, _ in held.items():
        for number in range(batch.samples):
            inside = batch.segments == number
            masked = (view.ids[inside] == held.vocabulary.mask) & (batch.index[inside] >= 0)
            with torch.no_grad():
                logits = stock(input_ids=view.ids[inside][None]).logits[0][masked]
            losses.append(F.cross_entropy(logits, batch.ids[inside][masked], reduction="none"))
            guesses.append(logits.argmax(1) == batch.ids[inside][masked])
    return torch.cat(losses), torch.cat(guesses)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_loss_is_that_of_the_stock_model(held_out: HeldOutSet, family: str) -> None:
    net = model(family)
    stock = copy.deepcopy(net)
    result = held_out.evaluate(isolate(net))
    losses, right = brute_force(stock, held_out)
    assert losses.numel() > 150
    assert (result.losses - losses).abs().max() < 1e-4
    assert result.loss == pytest.approx(losses.double().mean().item(), abs=1e-6)
    assert torch.equal(result.correct, right)
    assert result.accuracy == pytest.approx(right.double().mean().item())
    other, _ = brute_force(tiny_model(family, seed=1, vocab_size=320), held_out)
    assert (result.losses - other).abs().max() > 0.1  # the control


def test_a_model_that_cannot_isolate_is_evaluated_alone(tokenized: Corpus) -> None:
    net = model("deberta-v2")
    stock = copy.deepcopy(net)
    encoder = isolate(net)
    loader = tokenized.held_out_loader(tokenized.layout(64, 64, alone=True))
    held = HeldOutSet(loader, vocabulary_of(tokenized.tokenizer), 0.15, 10 * 64)
    losses, _ = brute_force(stock, held)
    assert (held.evaluate(encoder).losses - losses).abs().max() < 1e-4


def test_the_masks_are_the_same_every_time(held_out: HeldOutSet, tokenized: Corpus) -> None:
    def masks(held: HeldOutSet) -> list[list[int]]:
        return [view.ids.flatten().tolist() for _, view, _, _ in held.items()]

    first = masks(held_out)
    torch.manual_seed(1234)
    np.random.seed(1)
    assert masks(held_out) == first
    fresh = tokenized.held_out_loader(held_out.loader.layout)
    assert masks(HeldOutSet(fresh, held_out.vocabulary, 0.15, ROWS * LENGTH)) == first
    assert masks(HeldOutSet(fresh, held_out.vocabulary, 0.3, ROWS * LENGTH)) != first
    encoder = isolate(model())
    a, b = held_out.evaluate(encoder), held_out.evaluate(encoder)
    assert a.loss == b.loss
    assert torch.equal(a.losses, b.losses)


def test_the_way_rows_are_batched_does_not_matter(
    held_out: HeldOutSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = isolate(model())
    whole = held_out.evaluate(encoder)
    monkeypatch.setattr(cloze.evaluation.heldout, "FORWARD_TOKENS", 2 * LENGTH)
    assert len(list(held_out.items())) == ROWS // 2
    cut = held_out.evaluate(encoder)
    assert torch.equal(cut.labels, whole.labels)
    assert (cut.losses - whole.losses).abs().max() < 1e-4


def test_masks_are_uniform_and_all_mask_tokens(held_out: HeldOutSet) -> None:
    for batch, view, places, labels in held_out.items():
        hidden = view.ids != batch.ids
        assert (view.ids[hidden] == held_out.vocabulary.mask).all()
        assert torch.equal(hidden.flatten().nonzero().squeeze(1), places)
        assert torch.equal(batch.ids.flatten()[places], labels)
        counts = torch.bincount(batch.segments[hidden], minlength=batch.samples)
        sizes = torch.bincount(batch.segments[batch.maskable], minlength=batch.samples)
        assert ((counts - 0.15 * sizes).abs() < 1).all()


def test_rows_are_spread_over_all_the_held_out_text(held_out: HeldOutSet) -> None:
    keys = torch.cat([batch.keys for batch, *_ in held_out.items()])
    assert keys.unique().numel() == keys.numel()
    available = len(held_out.loader.sources[0])
    assert available > 2 * ROWS
    row = {k: r for r in range(available) for k in held_out.loader.batch(r, 1).keys.tolist()}
    used = sorted({row[k] for k in keys.tolist()})
    assert len(used) == ROWS
    gaps = [b - a for a, b in pairwise([*used, available])]
    assert used[0] == 0
    assert max(gaps) - min(gaps) <= 1


def test_asking_for_more_than_there_is_takes_each_row_once(held_out: HeldOutSet) -> None:
    everything = HeldOutSet(held_out.loader, held_out.vocabulary, 0.15, tokens=10**9)
    rows = [batch.ids.shape[0] for batch, *_ in everything.items()]
    assert sum(rows) == len(held_out.loader.sources[0])
    keys = torch.cat([batch.keys for batch, *_ in everything.items()])
    assert keys.unique().numel() == keys.numel()


def test_no_full_logits_and_no_gradients(held_out: HeldOutSet) -> None:
    encoder = isolate(model())
    masked = max(places.numel() for *_, places, _ in held_out.items())
    with widest(320) as wide:
        result = held_out.evaluate(encoder)
    assert wide.rows <= masked < ROWS * LENGTH / 4
    assert not result.losses.requires_grad
    assert all(p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_is_put_back(held_out: HeldOutSet, training: bool) -> None:
    encoder = isolate(model()).train(training)
    assert held_out.evaluate(encoder).loss == held_out.evaluate(encoder).loss
    assert encoder.training == training


def test_bf16_is_close(held_out: HeldOutSet) -> None:
    encoder = isolate(model())
    exact = held_out.evaluate(encoder)
    rough = held_out.evaluate(encoder, torch.autocast("cpu", dtype=torch.bfloat16))
    assert rough.losses.dtype == torch.float32
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)
    assert rough.loss != exact.loss


def test_no_held_out_text_is_an_error(held_out: HeldOutSet) -> None:
    class Nothing(Loader):
        layout = held_out.loader.layout  # type: ignore[assignment]

    with pytest.raises(ClozeError, match="held-out text"):
        next(HeldOutSet(Nothing((), (), None, 0, frozenset()), held_out.vocabulary, 0.15, 100).items())


def test_unigram_losses_by_hand() -> None:
    counts = np.array([0.0, 3.0, 6.0])  # add-one: 1, 4, 7 of 12
    found = unigram_losses(torch.tensor([2, 0, 1, 2]), counts)
    assert found.tolist() == pytest.approx(np.log([12 / 7, 12, 3, 12 / 7]).tolist())
    assert found.dtype == torch.float32


def test_unigram_is_the_best_that_knows_no_context(tokenized: Corpus) -> None:
    counts = tokenized.counts(320)
    every = torch.repeat_interleave(torch.arange(320), torch.from_numpy(counts).long())
    entropy = unigram_losses(every, counts).double().mean()
    assert entropy < unigram_losses(every, np.ones(320)).double().mean()
    assert entropy < unigram_losses(every, np.roll(counts, 1)).double().mean()
    p = counts[counts > 0] / counts.sum()
    assert float(entropy) == pytest.approx(-(p * np.log(p)).sum(), abs=0.01)


def test_samples_say_what_was_learnt(held_out: HeldOutSet, tokenized: Corpus) -> None:
    encoder: Encoder = isolate(model())
    result = held_out.evaluate(encoder)
    counts = tokenized.counts(320)
    initial = result.losses + 1.0
    found = samples(held_out, encoder, tokenized.tokenizer, counts, initial, result)
    words = found["words"]
    assert sum(w["count"] for w in words) == result.labels.numel()
    assert [w["count"] for w in words] == sorted((w["count"] for w in words), reverse=True)
    for word in words:
        assert word["loss_initial"] == pytest.approx(word["loss"] + 1.0, abs=1e-3)
    mean = sum(w["loss"] * w["count"] for w in words) / result.labels.numel()
    assert mean == pytest.approx(result.loss, abs=1e-3)
    bands = found["frequency"]
    assert sum(b["tokens"] for b in bands) == result.labels.numel()
    losses = sum(b["loss"] * b["tokens"] for b in bands) / result.labels.numel()
    assert losses == pytest.approx(result.loss, abs=1e-3)
    masked = [t for e in found["examples"] for t in e["tokens"] if t.get("masked")]
    assert masked
    for token in masked:
        assert len(token["guesses"]) == 5
        assert 0 <= sum(g["p"] for g in token["guesses"]) <= 1.001
    assert encoder.training is False


def test_vocabulary_has_the_tokenizers_mask(held_out: HeldOutSet, tokenized: Corpus) -> None:
    assert isinstance(held_out.vocabulary, Vocabulary)
    assert held_out.vocabulary.mask == tokenized.tokenizer.mask_token_id
