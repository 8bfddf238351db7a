"""Infilling: T5's own loss, accumulation, and what each visibility shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import MASK, SEP, SIZE, make_samples, pack, rows_of, tiny_model, tiny_t5, widest
from torch import Tensor

from cloze.corruption.replace import Vocabulary
from cloze.corruption.sentinels import Sentinels
from cloze.corruption.view import View
from cloze.data.batch import Batch
from cloze.errors import ClozeError
from cloze.masking.base import Masking
from cloze.masking.rest import Rest
from cloze.masking.spans import Spans
from cloze.masking.uniform import Uniform
from cloze.methods.build import Choices, build_method
from cloze.methods.infilling import Infilling
from cloze.methods.objectives import InfillObjective, NextTokenObjective
from cloze.methods.visibility import CausalVisible, EncoderDecoderVisible, PrefixVisible, Visible
from cloze.models.encoder_decoder import EncoderDecoder, wrap

COUNT = 24
WORDS = Vocabulary(
    SIZE, MASK, torch.arange(5, SIZE - COUNT), sentinels=tuple(range(SIZE - COUNT, SIZE)), end=SEP
)


def method(visibility: Visible, masking: Masking | None = None, family: str = "modernbert") -> Infilling:
    pair = isinstance(visibility, EncoderDecoderVisible)
    encoder = wrap((tiny_t5() if pair else tiny_model(family)).double())
    choices = Choices(masking or Spans(rate=0.3), Sentinels(), visibility, InfillObjective())
    made = build_method(choices, encoder, WORDS, seed=5)
    assert isinstance(made, Infilling)
    return made


def rows() -> Batch:
    sizes = [[20, 9], [30], [1, 2, 3], [31], [5, 5]]
    return pack([make_samples(size, i + 1, SIZE - COUNT) for i, size in enumerate(sizes)], 34)


VISIBLE = [EncoderDecoderVisible(), CausalVisible(), PrefixVisible()]
MASKINGS = [Spans(rate=0.3), Uniform(rate=0.2), Rest()]


@pytest.mark.parametrize("masking", MASKINGS, ids=lambda m: m.kind)
@pytest.mark.parametrize("visibility", VISIBLE, ids=lambda v: v.kind)
def test_packed_is_separate_and_parts_add_up(visibility: Visible, masking: Masking) -> None:
    made, batch = method(visibility, masking), rows()
    work = made.prepare(batch, 0.0)
    whole = made(work)
    parts = [made.prepare(rows_of(batch, [i]), 0.0) for i in range(5)]
    outcomes = [made(part) for part in parts]
    assert float(made.weights(work)["infill"]) == sum(float(made.weights(p)["infill"]) for p in parts)
    assert float(made.weights(work)["infill"]) == int(work.predicted) == work.labels.numel()
    losses = torch.cat([out.feedback["loss"] for out in outcomes])
    assert torch.allclose(losses, whole.feedback["loss"], atol=1e-9)
    whole.sums["infill"].backward()
    gradients = {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    torch.stack([out.sums["infill"] for out in outcomes]).sum().backward()
    for name, parameter in made.named_parameters():
        if parameter.grad is not None:
            assert (parameter.grad - gradients[name]).abs().max() < 1e-8


def test_the_loss_is_t5s_own() -> None:
    made = method(EncoderDecoderVisible())
    assert isinstance(made.encoder, EncoderDecoder)
    batch = pack([make_samples([25], 2, SIZE - COUNT)], 27)
    work = made.prepare(batch, 0.0)
    given, _ = work.views
    stock = made.encoder.model(input_ids=given.ids, labels=work.labels[None]).loss
    ours = made(work).sums["infill"] / made.weights(work)["infill"]
    assert float(ours.detach()) == pytest.approx(float(stock.detach()), abs=1e-6)


def test_the_head_runs_where_something_is_predicted_only() -> None:
    made, batch = method(EncoderDecoderVisible()), rows()
    work = made.prepare(batch, 0.0)
    with widest(made.encoder.vocabulary.weight.shape[0]) as found:
        made(work).sums["infill"].backward()
    assert found.rows <= max(work.labels.numel(), made.encoder.vocabulary.weight.shape[0])


def outputs(made: Infilling, view: View) -> Tensor:
    with torch.no_grad():
        hidden: Tensor = made.encoder(view, torch.arange(1)).hidden[0]
    return hidden


@pytest.mark.parametrize("visibility", [CausalVisible(), PrefixVisible()], ids=lambda v: v.kind)
def test_who_sees_whom_in_one_network(visibility: Visible) -> None:
    made = method(visibility, family="bert")
    batch = pack([make_samples([8, 6], 3, SIZE - COUNT)], 18)
    work = made.prepare(batch, 0.0)
    (view,) = work.views
    size, given = view.ids.shape[1], view.origin[0] >= 0
    segments = view.segments[0]
    answer = torch.zeros(size, dtype=torch.bool)
    for number in range(2):  # behind the place of the mask token between the two
        inside = (segments == number).nonzero().squeeze(1)
        start = int((view.ids[0, inside] == MASK).nonzero()[-1])
        answer[inside[start:]] = True
    base = outputs(made, view)
    for place in range(size):
        ids = view.ids.clone()
        ids[0, place] = (ids[0, place] + 3) % 60 + 5
        changed = View(ids, view.segments, view.positions, view.origin, view.causal, open=view.open)
        differ = (outputs(made, changed) - base).abs().amax(1) > 1e-9
        own = segments == segments[place]
        later = torch.arange(size) >= place
        whole = visibility.kind == "prefix" and not bool(answer[place])
        assert torch.equal(differ, own if whole else own & later)
    assert bool(given.any())


@pytest.mark.parametrize("visibility", VISIBLE, ids=lambda v: v.kind)
def test_held_out_text_is_hidden_alike_in_all_runs(visibility: Visible) -> None:
    batch = rows()
    plan = Uniform(rate=0.15).plan(batch, 0.15, 1)
    works = [method(visibility, m).examine(batch, plan, 1) for m in (Spans(rate=0.5), Uniform(rate=0.1))]
    first, second = works
    assert torch.equal(first.targets, second.targets)
    assert (first.targets >= 0).all()
    assert torch.equal(batch.ids.flatten()[first.targets], first.labels)
    assert 0.1 < first.labels.numel() / int(batch.maskable.sum()) < 0.35  # short samples hide one span
    rest = method(visibility, Rest())
    assert rest.measures != method(visibility).measures
    assert not torch.equal(rest.examine(batch, plan, 1).targets, first.targets)


@pytest.mark.parametrize("visibility", VISIBLE, ids=lambda v: v.kind)
def test_the_greedy_answer_is_what_the_outputs_say(visibility: Visible) -> None:
    made = method(visibility)
    batch = pack([make_samples([20], 4, SIZE - COUNT)], 22)
    given, answer, truth = made.answer(batch, 7, most=6)
    plan = Spans(rate=0.15).plan(batch, 0.15, 7)
    work = made.work(batch, plan)
    assert truth.tolist() == work.labels.tolist()
    assert given.tolist() == work.views[0].ids[0, : given.numel()].tolist()
    # Its first token is the guess where the true answer begins.
    assert int(made(work).feedback["guess"][0]) == int(answer[0])
    assert 1 <= answer.numel() <= 6
    if isinstance(made.encoder, EncoderDecoder):
        model: Any = made.encoder.model
        stock = model.generate(given[None], max_new_tokens=6, do_sample=False)[0, 1:]
        assert stock.tolist() == answer.tolist()


def test_what_does_not_fit_is_refused() -> None:
    long = method(CausalVisible(), family="bert")
    long.encoder.model.config.max_position_embeddings = 30
    with pytest.raises(ClozeError, match="tokens with its answer, the model takes 30"):
        long.prepare(rows(), 0.0)
    with pytest.raises(ClozeError, match=r"BertForMaskedLM is no encoder-decoder; model\.family=t5"):
        method_of_one = Choices(Spans(), Sentinels(), EncoderDecoderVisible(), InfillObjective())
        build_method(method_of_one, wrap(tiny_model("bert")), WORDS)
    with pytest.raises(ClozeError, match="T5ForConditionalGeneration is an encoder-decoder"):
        build_method(
            Choices(objective=NextTokenObjective(), visibility=CausalVisible()), wrap(tiny_t5()), WORDS
        )
