"""Every policy: exact counts, π equal to the frequency, and masks that depend on the sample alone."""

from dataclasses import replace

import pytest
import torch
from helpers import Sample, by_sample, make_samples, pack, rows_of, tile
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking import POLICIES, Masking
from cloze.masking.draw import rank_within
from cloze.masking.plan import MaskPlan
from cloze.masking.spans import Spans
from cloze.masking.uniform import Uniform
from cloze.masking.units import Units, spans, tokens, words
from cloze.masking.words import Words

RATES = [0.15, 0.3, 0.5, 1.0]
ALL: list[Masking] = [Uniform(), Words(), Spans(), Spans(mean=2.0, longest=3)]
VISITS = 20_000
GOLDEN = {
    "uniform": [2, 7, 14, 15, 16, 20, 23, 26],
    "words": [1, 2, 3, 4, 5, 14, 15, 16, 20, 21, 22, 23],
    "spans": [1, 2, 3, 4, 5, 6, 7, 20, 21, 22, 23, 26],
}


def units_of(policy: Masking, batch: Batch, seed: int) -> Units:
    if isinstance(policy, Spans):
        return spans(batch, seed, policy.mean, policy.longest)
    return words(batch) if isinstance(policy, Words) else tokens(batch)


def mixed() -> Batch:
    samples = make_samples([9, 1, 0, 30, 2, 17, 5])
    samples[3] = replace(samples[3], fixed=frozenset({0, 7, 8, 20, 29}))
    return pack([samples[:3], samples[3:4], [], samples[4:]], length=40)


def test_every_policy_is_listed_and_tested() -> None:
    assert {"uniform": Uniform, "words": Words, "spans": Spans}.items() <= POLICIES.items()
    assert {type(p) for p in ALL} >= {Uniform, Words, Spans}
    for kind, policy in POLICIES.items():
        assert policy.model_fields["kind"].default == kind
        assert policy.summary
        assert policy(rate={"none": 0.0, "rest": 0.5}.get(kind, 0.3)).unbiased == (
            kind not in ("difficulty", "frequency")
        )


@pytest.mark.parametrize("policy", ALL, ids=str)
@pytest.mark.parametrize("rate", RATES)
def test_counts_are_exact_up_to_rounding_and_at_least_one(policy: Masking, rate: float) -> None:
    batch = tile(mixed(), 50)
    plan = policy.plan(batch, rate, seed=1)
    units = units_of(policy, batch, 1)
    total = torch.bincount(units.sample, minlength=batch.samples)
    drawn = torch.zeros(units.sample.numel(), dtype=torch.bool)
    drawn[units.of[plan.hidden]] = True
    hidden = torch.bincount(units.sample[drawn], minlength=batch.samples)
    exact = total * rate
    assert (hidden <= exact.ceil().clamp(min=1)).all()
    assert (hidden >= exact.floor()).all()
    assert (hidden[total > 0] >= 1).all()
    assert (hidden[total == 0] == 0).all()
    # Units are hidden as a whole, and nothing else is.
    assert torch.equal(plan.hidden, (units.of >= 0) & drawn[units.of.clamp(min=0)])
    assert torch.equal(plan.predicted, plan.hidden)


@pytest.mark.parametrize("policy", ALL, ids=str)
def test_specials_and_padding_are_never_touched(policy: Masking) -> None:
    batch = tile(mixed(), 20)
    plan = policy.plan(batch, 1.0, seed=0)
    assert torch.equal(plan.hidden, batch.maskable)
    for rate in RATES:
        plan = policy.plan(batch, rate, seed=0)
        assert not plan.hidden[~batch.maskable].any()
        assert (plan.inclusion[~batch.maskable] == 0).all()
        assert (plan.reference[~batch.maskable] == 0).all()
        assert (plan.inclusion[batch.maskable] > 0).all()


def deviation(plan: MaskPlan, visits: int, pi: Tensor) -> float:
    """Largest difference of a token's frequency from its mean π, in standard deviations."""
    shape = visits, -1, plan.hidden.shape[1]
    often = plan.predicted.view(shape).double().mean(0)
    p = pi.view(shape).double().mean(0)
    error = (p * (1 - p) / visits).sqrt().clamp(min=1e-9)
    return float(((often - p).abs() / error).max())


@pytest.mark.parametrize("policy", ALL, ids=str)
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_pi_is_the_frequency(policy: Masking, rate: float) -> None:
    batch = tile(pack([make_samples([1, 2, 3, 5, 7, 12])], length=42), VISITS)
    plan = policy.plan(batch, rate, seed=3)
    assert deviation(plan, VISITS, plan.inclusion) < 5.5
    assert torch.equal(plan.reference, plan.inclusion)
    # The controls: π a little off, and π that forgets the "at least one" of short samples.
    assert deviation(plan, VISITS, plan.inclusion * 0.95) > 5.5
    forgetful = torch.where(batch.maskable, rate, 0.0)
    assert deviation(plan, VISITS, forgetful) > 5.5


def test_pi_of_uniform_by_hand() -> None:
    plan = Uniform().plan(pack([make_samples([1, 2, 10])], 24), 0.3, seed=0)
    values = by_sample(pack([make_samples([1, 2, 10])], 24), plan.inclusion)
    assert [v[0] for v in values.values()] == pytest.approx([1.0, 0.5, 0.3])
    assert float(plan.mass()) == pytest.approx(1 + 1 + 3)
    assert plan.mass().dtype == torch.float64


def test_the_expected_count_is_the_mass() -> None:
    """The denominator Σp is what the numerator's count is on average, also for odd sizes."""
    batch = tile(pack([make_samples([13, 7])], length=24), VISITS)
    for policy in ALL:
        plan = policy.plan(batch, 0.22, seed=4)
        counts = plan.predicted.view(VISITS, -1).sum(1).double()
        error = float((counts - plan.inclusion.view(VISITS, -1).sum(1)).std() / VISITS**0.5)
        assert abs(float(counts.mean()) - float(plan.mass()) / VISITS) < 5 * error
        assert abs(float(counts.mean()) - 1.02 * float(plan.mass()) / VISITS) > 5 * error


@pytest.mark.parametrize("policy", ALL, ids=str)
def test_masks_do_not_depend_on_packing_company_or_order(policy: Masking) -> None:
    samples = make_samples([30, 12, 25, 3, 1, 18])
    batch = pack([samples[:2], samples[2:4], samples[4:]], length=48)
    whole = policy.plan(batch, 0.3, seed=2)
    hidden, pi = by_sample(batch, whole.hidden), by_sample(batch, whole.inclusion)
    for rows in ([2, 1, 0], [1], [2, 0]):  # another order, and before or after slicing
        part = rows_of(batch, rows)
        plan = policy.plan(part, 0.3, seed=2)
        assert torch.equal(plan.hidden, whole.hidden[rows])
        assert torch.equal(plan.inclusion, whole.inclusion[rows])
    for sample in samples:
        alone = pack([[sample]], length=34)
        plan = policy.plan(alone, 0.3, seed=2)
        assert by_sample(alone, plan.hidden) == {sample.key: hidden[sample.key]}
        assert by_sample(alone, plan.inclusion) == {sample.key: pi[sample.key]}


@pytest.mark.parametrize("policy", ALL, ids=str)
def test_masks_depend_on_seed_visit_and_sample(policy: Masking) -> None:
    (sample,) = make_samples([200])

    def masks(sample: Sample, seed: int) -> list[bool]:
        batch = pack([[sample]], 202)
        return policy.plan(batch, 0.3, seed).hidden[0].tolist()

    base = masks(sample, 0)
    torch.manual_seed(99)
    torch.rand(5)
    assert masks(sample, 0) == base
    assert masks(replace(sample, ids=sample.ids[::-1]), 0) == base  # the ids do not matter to these
    for other in (masks(sample, 1), masks(replace(sample, visit=1), 0), masks(replace(sample, key=4), 0)):
        agree = sum(a == b for a, b in zip(base, other, strict=True)) / 200
        assert agree < 0.8  # 0.58 is expected of independent masks


@pytest.mark.parametrize("policy", ALL, ids=str)
def test_visits_are_independent(policy: Masking) -> None:
    batch = tile(pack([make_samples([40])], length=42), 2000)
    hidden = policy.plan(batch, 0.3, seed=0).hidden.double()[:, 1:-1]
    both = float((hidden[1:] * hidden[:-1]).mean())
    assert abs(both - 0.09) < 0.005
    assert abs(float((hidden * hidden).mean()) - 0.09) > 0.005


def test_a_batch_without_anything_to_mask() -> None:
    for policy in ALL:
        for batch in (pack([[], []], 8), pack([make_samples([0, 0])], 8)):
            plan = policy.plan(batch, 0.3, seed=0)
            assert not plan.hidden.any()
            assert float(plan.mass()) == 0.0
            assert plan.weights(torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_rounding_is_exact_for_whole_counts() -> None:
    """0.3 · 10 is 3 hidden tokens at every visit, whatever 0.3 is in binary."""
    batch = tile(pack([make_samples([10])], length=12), VISITS)
    assert (Uniform().plan(batch, 0.3, 0).hidden.sum(1) == 3).all()
    counts = Uniform().plan(batch, 0.25, 0).hidden.sum(1)
    assert set(counts.tolist()) == {2, 3}


def test_golden_masks_never_change() -> None:
    """Whoever changes these changes the masks of every recorded run."""
    batch = pack([make_samples([16, 8])], length=28)
    found = {p.kind: p.plan(batch, 0.3, seed=42).hidden[0].nonzero().flatten().tolist() for p in ALL[:3]}
    assert found == GOLDEN


def test_rank_within() -> None:
    sample = torch.tensor([0, 0, 0, 2, 2, 5])
    score = torch.tensor([5, -3, 9, 7, 7, -(2**63)])
    assert rank_within(sample, score).tolist() == [1, 0, 2, 0, 1, 0]


def test_weights_are_p_over_pi() -> None:
    plan = MaskPlan(
        hidden=torch.ones(1, 3, dtype=torch.bool),
        predicted=torch.tensor([[True, False, True]]),
        inclusion=torch.tensor([[0.5, 0.0, 0.1]]),
        reference=torch.tensor([[0.25, 0.0, 0.3]]),
    )
    assert plan.weights(torch.tensor([2, 0])).tolist() == pytest.approx([3.0, 0.5])
    assert float(plan.mass()) == pytest.approx(0.55)
