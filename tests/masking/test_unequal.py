"""Unequal probabilities: π adds up, is bounded, and is what systematic sampling draws at any place."""

from __future__ import annotations

import pytest
import torch
from helpers import make_samples, pack, tile
from hypothesis import given, settings
from hypothesis import strategies as st
from masking.enumeration import intervals, orders
from torch import Tensor

from cloze.masking.draw import uniform_draw
from cloze.masking.unequal import inclusion, predicted_part, proposal_draw, systematic, unit_scores
from cloze.masking.units import cut, tokens, words

SCORES = st.one_of(
    st.just(0.0), st.floats(0.1, 10.0), st.sampled_from([1e-30, 1e-300, 1e-9, 1e9, 1e30]), st.just(1.0)
)
EXTREMES = {
    "all alike": [3.0] * 8,
    "all zero": [0.0] * 8,
    "one dominates": [1e30] + [1.0] * 7,
    "two dominate": [1e30, 1e30] + [1e-30] * 6,
    "over the whole range": [1e-30, 1e-20, 1e-10, 1.0, 1e10, 1e20, 1e30, 0.0],
    "one of many is not zero": [0.0] * 7 + [1e-30],
}


def one(scores: list[float], count: int, floor: float = 0.0) -> Tensor:
    """π of the units of one sample."""
    zero = torch.zeros(len(scores), dtype=torch.long)
    return inclusion(
        torch.tensor(scores).double(), zero, torch.tensor([count]), torch.tensor([floor]).double()
    )


# -- inclusion --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", EXTREMES.values(), ids=EXTREMES)
@pytest.mark.parametrize("count", [1, 3, 7, 8])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_extreme_scores(scores: list[float], count: int, share: float) -> None:
    floor = share * count / 8
    pi = one(scores, count, floor)
    assert float(pi.sum()) == pytest.approx(count, abs=1e-9)
    assert (pi >= floor - 1e-12).all()
    assert (pi <= 1.0 + 1e-12).all()
    order = torch.tensor(scores).argsort(stable=True)
    assert (pi[order].diff() >= -1e-9).all()  # who scores more is drawn as often or more
    if len(set(scores)) == 1 or share == 1.0 or count == 8:
        assert torch.allclose(pi, torch.full_like(pi, count / 8))


@given(
    st.lists(st.lists(SCORES, max_size=9), min_size=1, max_size=5),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_pi_adds_up_to_the_count_of_every_sample(
    samples: list[list[float]], how_many: float, share: float
) -> None:
    sizes = torch.tensor([len(s) for s in samples])
    sample = torch.arange(len(samples)).repeat_interleave(sizes)
    count = (sizes * how_many).ceil().long()
    floor = share * count / sizes.clamp(min=1).double()
    pi = inclusion(torch.tensor([x for s in samples for x in s]).double(), sample, count, floor)
    total = torch.zeros(len(samples), dtype=torch.float64).index_add_(0, sample, pi)
    assert torch.allclose(total, count.double(), atol=1e-9)
    assert (pi >= floor[sample] - 1e-12).all()
    assert (pi <= 1.0 + 1e-12).all()


def test_between_floor_and_one_it_is_proportional_to_the_score() -> None:
    scores = torch.tensor([8.0, 1.0, 2.0, 0.5, 1.5])
    pi = one(scores.tolist(), 2, 0.1)
    free = pi < 1.0
    assert free.tolist() == [False, True, True, True, True]  # 0.5 of 13 is more than 1 for the first
    above = (pi[free] - 0.1) / scores[free]
    assert torch.allclose(above, above[:1].expand(4))
    # The control: cutting at 1 without giving the rest to the others loses draws.
    assert float((0.1 + 1.5 * scores / scores.sum()).clamp(max=1.0).sum()) < 2 - 0.01


# -- systematic sampling ----------------------------------------------------------------------------------


def every_draw(pi: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """[S, n] drawn sets over all orders `rank` and all offsets, and their probabilities."""
    n = pi.numel()
    offsets, probability = intervals(pi.expand(len(rank), n), rank)
    samples = offsets.numel()
    many = rank.repeat_interleave(n + 1, 0)
    drawn = systematic(
        pi.repeat(samples),
        torch.arange(samples).repeat_interleave(n),
        torch.full((samples,), round(float(pi.sum()))),
        offsets.flatten(),
        many.flatten(),
    )
    return drawn.view(samples, n).double(), probability.flatten() / len(rank)


def joint(drawn: Tensor, probability: Tensor) -> Tensor:
    """[n, n] the probability that two units are drawn together."""
    return drawn.T @ (drawn * probability[:, None])


PI = torch.tensor([0.3, 0.3, 0.3, 0.6, 0.6, 0.9], dtype=torch.float64)


def test_systematic_draws_are_exactly_pi_and_exactly_count() -> None:
    drawn, probability = every_draw(PI, orders(6))
    assert (drawn.sum(1)[probability > 1e-12] == 3).all()
    assert torch.allclose(probability @ drawn, PI, atol=1e-9)
    assert not torch.allclose(probability @ drawn, PI * 0.99, atol=1e-9)  # the control


def test_pairs_do_not_know_their_places() -> None:
    """Units of equal π are exchangeable: any two of them are drawn together equally often."""
    together = joint(*every_draw(PI, orders(6)))
    for group in ([0, 1, 2], [3, 4]):
        inside = torch.stack([together[i, j] for i in group for j in group if i != j])
        assert torch.allclose(inside, inside[:1].expand_as(inside), atol=1e-9)
        for other in range(6):
            if other not in group:
                across = together[group, other]
                assert torch.allclose(across, across[:1].expand_as(across), atol=1e-9)
    assert (together > 0).all()
    # The control: in the order of the text, the first two never come together, the first and fourth do.
    fixed = joint(*every_draw(PI, torch.arange(6)[None]))
    assert torch.allclose(fixed.diagonal(), PI, atol=1e-9)
    assert float(fixed[0, 1]) == 0.0 < float(fixed[0, 3])


def test_equal_probabilities_give_simple_random_sampling() -> None:
    drawn, probability = every_draw(torch.full((6,), 0.5, dtype=torch.float64), orders(6))
    names, number = drawn.unique(dim=0, return_inverse=True)
    found = torch.zeros(len(names), dtype=torch.float64).index_add_(0, number, probability)
    wanted = (names.sum(1) == 3).double() / 20
    assert torch.allclose(found, wanted, atol=1e-9)
    assert int((found > 0).sum()) == 20


def test_certain_units_are_always_drawn_and_rounding_loses_none() -> None:
    draw = torch.Generator().manual_seed(0)
    samples, n = 3000, 40
    score = torch.rand(samples * n, generator=draw).double() ** 6 * 1e6
    sample = torch.arange(samples).repeat_interleave(n)
    count = torch.randint(1, n + 1, (samples,), generator=draw)
    pi = inclusion(score, sample, count, 0.1 * count / n)
    offset = torch.rand(samples, generator=draw).double()
    drawn = systematic(pi, sample, count, offset, torch.randint(2**62, (samples * n,), generator=draw))
    assert torch.equal(torch.bincount(sample[drawn], minlength=samples), count)
    assert drawn[pi >= 1.0].all()
    assert (pi >= 1.0).sum() > 1000


# -- plans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("kind", ["tokens", "words", "spans"])
def test_weights_are_at_most_one_over_epsilon(epsilon: float, kind: str) -> None:
    batch = tile(pack([make_samples([1, 2, 30, 7])], 48), 200)
    units = cut(batch, kind, 1)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(1)
    for spread in (0.0, 3.0, 60.0):  # scores over 50 orders of magnitude
        score = (spread * torch.randn(units.sample.numel(), generator=draw)).double().exp().clamp(max=1e30)
        plan = proposal_draw(batch, units, score, 0.3, 2, epsilon)
        weights = (plan.reference / plan.inclusion)[plan.predicted]
        assert float(weights.max()) <= 1 / epsilon + 1e-4
        if spread == 60.0:
            assert float(weights.max()) > 0.9 / epsilon
        same = uniform_draw(batch, units, 0.3, 2)
        drawn = torch.zeros(units.sample.numel(), dtype=torch.bool)
        other = drawn.clone()
        drawn[units.of[plan.hidden]], other[units.of[same.hidden]] = True, True
        found, wanted = (torch.bincount(units.sample[d], minlength=batch.samples) for d in (drawn, other))
        assert torch.equal(found, wanted)  # as many units as uniform masking hides, sample by sample
        assert torch.equal(plan.reference, same.reference)


def test_without_reweighting_the_draw_is_its_own_reference() -> None:
    batch = tile(pack([make_samples([30])], 32), 10)
    score = 1.0 + torch.arange(300).double() % 30
    plan = proposal_draw(batch, tokens(batch), score, 0.3, 2, 0.2, reweight=False)
    assert torch.equal(plan.reference, plan.inclusion)
    weighted = proposal_draw(batch, tokens(batch), score, 0.3, 2, 0.2)
    assert torch.equal(plan.hidden, weighted.hidden)
    assert not torch.equal(plan.reference, weighted.reference)


def test_a_predicted_part_hides_what_uniform_masking_hides() -> None:
    batch = tile(pack([make_samples([30, 1, 12, 0])], 56), 100)
    for kind in ("tokens", "words"):
        units = cut(batch, kind, 0)  # type: ignore[arg-type]
        score = (units.first % 5 + 1).double() ** 3
        whole = uniform_draw(batch, units, 0.4, 9)
        for share in (0.25, 0.5, 0.8):
            plan = predicted_part(batch, units, score, 0.4, 9, 0.2, share)
            assert torch.equal(plan.hidden, whole.hidden)
            assert torch.equal(plan.reference, whole.reference)
            assert not (plan.predicted & ~plan.hidden).any()
            of_hidden = torch.bincount(units.of[plan.predicted]).count_nonzero()
            assert int(of_hidden) < int(torch.bincount(units.of[whole.hidden]).count_nonzero())
            samples = batch.segments[plan.predicted].unique().numel()
            assert samples == batch.segments[whole.hidden].unique().numel()  # none is left without any
            weights = (plan.reference / plan.inclusion)[plan.predicted]
            assert float(weights.max()) <= 1 / (0.2 * share) + 1e-3
    # The control: another seed hides something else.
    assert not torch.equal(predicted_part(batch, units, score, 0.4, 8, 0.2, 0.5).hidden, whole.hidden)


def test_a_predicted_part_of_everything_is_uniform_masking() -> None:
    batch = tile(pack([make_samples([30, 12])], 48), 20)
    units = words(batch)
    plan = predicted_part(batch, units, units.first.double() + 1.0, 0.4, 9, 0.2, 1.0)
    assert torch.equal(plan.predicted, uniform_draw(batch, units, 0.4, 9).predicted)
    assert torch.allclose(plan.weights(plan.predicted.flatten().nonzero().squeeze(1)), torch.ones(1))


def test_the_score_of_a_unit_is_the_norm_of_its_tokens() -> None:
    batch = pack([make_samples([9])], 11)
    units = words(batch)
    score = torch.arange(11.0)[None]
    found = unit_scores(units, score)
    for unit in range(units.sample.numel()):
        assert float(found[unit]) == pytest.approx(float(score[units.of == unit].norm()))
