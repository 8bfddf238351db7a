"""Fully-explored masking: every token once a sweep, and each visit alone is uniform masking."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from helpers import make_samples, pack, tile
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking.fully_explored import FullyExplored
from cloze.masking.uniform import Uniform
from cloze.masking.units import UnitKind, cut, fewest_units, words

KINDS = get_args(UnitKind)
VISITS = 21_000


def one(size: int, visits: int) -> Batch:
    return tile(pack([make_samples([size])], length=size + 2), visits)


def times_predicted(policy: FullyExplored, batch: Batch, visits: range, rate: float) -> Tensor:
    plans = (policy.plan(replace(batch, visits=torch.full_like(batch.keys, v)), rate, 5) for v in visits)
    return torch.stack([plan.predicted.long() for plan in plans]).sum(0)


@pytest.mark.parametrize("units", KINDS)
@pytest.mark.parametrize("rate", [0.15, 0.3, 0.5, 1.0])
def test_every_token_is_predicted_once_a_sweep(units: UnitKind, rate: float) -> None:
    batch = pack([make_samples([90]), make_samples([23, 31], seed=1), make_samples([64], seed=2)], length=92)
    policy = FullyExplored(units=units)
    turns = fewest_units(batch, units).clamp(max=round(1 / rate)).unique()
    for sweep in (0, 1, 7):
        for n in turns.tolist():
            mine = torch.isin(
                batch.segments, (fewest_units(batch, units).clamp(max=round(1 / rate)) == n).nonzero()
            )
            times = times_predicted(policy, batch, range(sweep * n, (sweep + 1) * n), rate)
            assert (times[mine & batch.maskable] == 1).all()
            assert (times[~batch.maskable] == 0).all()
    # The control: independent visits miss some tokens and repeat others.
    repeated = times_predicted(Uniform(), batch, range(3), 0.3)  # type: ignore[arg-type]
    assert (repeated[batch.maskable] != 1).any()


def test_segments_differ_by_one_unit_at_most() -> None:
    policy = FullyExplored()
    for size in (6, 7, 8, 20, 41):
        batch = one(size, 7)
        counts = policy.plan(batch, 0.15, 0).predicted.sum(1)[: min(7, size)]
        assert int(counts.sum()) == size
        assert int(counts.max() - counts.min()) <= 1


def test_short_samples_have_a_short_sweep() -> None:
    batch = pack([make_samples([3, 1, 2])], length=12)
    assert (
        times_predicted(FullyExplored(), batch, range(6), 0.15)[batch.maskable]
        == torch.tensor([2, 2, 2, 6, 3, 3])
    ).all()


@pytest.mark.parametrize("units", KINDS)
def test_units_are_hidden_as_a_whole(units: UnitKind) -> None:
    batch = one(60, 1)
    whole = cut(batch, units, 5)
    plan = FullyExplored(units=units).plan(batch, 0.3, 5)
    for unit in range(whole.sample.numel()):
        assert plan.hidden[whole.of == unit].unique().numel() == 1
    assert units == "tokens" or whole.sample.numel() < 60
    assert units != "words" or whole.sample.numel() == words(batch).sample.numel()


def off(found: Tensor, wanted: Tensor | float, draws: int) -> float:
    """Largest difference of frequencies from probabilities, in standard deviations."""
    p = torch.as_tensor(wanted, dtype=torch.float64)
    return float(((found - p).abs() / (p * (1 - p) / draws).sqrt()).max())


def test_a_visit_alone_is_a_simple_random_sample() -> None:
    """π and the joint probability of pairs are uniform masking's, at every turn of the sweep."""
    size, turns = 20, 7
    plan = FullyExplored().plan(one(size, VISITS), 0.15, 3)
    hidden = plan.hidden[:, 1:-1].double()
    pi = plan.inclusion[:, 1:-1].double()
    for turn in range(turns):
        mine = hidden[turn::turns]
        count = int(mine[0].sum())
        assert (mine.sum(1) == count).all()
        assert torch.allclose(pi[turn::turns], torch.tensor(count / size, dtype=torch.float64))
        assert off(mine.mean(0), count / size, len(mine)) < 5.5
        assert off(mine.mean(0), 0.8 * count / size, len(mine)) > 5.5  # the control
        both = (mine.T @ mine / len(mine))[~torch.eye(size, dtype=torch.bool)]
        joint = count * (count - 1) / (size * (size - 1))
        assert off(both, joint, len(mine)) < 5.5
    contiguous = (torch.arange(size) + torch.arange(VISITS)[:, None]) % size < 3  # the right π, other pairs
    pairs = contiguous.double().T @ contiguous.double() / VISITS
    assert off(pairs[~torch.eye(size, dtype=torch.bool)], 3 * 2 / (size * (size - 1)), VISITS) > 5.5


def test_sweeps_are_independent_partitions() -> None:
    hidden = FullyExplored().plan(one(21, VISITS), 0.15, 3).hidden[:, 1:-1].double()
    across = float((hidden[:-7] * hidden[7:]).mean())  # the same turn of the next sweep
    within = float((hidden[0::7] * hidden[1::7]).mean())
    assert abs(across - 1 / 49) < 0.001
    assert within == 0.0


def test_masks_do_not_depend_on_the_company() -> None:
    samples = [replace(s, visit=9) for s in make_samples([30, 12, 25])]
    batch = pack([samples[:2], samples[2:]], length=48)
    for units in KINDS:
        whole = FullyExplored(units=units).plan(batch, 0.3, 2)
        alone = FullyExplored(units=units).plan(pack([samples[2:]], 48), 0.3, 2)
        assert torch.equal(whole.hidden[1:], alone.hidden)
        assert torch.equal(whole.inclusion[1:], alone.inclusion)


def test_nothing_to_mask() -> None:
    for units in KINDS:
        plan = FullyExplored(units=units).plan(pack([make_samples([0, 0])], 8), 0.3, 0)
        assert not plan.hidden.any()
        assert float(plan.mass()) == 0.0


@pytest.mark.parametrize("units", KINDS)
@pytest.mark.parametrize("rate", [1 / 6, 0.5])
def test_copies_in_one_step_are_disjoint_and_complete_the_sweep(units: UnitKind, rate: float) -> None:
    policy = FullyExplored(units=units, same_step=2)
    batch = pack([make_samples([120]), make_samples([118], seed=1)], length=122)
    times = torch.zeros(batch.ids.shape, dtype=torch.long)
    for visit in range(round(1 / rate) // policy.copies):
        twice = replace(batch, visits=torch.full_like(batch.keys, visit)).repeat(policy.copies)
        one, two = policy.plan(twice, rate, 5).hidden.chunk(2)
        assert not (one & two).any()
        assert one.any(1).all()
        assert two.any(1).all()
        times += one.long() + two.long()
    assert (times[batch.maskable] == 1).all()
    independent = Uniform().plan(twice, rate, 5).hidden.chunk(2)
    assert (independent[0] & independent[1]).any()  # the control


def test_copies_that_do_not_divide_the_sweep_are_disjoint_but_where_it_ends() -> None:
    """Seven segments, two a step: the fourth step has the last of one partition and the first of the next."""
    batch = pack([make_samples([120], seed) for seed in range(4)], length=122)
    overlap = []
    for visit in range(7):
        twice = replace(batch, visits=torch.full_like(batch.keys, visit)).repeat(2)
        one, two = FullyExplored(same_step=2).plan(twice, 0.15, 5).hidden.chunk(2)
        overlap.append(bool((one & two).any()))
    assert overlap == [False, False, False, True, False, False, False]
