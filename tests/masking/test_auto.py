"""The policy that decides: each branch on made-up evidence, and what it does is what it decided."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import make_samples, networks, pack
from masking.planted import WORDS, by_words, seen, text
from pydantic import ValidationError

from cloze import ClozeError
from cloze.masking.auto import REVISITED, WORTH, Auto, AutoPolicy
from cloze.masking.base import Evidence
from cloze.masking.fully_explored import FullyExplored
from cloze.masking.mapnet import MapNet
from cloze.recipes.load import load_recipe

NOTHING = Evidence(visits=0.5, rate=0.2, body=1000.0, head=200.0)
MEASURED = replace(NOTHING, data=1.0, mask=1.0, break_even_high=0.5, saving_low=0.1)


def build(**settings: object) -> AutoPolicy:
    policy = Auto.model_validate(settings).build(networks(WORDS))
    assert isinstance(policy, AutoPolicy)
    return policy


def in_use(policy: AutoPolicy) -> tuple[float, int, bool]:
    """Rate, copies, whether the masks are segments."""
    return policy.rate, policy.copies, bool(policy.decided[2])


def test_it_starts_with_segments() -> None:
    policy, batch = build(), text(3, 0)
    assert in_use(policy) == (0.2, 1, True)
    assert torch.equal(policy.plan(batch, 0.2, 4).hidden, FullyExplored().plan(batch, 0.2, 4).hidden)


def test_without_measurements_only_the_visits_count() -> None:
    policy = build()
    lines = policy.decide(NOTHING)
    assert in_use(policy) == (0.2, 1, True)
    assert lines == ["disjoint segments: the text is seen 0.5 times, what the proposal saves is not known"]
    lines = policy.decide(replace(NOTHING, visits=14.0))
    assert in_use(policy) == (0.2, 1, True)
    assert lines == ["disjoint segments: the text is seen 14.0 times"]


@pytest.mark.parametrize(("visits", "sweep"), [(REVISITED - 1e-9, False), (REVISITED, True), (1e-3, False)])
def test_segments_for_text_that_is_seen_again(visits: float, sweep: bool) -> None:
    policy = build()
    policy.decide(replace(MEASURED, visits=visits, saving_low=0.2))
    assert in_use(policy)[2] == sweep


@pytest.mark.parametrize(("saving", "worth"), [(WORTH - 1e-9, False), (WORTH, True), (-0.3, False)])
def test_the_proposal_only_where_it_surely_saves(saving: float, worth: bool) -> None:
    policy = build()
    (line, *_) = policy.decide(replace(MEASURED, saving_low=saving))
    assert in_use(policy)[2] == (not worth)
    assert line.startswith("proposal network" if worth else "disjoint segments")
    assert f"saves at least {saving:.1%}" in line


@pytest.mark.parametrize(("high", "copies"), [(-1e-9, 2), (0.0, 1), (0.3, 1), (-5.0, 2), (None, 1)])
def test_two_masks_where_the_upper_bound_is_below_nothing(high: float | None, copies: int) -> None:
    policy = build()
    lines = policy.decide(replace(MEASURED, break_even_high=high))
    assert policy.copies == copies
    assert bool(policy.decided[2]) == (copies == 2)  # they have to be disjoint, also on fresh text
    said = [line for line in lines if "in one step: D + C" in line]
    assert len(said) == (high is not None)
    if copies == 2:
        assert lines[0] == "disjoint segments: two masks of a row in one step have to be disjoint"
        assert said[0].startswith("2 masks of a row in one step: D + C is at most -")
        policy.decide(MEASURED)  # and back
        assert in_use(policy)[1:] == (1, False)


def best(data: float, mask: float) -> float:
    """Rate of the least variance at equal compute, by search."""
    rates = torch.arange(1, 100_000).double() / 100_000
    cost = NOTHING.body + NOTHING.head * rates
    return float(rates[((data + mask * NOTHING.rate / rates) * cost).argmin()])


@pytest.mark.parametrize(("data", "mask"), [(1.0, 1.0), (30.0, 1.0), (12.0, 1.0), (1.0, 0.1), (1.0, 50.0)])
def test_the_rate_is_that_of_the_least_variance_at_equal_compute(data: float, mask: float) -> None:
    policy = build(rate=0.05, highest=0.5)
    lines = policy.decide(replace(MEASURED, data=data, mask=mask))
    assert policy.rate == pytest.approx(min(max(best(data, mask), 0.05), 0.5), abs=2e-5)
    assert f"rate {policy.rate:.2f}: the least variance" in lines[1]


def test_the_rate_stays_within_its_limits() -> None:
    estimates = [(1e9, 1.0, 0.2), (1e-9, 1.0, 0.3), (-2.0, 1.0, 0.3), (1.0, -1e-9, 0.2), (0.0, 0.0, 0.2)]
    for data, mask, wanted in estimates:
        policy = build(rate=0.2, highest=0.3)
        policy.decide(replace(MEASURED, data=data, mask=mask))
        assert policy.rate == wanted
    fixed = build(rate=0.3, highest=0.3)
    assert not any("variance" in line for line in fixed.decide(replace(MEASURED, data=1e-9)))
    assert fixed.rate == 0.3


def test_a_decision_is_made_anew_and_does_not_drift() -> None:
    policy = build()
    first = policy.decide(MEASURED)
    rate = policy.rate
    # The same terms, seen at the rate that it went to: the mask term falls as 1/rate.
    again = replace(MEASURED, rate=rate, mask=1.0 * 0.2 / rate)
    assert policy.decide(again)[0] == first[0]
    assert policy.rate == pytest.approx(rate)


def test_it_draws_as_it_decided() -> None:
    policy = build(epsilon=0.3)
    batch = pack([make_samples([30], size=WORDS), make_samples([14, 12], 1, WORDS)], 32)
    policy.decide(replace(NOTHING, visits=3.0))
    assert torch.equal(policy.plan(batch, 0.2, 1).hidden, FullyExplored().plan(batch, 0.2, 1).hidden)
    policy.decide(replace(MEASURED, break_even_high=-1.0))
    one, two = policy.plan(batch.repeat(policy.copies), 0.2, 1).hidden.chunk(2)
    assert not (one & two).any()
    policy = build(epsilon=0.3)
    policy.decide(replace(NOTHING, saving_low=0.1))
    alone = MapNet(rate=0.2, epsilon=0.3).build(networks(WORDS))
    noise = [torch.Generator().manual_seed(0) for _ in range(2)]
    for step in range(110):
        rows = text(8, step, visit=step)
        for p, n in zip((policy, alone), noise, strict=True):
            p.observe([seen(p, rows, by_words(rows), n)])
    assert policy.log()["proposal_power"] > 0.0
    assert torch.equal(policy.plan(batch, 0.2, 1).hidden, alone.plan(batch, 0.2, 1).hidden)
    assert policy.log() == alone.log() | {"segments": 0.0, "copies": 1.0}


def test_masks_are_not_drawn_again_where_two_copies_become_one() -> None:
    policy = build(rate=0.25, highest=0.25)
    first = pack([make_samples([60], size=WORDS)], 64)
    rows = [replace(first, visits=first.visits + v) for v in range(4)]
    policy.decide(replace(MEASURED, visits=3.0, break_even_high=-1.0))
    before = [m for row in rows[:2] for m in policy.plan(row.repeat(2), 0.25, 1).hidden]
    policy.decide(replace(MEASURED, visits=3.0, break_even_high=1.0))
    after = [policy.plan(row, 0.25, 1).hidden[0] for row in rows[2:]]
    assert not any(torch.equal(a, b) for a in after for b in before)
    fresh = FullyExplored(rate=0.25)  # with the same numbers it would be so
    assert any(torch.equal(fresh.plan(rows[2], 0.25, 1).hidden[0], b) for b in before)


def test_the_rate_is_that_of_whole_segments() -> None:
    policy = build(rate=0.2, highest=0.4)
    assert policy.real(0.4) == 0.5
    (line,) = (x for x in policy.decide(replace(MEASURED, mask=9.0, visits=3.0)) if x.startswith("rate"))
    assert line.startswith("rate 0.50")


def test_its_decisions_are_state() -> None:
    one, two = build(), build()
    one.decide(replace(MEASURED, visits=4.0, mask=9.0, break_even_high=-1.0))
    assert in_use(one) == (1 / 3, 2, True)
    two.load_state_dict(one.state_dict())
    assert in_use(two) == in_use(one)
    assert one.log()["segments"] == 1.0


def test_what_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"highest \(0\.2\) is below rate \(0\.3\)"):
        Auto(rate=0.3, highest=0.2)
    with pytest.raises(ClozeError, match=r"auto decides by measured terms: leave evaluation\.var") as e:
        load_recipe("mlm", ["masking={kind: auto}", "evaluation.variance=false"])
    assert "\n" not in str(e.value)
    assert load_recipe("mlm", ["evaluation.variance=false"]).masking.kind == "uniform"
    assert load_recipe("mlm", ["masking={kind: auto}"]).masking.unbiased


def test_the_more_the_masks_matter_the_higher_the_rate() -> None:
    policy, rates = build(rate=0.05, highest=0.5), []
    for mask in (0.1, 0.5, 1.0, 3.0):
        policy.decide(replace(MEASURED, data=20.0, mask=mask))
        rates.append(policy.rate)
    assert all(a < b for a, b in pairwise(rates))
