"""The held-out loss: the same masks for every run, and what the stock model says about them."""

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_model, widest
from transformers import PreTrainedModel

import cloze.evaluation.heldout
from cloze.data.corpus import Corpus, Data, TrainTokenizer, open_corpus
from cloze.data.heldout import HeldOut
from cloze.data.loader import Loader
from cloze.errors import ClozeError
from cloze.evaluation.heldout import SEED, HeldOutSet, unigram_losses
from cloze.evaluation.samples import samples
from cloze.methods.base import TokenWork
from cloze.methods.build import Choices, build_method, vocabulary_of
from cloze.methods.token_prediction import TokenPrediction
from cloze.models.encoder import isolate

LENGTH = 128
ROWS = 12
Mlm = Callable[[PreTrainedModel], TokenPrediction]


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
    return HeldOutSet(loader, rate=0.15, tokens=ROWS * LENGTH)


def model(family: str = "bert", **changes: int) -> PreTrainedModel:
    return tiny_model(family, vocab_size=320, **changes)


@pytest.fixture(scope="module")
def mlm(tokenized: Corpus) -> Callable[[PreTrainedModel], TokenPrediction]:
    """Masked language modelling with a model."""
    return lambda net: build_method(Choices(), isolate(net), vocabulary_of(tokenized.tokenizer))


def works(held: HeldOutSet, method: TokenPrediction) -> list[TokenWork]:
    return [method.examine(batch, plan, SEED) for batch, plan in held.items()]


def brute_force(
    stock: PreTrainedModel, held: HeldOutSet, mask: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and guesses, each sample alone through the stock model with all its logits."""
    losses, guesses = [], []
    for batch, plan in held.items():
        ids = torch.where(plan.hidden, torch.tensor(mask), batch.ids)
        for number in range(batch.samples):
            inside = batch.segments == number
            masked = plan.hidden[inside]
            with torch.no_grad():
                logits = stock(input_ids=ids[inside][None]).logits[0][masked]
            losses.append(F.cross_entropy(logits, batch.ids[inside][masked], reduction="none"))
            guesses.append(logits.argmax(1) == batch.ids[inside][masked])
    return torch.cat(losses), torch.cat(guesses)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_loss_is_that_of_the_stock_model(
    held_out: HeldOutSet, family: str, mlm: Mlm, tokenized: Corpus
) -> None:
    net = model(family)
    stock = copy.deepcopy(net)
    result = held_out.evaluate(mlm(net))
    losses, right = brute_force(stock, held_out, tokenized.tokenizer.mask_token_id)
    assert losses.numel() > 150
    assert (result.losses - losses).abs().max() < 1e-4
    assert result.loss == pytest.approx(losses.double().mean().item(), abs=1e-6)
    assert torch.equal(result.correct, right)
    assert result.accuracy == pytest.approx(right.double().mean().item())
    stock = tiny_model(family, seed=1, vocab_size=320)
    other, _ = brute_force(stock, held_out, tokenized.tokenizer.mask_token_id)
    assert (result.losses - other).abs().max() > 0.1  # the control


def test_a_model_that_cannot_isolate_is_evaluated_alone(tokenized: Corpus, mlm: Mlm) -> None:
    net = model("deberta-v2")
    stock = copy.deepcopy(net)
    loader = tokenized.held_out_loader(tokenized.layout(64, 64, alone=True))
    held = HeldOutSet(loader, 0.15, 10 * 64)
    losses, _ = brute_force(stock, held, tokenized.tokenizer.mask_token_id)
    assert (held.evaluate(mlm(net)).losses - losses).abs().max() < 1e-4


def test_the_masks_are_the_same_every_time(held_out: HeldOutSet, tokenized: Corpus, mlm: Mlm) -> None:
    method = mlm(model())

    def masks(held: HeldOutSet) -> list[list[int]]:
        return [work.views[0].ids.flatten().tolist() for work in works(held, method)]

    first = masks(held_out)
    torch.manual_seed(1234)
    np.random.seed(1)
    assert masks(held_out) == first
    fresh = tokenized.held_out_loader(held_out.loader.layout)
    assert masks(HeldOutSet(fresh, 0.15, ROWS * LENGTH)) == first
    assert masks(HeldOutSet(fresh, 0.3, ROWS * LENGTH)) != first
    a, b = held_out.evaluate(method), held_out.evaluate(method)
    assert a.loss == b.loss
    assert torch.equal(a.losses, b.losses)


def test_the_way_rows_are_batched_does_not_matter(
    held_out: HeldOutSet, mlm: Mlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = mlm(model())
    whole = held_out.evaluate(method)
    monkeypatch.setattr(cloze.evaluation.heldout, "FORWARD_TOKENS", 2 * LENGTH)
    assert len(list(held_out.items())) == ROWS // 2
    cut = held_out.evaluate(method)
    assert torch.equal(cut.labels, whole.labels)
    assert (cut.losses - whole.losses).abs().max() < 1e-4


def test_masks_are_uniform_and_all_mask_tokens(held_out: HeldOutSet, tokenized: Corpus, mlm: Mlm) -> None:
    for work in works(held_out, mlm(model())):
        batch, ids = work.batch, work.views[0].ids
        hidden = ids != batch.ids
        assert (ids[hidden] == tokenized.tokenizer.mask_token_id).all()
        assert torch.equal(hidden.flatten().nonzero().squeeze(1), work.places)
        assert torch.equal(batch.ids.flatten()[work.places], work.labels)
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
    everything = HeldOutSet(held_out.loader, 0.15, tokens=10**9)
    rows = [batch.ids.shape[0] for batch, *_ in everything.items()]
    assert sum(rows) == len(held_out.loader.sources[0])
    keys = torch.cat([batch.keys for batch, *_ in everything.items()])
    assert keys.unique().numel() == keys.numel()


def test_no_full_logits_and_no_gradients(held_out: HeldOutSet, mlm: Mlm) -> None:
    method = mlm(model())
    masked = max(work.places.numel() for work in works(held_out, method))
    with widest(320) as wide:
        result = held_out.evaluate(method)
    assert wide.rows <= masked < ROWS * LENGTH / 4
    assert not result.losses.requires_grad
    assert all(p.grad is None for p in method.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_is_put_back(held_out: HeldOutSet, mlm: Mlm, training: bool) -> None:
    method = mlm(model()).train(training)
    assert held_out.evaluate(method).loss == held_out.evaluate(method).loss
    assert method.training == training


def test_bf16_is_close(held_out: HeldOutSet, mlm: Mlm) -> None:
    method = mlm(model())
    exact = held_out.evaluate(method)
    rough = held_out.evaluate(method, torch.autocast("cpu", dtype=torch.bfloat16))
    assert rough.losses.dtype == torch.float32
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)
    assert rough.loss != exact.loss


def test_no_held_out_text_is_an_error(held_out: HeldOutSet) -> None:
    class Nothing(Loader):
        layout = held_out.loader.layout  # type: ignore[assignment]

    with pytest.raises(ClozeError, match="held-out text"):
        next(HeldOutSet(Nothing((), (), None, 0, frozenset()), 0.15, 100).items())


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


def test_samples_say_what_was_learnt(held_out: HeldOutSet, tokenized: Corpus, mlm: Mlm) -> None:
    method = mlm(model()).eval()
    result = held_out.evaluate(method)
    counts = tokenized.counts(320)
    initial = result.losses + 1.0
    found = samples(held_out, method, tokenized.tokenizer, counts, initial, result)
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
    assert method.training is False
