"""The parts of the instrument: losses as the stock model has them, whole sequences, groups that cover all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import FIRST, MASK, SIZE, make_samples, pack, tiny_model, vocabulary
from torch import Tensor

from cloze.corruption.replace import Replace
from cloze.data.batch import Batch
from cloze.diagnosis.losses import SCORES, Losses, mask_of, sampled_losses
from cloze.diagnosis.online import longest_sample
from cloze.diagnosis.parameters import counted, groups_of, select
from cloze.diagnosis.text import shorten, spread
from cloze.errors import ClozeError
from cloze.masking.uniform import Uniform
from cloze.methods.build import Choices, build_method
from cloze.methods.token_prediction import TokenPrediction
from cloze.models.encoder import Encoder, isolate


def rows(count: int = 3, size: int = 20) -> list[Batch]:
    return [shorten(pack([[sample]], size + 7), size + 7) for sample in make_samples([size] * count)]


def method(encoder: Encoder, corruption: Replace | None = None) -> TokenPrediction:
    choices = Choices(Uniform(), corruption or Replace(mask=1.0, random=0.0))
    made = build_method(choices, encoder, vocabulary())
    made.norms = True
    return made.eval()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return isolate(tiny_model("bert"))


def test_the_loss_is_the_mean_over_the_masked_tokens(encoder: Encoder) -> None:
    losses = Losses(method(encoder), rows())
    mask = mask_of(20, 5, 0, 1)
    batch = losses.sequences[1]
    hidden = torch.zeros_like(batch.maskable)
    hidden[batch.maskable] = mask
    assert hidden.sum() == 5
    ids = torch.where(hidden, MASK, batch.ids)
    encoder.model.set_attn_implementation("eager")
    logits = encoder.model(input_ids=ids).logits
    wanted = torch.nn.functional.cross_entropy(logits[hidden], batch.ids[hidden])
    isolate(encoder.model)
    assert losses(1, mask, 0).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_token_losses_add_up_to_the_loss_and_so_do_their_gradients(encoder: Encoder) -> None:
    losses = Losses(method(encoder), rows())
    mask = mask_of(20, 5, 0, 0)
    weight = encoder.vocabulary.weight
    parts = [losses.token(0, mask, i) for i in mask.nonzero().flatten().tolist()]
    whole = losses(0, mask, 0)
    assert sum(total.item() for total, _ in parts) == pytest.approx(whole.item(), rel=1e-5)
    summed = torch.stack([torch.autograd.grad(total, weight)[0] for total, _ in parts]).sum(0)
    torch.testing.assert_close(summed, torch.autograd.grad(whole, weight)[0], rtol=1e-4, atol=1e-6)
    for total, scores in parts:
        assert set(scores) == set(SCORES)
        assert scores["loss"] == pytest.approx(5 * total.item(), rel=1e-5)


def test_another_draw_is_another_corruption(encoder: Encoder) -> None:
    losses = Losses(method(encoder, Replace()), rows())
    mask = mask_of(20, 10, 0, 0)
    first, second = losses(0, mask, 0).item(), losses(0, mask, 1).item()
    assert first == losses(0, mask, 0).item()
    assert first != second


def test_masks_have_their_size_and_differ_by_sequence() -> None:
    masks = [mask_of(20, 5, 0, i) for i in range(4)]
    assert all(m.sum() == 5 for m in masks)
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], mask_of(20, 5, 0, 0))


def test_sampled_labels_follow_the_model(encoder: Encoder) -> None:
    """Gradients against labels from the model have mean zero; against the true labels they have not."""
    losses = Losses(method(encoder), rows(2))
    bias = encoder.vocabulary.bias
    assert isinstance(bias, Tensor)
    draws = [torch.autograd.grad(sampled_losses(losses, encoder, 0.5, d).mean(), bias)[0] for d in range(60)]
    again = torch.autograd.grad(sampled_losses(losses, encoder, 0.5, 0).mean(), bias)[0]
    assert torch.equal(draws[0], again)
    true = torch.autograd.grad(losses(0, mask_of(20, 10, 0, 0), 0), bias)[0]
    mean = torch.stack(draws).mean(0)
    assert mean.norm() < 0.35 * draws[0].norm()  # 1/√60 = 0.13
    assert true.norm() > 0.7 * draws[0].norm()


def test_shorten_keeps_the_specials_and_drops_padding() -> None:
    batch = pack([[make_samples([20])[0]]], 30)
    whole, half = shorten(batch, 30), shorten(batch, 12)
    assert (whole.ids.shape[1], half.ids.shape[1]) == (22, 12)
    assert half.ids[0, 0] == batch.ids[0, 0] and half.ids[0, -1] == batch.ids[0, 21]
    assert torch.equal(half.ids[0, :11], batch.ids[0, :11])
    assert half.maskable.sum() == 10 and whole.maskable.sum() == 20
    assert whole.dense and bool((whole.segments == 0).all())
    assert bool((half.ids[half.maskable] >= FIRST).all())


def test_a_running_training_measures_the_longest_sample_of_a_row() -> None:
    samples = make_samples([5, 20, 9], seed=3)
    row = pack([samples], 64)
    found = longest_sample(row)
    assert found.ids[0, 1:-1].tolist() == list(samples[1].ids)
    assert found.keys.tolist() == [samples[1].key]
    assert found.maskable.sum() == 20
    assert found.segments.unique().tolist() == [0]


def test_spread_is_even() -> None:
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 8) == [0, 1, 2]


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "electra", "deberta-v2"])
def test_groups_are_a_partition_in_the_order_of_the_model(family: str) -> None:
    model = tiny_model(family)
    groups = groups_of(model)
    layers = [f"layer {i}" for i in range(model.config.num_hidden_layers)]
    assert list(groups) == [name for name, _ in model.named_parameters()]
    assert set(groups.values()) == {"embeddings", *layers, "head"}
    table = next(n for n, p in model.named_parameters() if p is model.get_input_embeddings().weight)
    assert groups[table] == "embeddings"
    body = select(model, "body")
    assert {groups[name] for name in body} == set(layers)
    assert select(model, "all").keys() == groups.keys()


def test_parameters_are_counted_by_the_tokens_that_they_work_on() -> None:
    for tied in (True, False):
        model = tiny_model("bert", tie_word_embeddings=tied)
        body, head = counted(model)
        tables = 32 * (SIZE + 322 + 2)  # words, positions, kinds of segment
        assert body == sum(p.numel() for p in model.bert.parameters()) - tables
        assert head == sum(p.numel() for p in model.cls.parameters())  # with the matrix, tied or not


def test_patterns_choose_by_name() -> None:
    model = tiny_model("bert")
    found = select(model, "*.layer.1.attention.*")
    assert found and all(".layer.1.attention." in name for name in found)
    for name, parameter in model.named_parameters():
        if name not in found:
            parameter.requires_grad_(False)
    assert select(model, "all").keys() == found.keys()
    with pytest.raises(ClozeError, match=r"--parameters nothing\*: .* names like \S*layer"):
        select(model, "nothing*")


def test_visits_are_replaced_not_added(encoder: Encoder) -> None:
    batch = rows(1)[0]
    old = replace(batch, visits=batch.visits + 5)
    mask = mask_of(20, 5, 0, 0)
    corruption = Replace()
    values = [Losses(method(encoder, corruption), [b])(0, mask, 2).item() for b in (batch, old)]
    assert values[0] == values[1]
