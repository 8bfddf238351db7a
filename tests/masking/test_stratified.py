"""Stratified masking: disjoint segments that share the score evenly, every token as likely in each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import FIRST, make_samples, networks, pack, tile
from masking.planted import WORDS, by_words, seen, text
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking import stratified
from cloze.masking.fully_explored import FullyExplored
from cloze.masking.stratified import FIRST_FREEZE, Stratified, StratifiedPolicy
from cloze.masking.units import words
from cloze.random import uniform

VISITS = 24_000
RATE, TURNS, N = 0.25, 4, 18


def build(**settings: object) -> StratifiedPolicy:
    config = {"rate": RATE, "order": "score", **settings}
    policy = Stratified.model_validate(config).build(networks(WORDS))
    assert isinstance(policy, StratifiedPolicy)
    return policy


def by_place(policy: StratifiedPolicy) -> StratifiedPolicy:
    """Scores that rise with the token's place in its sample."""
    policy.proposal.forward = lambda theta, batch: 0.4 * batch.index.double()  # type: ignore[method-assign]
    return policy


def visits(count: int = VISITS, size: int = N) -> Batch:
    return tile(pack([make_samples([size], size=WORDS)], size + 2), count)


def off(policy: StratifiedPolicy) -> float:
    """Largest difference of a token's frequency at one turn from π, in standard deviations."""
    plan = policy.plan(visits(), RATE, 1)
    hidden = plan.hidden[:, 1:-1].double()
    assert (plan.inclusion[:, 1:-1] == 1 / TURNS).all()
    by_turn = torch.stack([hidden[turn::TURNS].mean(0) for turn in range(TURNS)])
    return float((by_turn - 1 / TURNS).abs().max() / (RATE * (1 - RATE) * TURNS / VISITS) ** 0.5)


def test_every_token_is_as_likely_at_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = by_place(build())
    assert off(policy) < 5.0
    # The control: a stratum's rotation that shares its random number with a unit that has the same number.
    monkeypatch.setattr(stratified, "uniform", lambda s, stream, *c: uniform(s, stream, *c[:-1], -1 - c[-1]))
    assert off(policy) > 20.0


@pytest.mark.parametrize("order", ["score", "frequency"])
@pytest.mark.parametrize("units", ["tokens", "words", "spans"])
def test_a_sweep_is_a_partition(units: str, order: str) -> None:
    policy = build(units=units, order=order)
    if order == "score":
        by_place(policy)
    batch = pack([make_samples([41], size=WORDS), make_samples([3, 17], 1, WORDS)], 44)
    first = replace(batch, visits=torch.tensor([4, 0, 4]))
    times = torch.zeros(batch.ids.shape, dtype=torch.long)
    for turn in range(TURNS):
        plan = policy.plan(replace(batch, visits=first.visits + turn), RATE, 2)
        times += plan.hidden
    whole = batch.maskable & (batch.segments != 1)  # the second sample has its own, shorter sweep
    if units == "tokens":
        assert (times[whole] == 1).all()
        assert int(times[batch.segments == 1].sum()) == 4
    if units == "words":
        of = words(batch)
        for unit in range(of.sample.numel()):
            assert times[of.of == unit].unique().numel() == 1


def of_segments(policy: StratifiedPolicy | FullyExplored, score: Tensor) -> Tensor:
    """[visits] the scores' sum over the hidden tokens."""
    hidden = policy.plan(visits(2000), RATE, 1).hidden
    return (hidden * score).sum(1)


def test_segments_have_equal_shares_of_the_score() -> None:
    score = (0.2 * torch.arange(-1, N + 1)).exp()  # what `by_place` predicts
    even, uneven = of_segments(by_place(build()), score), of_segments(FullyExplored(), score)
    assert float(even.mean()) == pytest.approx(float(uneven.mean()), rel=0.02)
    assert float(even.var()) < 0.25 * float(uneven.var())
    # Nothing is gained where the order means nothing.
    shuffled = score[torch.randperm(N + 2, generator=torch.Generator().manual_seed(0))]
    shuffled[0] = shuffled[-1] = 0.0
    even, uneven = of_segments(by_place(build()), shuffled), of_segments(FullyExplored(), shuffled)
    assert float(even.var()) > 0.5 * float(uneven.var())


def test_before_it_has_learnt_it_is_a_random_partition() -> None:
    hidden = build().plan(visits(), RATE, 1).hidden[:, 1:-1].double()
    pairs = (hidden.T @ hidden / VISITS)[~torch.eye(N, dtype=torch.bool)]
    joint = pairs.mean()
    assert float((pairs - joint).abs().max() / (joint * (1 - joint) / VISITS) ** 0.5) < 5.0
    known = by_place(build()).plan(visits(), RATE, 1).hidden[:, 1:-1].double()
    assert float((known.T @ known / VISITS)[0, 1]) == 0.0  # the control: one stratum, never together


def test_scores_are_frozen_anew_at_each_doubling() -> None:
    policy, noise = build(), torch.Generator().manual_seed(0)
    changes, last, batch = [], policy.frozen.clone(), text(1, 0)
    for step in range(1, 4 * FIRST_FREEZE + 1):
        policy.observe([seen(policy, batch, by_words(batch), noise)])
        if not torch.equal(policy.frozen, last):
            changes.append(step)
            last = policy.frozen.clone()
            assert torch.equal(policy.frozen, policy.proposal.theta)
        elif step > 1:
            assert not torch.equal(policy.frozen, policy.proposal.theta)
    assert changes == [FIRST_FREEZE, 2 * FIRST_FREEZE, 4 * FIRST_FREEZE]


def test_by_frequency_equal_tokens_are_in_different_segments() -> None:
    """Four of each of four words, in any places: each of the four segments has one of each."""
    policy, sample = build(order="frequency"), make_samples([16], size=WORDS)[0]
    mixed = torch.randperm(16, generator=torch.Generator().manual_seed(1)) % 4
    ids = tuple((FIRST + 3 * mixed).tolist())
    batch = tile(pack([[replace(sample, ids=ids)]], 18), 400)

    def kinds(hidden: Tensor) -> set[int]:
        return {batch.ids[i][hidden[i]].unique().numel() for i in range(400)}

    assert kinds(policy.plan(batch, RATE, 1).hidden) == {4}
    assert kinds(FullyExplored().plan(batch, RATE, 1).hidden) > {2, 3}  # the control
    assert off(policy) < 5.0


def test_by_frequency_each_segment_has_its_share_of_rare_tokens() -> None:
    rank = visits(1).ids[0].double()  # counts fall with the id
    even, uneven = of_segments(build(order="frequency"), rank), of_segments(FullyExplored(), rank)
    assert float(even.var()) < 0.3 * float(uneven.var())


def test_by_frequency_there_is_nothing_to_learn() -> None:
    policy = build(order="frequency")
    assert not policy.learned
    assert policy.scores(visits(1)) is None
    assert policy.state_dict().keys() == {"rank"}
    assert build().learned
    assert "proposal.theta" in build().state_dict()


def test_copies_in_one_step_are_disjoint() -> None:
    policy = by_place(build(same_step=2))
    batch = pack([make_samples([41], size=WORDS), make_samples([12, 17], 1, WORDS)], 44)
    assert policy.copies == 2
    one, two = policy.plan(batch.repeat(2), RATE, 3).hidden.view(2, 2, 44)
    assert not (one & two).any()
    assert one.any(1).all()
    independent = policy.plan(batch, RATE, 4).hidden
    assert (one & independent).any()  # the control
