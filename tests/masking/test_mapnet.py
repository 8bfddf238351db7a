"""MAPNet: starts as uniform masking, learns what is planted, is let in by what it saves, and falls back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers import networks, rows_of
from masking import planted
from masking.planted import WORDS, alike, by_words, saving, seen, text
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking import trust
from cloze.masking.base import Seen
from cloze.masking.mapnet import MapNet, MapNetPolicy
from cloze.masking.proposal import observed
from cloze.masking.uniform import Uniform

STEPS = 300


def build(**settings: object) -> MapNetPolicy:
    policy = MapNet.model_validate(settings).build(networks(WORDS))
    assert isinstance(policy, MapNetPolicy)
    return policy


def learn(
    policy: MapNetPolicy, mean_square: Callable[[Batch], Tensor], steps: int, first: int = 0
) -> MapNetPolicy:
    noise = torch.Generator().manual_seed(first + 3)
    for step in range(first, first + steps):
        batch = text(12, step % 40, visit=step)
        policy.observe([seen(policy, batch, mean_square(batch), noise)])
    return policy


def fresh() -> Batch:
    return text(60, 77)


@pytest.fixture(scope="module")
def taught() -> MapNetPolicy:
    """A policy with its default settings after 300 steps; to be copied, never changed."""
    return learn(build(), by_words, STEPS)


# -- learning ---------------------------------------------------------------------------------------------


def test_it_learns_what_is_planted(taught: MapNetPolicy) -> None:
    """On text that it has not seen, most of what knowing the norms exactly would save."""
    batch = fresh()
    oracle = saving(by_words(batch).sqrt(), by_words(batch), batch)
    found = saving(taught.scores(batch), by_words(batch), batch)
    assert oracle > 0.3
    assert found > 0.6 * oracle
    assert found > saving((0.5 * planted.OWN[batch.ids]).exp(), by_words(batch), batch)  # it sees neighbours
    assert saving(1 / taught.scores(batch), by_words(batch), batch) < -0.3  # the inverse raises the variance
    assert saving(build().scores(batch), by_words(batch), batch) == pytest.approx(0.0, abs=1e-9)
    assert taught.trust.savings().max() == pytest.approx(found, abs=0.1)  # and it knows what it saves


def test_it_regresses_the_mean_square() -> None:
    """Two kinds of tokens of the same geometric mean: one has heavy noise, so a mean square exp(2) higher."""
    noise, policy = torch.Generator().manual_seed(0), build()

    def noisy(batch: Batch) -> Tensor:
        return batch.ids % 2 == 1

    squares, kinds = [], []
    for step in range(STEPS):
        batch = text(12, step % 40, visit=step)
        at = seen(policy, batch, alike(batch), noise, spread=0.0)
        kind = noisy(batch).flatten()[at.places]
        z = 2.0 * torch.randn(kind.shape, generator=noise, dtype=torch.float64)
        square = torch.where(kind, z.exp(), 1.0)
        squares.append(square)
        kinds.append(kind)
        policy.observe([replace(at, scores={"hidden_gradient": square.sqrt().float()})])
    batch = fresh()
    found = 2 * policy.scores(batch).log()
    apart = float(found[noisy(batch) & batch.maskable].mean() - found[~noisy(batch) & batch.maskable].mean())
    assert 1.2 < apart < 2.4  # 2 is the logarithm of the ratio of the mean squares
    # The control: the geometric mean of the same observations is the same for both kinds.
    logs = torch.cat(squares).log()
    assert abs(float(logs[torch.cat(kinds)].mean())) < 0.3


def test_predictions_do_not_cross_samples(taught: MapNetPolicy) -> None:
    batch = text(3, 5)
    other = replace(batch, ids=torch.where(batch.segments % 2 == 0, batch.ids, (batch.ids + 7) % WORDS))
    first = (batch.segments % 2 == 0) & (batch.segments >= 0)
    one, two = taught.scores(batch), taught.scores(other)
    assert torch.equal(one[first], two[first])
    assert not torch.allclose(one[batch.segments % 2 == 1], two[batch.segments % 2 == 1])
    # The control: in one sample, the same change is felt by the neighbours.
    joined = [replace(b, segments=torch.where(b.segments >= 0, b.segments // 2, -1)) for b in (batch, other)]
    one, two = (taught.scores(b) for b in joined)
    assert not torch.equal(one[first], two[first])


def test_predictions_do_not_depend_on_the_rows_beside() -> None:
    policy = learn(build(), by_words, 5)
    batch = text(6, 5)
    part = rows_of(batch, [0])
    assert torch.allclose(policy.scores(part), policy.scores(batch)[:1], rtol=1e-6)


def test_the_same_steps_give_the_same_network(taught: MapNetPolicy) -> None:
    again = learn(build(), by_words, 20)
    other = learn(build(), by_words, 20)
    assert all(torch.equal(a, b) for a, b in zip(again.buffers(), other.buffers(), strict=True))
    assert not torch.equal(again.proposal.theta, taught.proposal.theta)


def test_all_of_its_state_is_buffers(taught: MapNetPolicy) -> None:
    assert list(taught.parameters()) == []
    copied = build()
    copied.load_state_dict(taught.state_dict())
    batch = fresh()
    assert torch.equal(copied.plan(batch, 0.3, 0).hidden, taught.plan(batch, 0.3, 0).hidden)
    one, two = (learn(p, by_words, 3, STEPS) for p in (copied, copy.deepcopy(taught)))
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), two.buffers(), strict=True))


@pytest.mark.parametrize("score", ["residual", "loss", "product"])
def test_other_scores_learn_what_they_are_given(score: str) -> None:
    policy, batch = build(score=score), text(12, 1)
    at = seen(policy, batch, by_words(batch), torch.Generator().manual_seed(0))
    given = {"hidden_gradient": 2.0, "residual": 3.0, "loss": 5.0}
    factors = {"product": 6.0, "residual": 3.0, "loss": 5.0}
    norm = at.scores["hidden_gradient"]
    ones = {name: torch.full_like(norm, factor) for name, factor in given.items()}
    assert observed(replace(at, scores=ones), score).unique().tolist() == [factors[score]]  # type: ignore[arg-type]


# -- trust ------------------------------------------------------------------------------------------------


def test_it_starts_as_uniform_masking_bit_for_bit() -> None:
    policy = build()
    for step in range(trust.WARM):
        batch = text(4, step, visit=step)
        mine, theirs = policy.plan(batch, 0.3, 9), Uniform().plan(batch, 0.3, 9)
        for name in ("hidden", "predicted", "inclusion", "reference"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name))
        noise = torch.Generator().manual_seed(step)
        policy.observe([seen(policy, batch, by_words(batch), noise)])
    assert policy.power() > 0.0
    assert not torch.equal(policy.plan(batch, 0.3, 9).hidden, theirs.hidden)


def test_the_network_keeps_to_uniform_masking_where_there_is_nothing_to_save(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    powers, lax = [], []
    policy, noise = build(), torch.Generator().manual_seed(0)
    for step in range(STEPS):
        batch = text(12, step % 40, visit=step)
        policy.observe([seen(policy, batch, alike(batch), noise)])
        powers.append(policy.power())
        with monkeypatch.context() as patch:  # the control: without patience and margin it would be let in
            patch.setattr(trust, "WARM", 1)
            patch.setattr(trust, "MARGIN", 0.0)
            lax.append(policy.power())
    assert max(powers) == 0.0
    assert max(lax) > 0.0


def test_it_falls_back_when_the_saving_is_gone(taught: MapNetPolicy) -> None:
    policy = copy.deepcopy(taught)
    assert policy.power() == 1.0
    policy.proposal.learning_rate = 0.0  # it goes on believing what it learnt
    learn(policy, alike, 150, STEPS)
    assert policy.power() == 0.0
    batch = fresh()
    assert torch.equal(policy.plan(batch, 0.3, 1).hidden, Uniform().plan(batch, 0.3, 1).hidden)
    learn(policy, by_words, 150, STEPS)
    assert policy.power() == 1.0  # and is let in again


def test_a_network_that_is_wrong_the_other_way_is_never_let_in() -> None:
    policy = build()
    learn(policy, lambda b: 1 / by_words(b), 50)
    policy.proposal.learning_rate = 0.0
    policy.trust.moments.zero_()
    learn(policy, by_words, STEPS, 50)
    assert policy.power() == 0.0
    savings = policy.trust.savings()
    assert (savings.diff() < 0).all()  # the more it is believed, the worse


def test_a_fixed_power_does_not_wait() -> None:
    policy = build(power=1.0)
    batch = text(12, 0)
    policy.observe([seen(policy, batch, by_words(batch), torch.Generator().manual_seed(0))])
    assert policy.power() == 1.0
    assert policy.plan(batch, 0.3, 0).inclusion[batch.maskable].unique().numel() > 10
    assert (build(power=0.0).plan(batch, 0.3, 0).hidden == Uniform().plan(batch, 0.3, 0).hidden).all()


def test_the_effective_sample_is_that_of_the_weights(taught: MapNetPolicy) -> None:
    policy, batch = copy.deepcopy(taught), text(12, 3, visit=900)
    at = seen(policy, batch, by_words(batch), torch.Generator().manual_seed(0))
    policy.observe([at])
    w = at.weights.double()
    assert policy.log()["effective_sample"] == pytest.approx(float(w.sum() ** 2 / (len(w) * (w**2).sum())))
    assert policy.log()["effective_sample"] < 0.95
    assert policy.log()["proposal_power"] == 1.0
    assert build().log() == {"proposal_power": 0.0, "proposal_saving": 0.0, "effective_sample": 1.0}


# -- what must not harm it --------------------------------------------------------------------------------


def nothing(at: Seen) -> Seen:
    none = torch.zeros(0)
    return replace(at, places=none.long(), weights=none, scores={"hidden_gradient": none})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_feedback_that_is_not_finite_leaves_it_unharmed(value: float, taught: MapNetPolicy) -> None:
    policy, batch = copy.deepcopy(taught), text(12, 3)
    at = seen(policy, batch, by_words(batch), torch.Generator().manual_seed(0))
    before = policy.scores(batch)
    policy.observe([nothing(at)])
    assert torch.equal(policy.scores(batch), before)
    bad = at.scores["hidden_gradient"].clone()
    bad[: 1 if value else None] = value
    policy.observe([replace(at, scores={"hidden_gradient": bad})])
    assert torch.equal(policy.scores(batch), before)
    assert policy.power() == 1.0
    assert all(torch.isfinite(b).all() for b in policy.buffers())
    learn(policy, by_words, 30, STEPS)
    batch = fresh()
    oracle = saving(by_words(batch).sqrt(), by_words(batch), batch)
    assert saving(policy.scores(batch), by_words(batch), batch) > 0.6 * oracle
    assert policy.power() == 1.0


def test_spare_slots_change_nothing() -> None:
    batch, policies = text(12, 3), (build(), build())
    at = seen(policies[0], batch, by_words(batch), torch.Generator().manual_seed(0))
    places, weights = (torch.cat([x, x.new_zeros(9)]) for x in (at.places, at.weights))
    norms = torch.cat([at.scores["hidden_gradient"], torch.full((9,), 5.0)])
    spare = replace(at, places=places, weights=weights, scores={"hidden_gradient": norms})
    for _ in range(3):
        policies[0].observe([at])
        policies[1].observe([spare])
    for a, b in zip(policies[0].buffers(), policies[1].buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
