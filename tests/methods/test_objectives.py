"""Which tokens are predicted, and from which output: at their own place, or one place before."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import CLS, SEP, make_samples, pack, tiny_model, vocabulary
from torch import Tensor

from cloze.corruption.replace import Replace
from cloze.data.batch import Batch
from cloze.masking.nothing import Nothing
from cloze.masking.uniform import Uniform
from cloze.methods.base import TokenWork
from cloze.methods.build import Choices, build_method
from cloze.methods.objectives import MlmObjective, NextTokenObjective
from cloze.methods.token_prediction import TokenPrediction
from cloze.methods.visibility import AllVisible, CausalVisible, PrefixVisible
from cloze.models.encoder import isolate
from cloze.models.twins import decoder_twin

CAUSAL = Choices(Nothing(), Replace(), CausalVisible(), NextTokenObjective())
PREFIX = replace(CAUSAL, visibility=PrefixVisible())
HIDDEN = Choices(Uniform(rate=0.3), Replace(), AllVisible(), NextTokenObjective(targets="hidden"))
MEAP = Choices(Uniform(rate=0.3), Replace(mask=1.0, random=0.0), CausalVisible(), NextTokenObjective())


def method(choices: Choices, family: str = "bert") -> TokenPrediction:
    return build_method(choices, isolate(tiny_model(family)), vocabulary(), seed=5)


def packed() -> Batch:
    first = make_samples([9, 1, 20], 1)
    first[2] = replace(first[2], fixed=frozenset({4, 5}))
    return pack([first, make_samples([30], 2), []], length=40)


def check_shift(work: TokenWork) -> None:
    """Every prediction is read one place before its token, in the same sample."""
    segments, ids = work.batch.segments.flatten(), work.batch.ids.flatten()
    assert torch.equal(work.places, work.targets - 1)
    assert torch.equal(segments[work.places], segments[work.targets])
    assert torch.equal(work.labels, ids[work.targets])
    assert not torch.isin(work.labels, torch.tensor([CLS, SEP])).any()


def test_all_next_tokens_are_those_of_the_text() -> None:
    work = method(CAUSAL).prepare(packed(), 0.0)
    check_shift(work)
    assert torch.equal(work.targets, packed().maskable.flatten().nonzero().squeeze(1))
    assert (work.token_weights == 1).all()
    assert float(method(CAUSAL).weights(work)["next_token"]) == work.targets.numel() == 9 + 1 + 18 + 30
    assert (work.density, int(work.predicted), int(work.tokens)) == (1.0, 58, 68)
    assert torch.equal(work.views[0].ids, packed().ids)
    assert work.views[0].causal


def test_a_first_token_without_one_before_it_is_not_predicted() -> None:
    """Without [CLS] the output before a sample's first token is another sample's, or another row's."""
    batch = packed()
    bare = (batch.ids == CLS) & (batch.segments >= 0)
    batch = replace(batch, segments=torch.where(bare, -1, batch.segments))
    work = method(CAUSAL).prepare(batch, 0.0)
    check_shift(work)
    first = (batch.index == 0).flatten().nonzero().squeeze(1)
    assert first.numel() == 4
    assert not torch.isin(first, work.targets).any()
    assert work.targets.numel() == 58 - 4
    nothing = method(CAUSAL).prepare(pack([[], []], 12), 0.0)
    assert (nothing.places.numel(), float(nothing.plan.mass())) == (0, 0.0)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_loss_is_that_of_the_stock_causal_model(family: str) -> None:
    """Which shifts by itself: a shift of ours that is off by one would be seen."""
    m = method(CAUSAL, family)
    stock = decoder_twin(copy.deepcopy(m.encoder.model)).eval()
    batch = pack([make_samples([50], 3)], 52)
    outcome = m(m.prepare(batch, 0.0))
    ids = batch.ids[:, :-1]  # our last label is the last token of the text, not [SEP]
    with torch.no_grad():
        wanted = stock(input_ids=ids, labels=ids).loss
    assert outcome.sums["next_token"].item() / 50 == pytest.approx(wanted.item(), abs=1e-5)
    logits = stock(input_ids=ids).logits[0]
    off = F.cross_entropy(logits[:-2], ids[0, 2:])  # the control
    assert abs(off.item() - wanted.item()) > 1e-2


def test_hidden_tokens_are_predicted_one_place_before() -> None:
    m, batch = method(HIDDEN), packed()
    work = m.prepare(batch, 0.0)
    check_shift(work)
    assert torch.equal(work.targets, work.plan.hidden.flatten().nonzero().squeeze(1))
    plain = method(replace(HIDDEN, objective=MlmObjective())).prepare(batch, 0.0)
    assert torch.equal(plain.targets, work.targets)  # the same masks, the same tokens
    assert torch.equal(plain.places, plain.targets)
    assert torch.equal(plain.views[0].ids, work.views[0].ids)
    assert float(m.weights(work)["next_token"]) == pytest.approx(float(plain.plan.mass()))
    # A hidden token that cannot be predicted counts in neither the sum nor its weight.
    bare = replace(batch, segments=torch.where(batch.ids == CLS, -1, batch.segments))
    lost = method(HIDDEN).prepare(bare, 0.0)
    first = torch.isin(lost.targets, (bare.index == 0).flatten().nonzero().squeeze(1))
    assert not first.any()
    assert float(lost.plan.mass()) == pytest.approx(float(plain.plan.mass()) - 0.3 * 2 - 1.0 - 0.3, abs=0.1)


def test_meap_hides_some_and_predicts_all() -> None:
    m, batch = method(MEAP), packed()
    work = m.prepare(batch, 0.0)
    check_shift(work)
    view = work.views[0]
    assert torch.equal(work.targets, batch.maskable.flatten().nonzero().squeeze(1))
    assert 0.2 < work.plan.hidden[batch.maskable].float().mean() < 0.45
    assert torch.equal(view.ids != batch.ids, work.plan.hidden)
    assert not work.plan.hidden[~batch.maskable].any()  # neither [CLS] nor padding
    assert torch.equal(work.labels, batch.ids[batch.maskable])  # of the clean text
    rows = [work.plan.hidden[r, batch.maskable[r]] for r in range(2)]
    assert not torch.equal(rows[0][:20], rows[1][:20])  # each row has its own


@pytest.mark.parametrize(
    ("choices", "measures", "hides"),
    [
        (Choices(), "masked tokens", True),
        (Choices(corruption=Replace(mask=0.0, random=1.0)), "replaced tokens", True),
        (HIDDEN, "masked tokens", True),
        (CAUSAL, "next tokens", False),
        (PREFIX, "tokens after a prefix", False),
        (MEAP, "next tokens", False),
    ],
)
def test_what_is_measured_on_held_out_text(choices: Choices, measures: str, hides: bool) -> None:
    m, batch = method(choices), packed()
    plan = Uniform().plan(batch, 0.15, 9)
    work = m.examine(batch, plan, 9)
    assert m.measures == measures
    changed = work.views[0].ids != batch.ids
    assert changed.any() == hides
    assert not changed[~plan.hidden].any()
    if measures == "masked tokens":
        assert (work.views[0].ids[plan.hidden] == vocabulary().mask).all()
    if measures == "replaced tokens":
        assert not (work.views[0].ids == vocabulary().mask).any()
    other = copy.copy(m)
    other.seed = 6  # the run's own draws have no part in it
    again = other.examine(batch, plan, 9)
    assert torch.equal(again.views[0].ids, work.views[0].ids)
    assert torch.equal(again.targets, work.targets)


def test_slm_predicts_where_tokens_were_replaced_and_nowhere_else() -> None:
    m, batch = method(Choices(Uniform(rate=0.15), Replace(mask=0.0, random=1.0))), packed()
    work = m.prepare(batch, 0.0)
    seen, clean = work.views[0].ids.flatten(), batch.ids.flatten()
    assert torch.isin((seen != clean).nonzero().squeeze(1), work.places).all()
    changed = seen[work.places] != clean[work.places]  # a random token may be the same one
    assert changed.float().mean() > 0.8
    assert not (seen == vocabulary().mask).any()
    assert torch.equal(work.labels, clean[work.places])


# -- prefixes ---------------------------------------------------------------------------------------------


def opened(batch: Batch, seed: int = 5) -> Tensor:
    view = method(PREFIX).prepare(batch, 0.0).views[0]
    view = PrefixVisible().see(view, batch, seed)
    assert view.causal and view.open is not None
    return view.open


def test_a_prefix_is_the_beginning_of_a_sample_and_the_rest_is_predicted() -> None:
    batch = packed()
    work = method(PREFIX).prepare(batch, 0.0)
    check_shift(work)
    open = work.views[0].open
    assert open is not None
    assert not open[batch.segments < 0].any()
    for number in range(batch.samples):
        inside = batch.segments == number
        flags = open[inside].tolist()
        assert flags == sorted(flags, reverse=True)
        assert flags[0]  # [CLS]
        assert not any(flags[-2:])  # at least one token of text, and [SEP], are behind it
    assert torch.equal(work.targets, (batch.maskable & ~open).flatten().nonzero().squeeze(1))
    assert float(work.plan.mass()) == work.targets.numel()


def test_the_length_is_uniform_and_a_function_of_sample_and_visit() -> None:
    (sample,) = make_samples([12], 4)
    visits = [replace(sample, visit=v) for v in range(3000)]
    batch = pack([[v] for v in visits], 14)
    length = opened(batch).sum(1) - 1
    counts = torch.bincount(length, minlength=12)
    assert counts.numel() == 12
    assert ((counts - 250).abs() < 5 * 250**0.5).all()
    # However it is packed; and another seed draws another one.
    two = opened(pack([[visits[7], visits[8]]], 40)).flatten()
    assert int(two[:14].sum()) - 1 == length[7]
    assert int(two[14:].sum()) - 1 == length[8]
    assert not torch.equal(opened(batch, seed=6).sum(1) - 1, length)


def test_a_batch_without_samples_has_no_prefix() -> None:
    assert not opened(pack([[], []], 12)).any()
