"""Swapped and inserted tokens: what changes, what does not, and that labels can be read off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import MASK, by_sample, make_samples, pack, tile

from cloze.corruption.rearrange import insert, swap
from cloze.data.batch import Batch


def batch(seed: int = 0) -> Batch:
    return pack(
        [make_samples([20, 9], seed + 1), make_samples([30], seed + 2), make_samples([1, 2, 3], seed + 3)], 34
    )


def test_a_swap_only_moves_tokens_within_samples() -> None:
    one = replace(batch(), maskable=batch().maskable & (batch().index != 4))
    view = swap(one, 0.5, seed=1)
    assert torch.equal(view.segments, one.segments)
    assert torch.equal(view.ids[~one.maskable], one.ids[~one.maskable])
    for number in range(one.samples):
        mine = one.segments == number
        assert sorted(view.ids[mine].tolist()) == sorted(one.ids[mine].tolist())
    assert (view.ids != one.ids).any()
    whole = swap(one, 1.0, seed=1)  # everything moves: but for a sample of one token, and equal neighbours
    moved = (whole.ids != one.ids)[one.maskable]
    assert moved.double().mean() > 0.9


def test_a_swap_moves_every_chosen_token_and_labels_equal_ones_original() -> None:
    """Distinct tokens: all chosen ones differ. Equal tokens: none does."""
    place = torch.arange(34).expand(3, 34)
    distinct = replace(batch(), ids=torch.where(batch().index >= 0, place + 40, batch().ids))
    many = tile(distinct, 300)
    share = (swap(many, 0.2, seed=3).ids != many.ids)[many.maskable].double()
    # Of samples with one chosen token that one stays: of 30 tokens hardly ever.
    long = (many.segments % distinct.samples == 2)[many.maskable]
    assert float(share[long].mean()) == pytest.approx(0.2, abs=0.01)
    same = replace(batch(), ids=torch.where(batch().index >= 0, 50, batch().ids))
    assert torch.equal(swap(same, 0.5, seed=3).ids, same.ids)


def test_an_insertion_only_adds() -> None:
    one = batch()
    view = insert(one, 0.3, MASK, 512, seed=2)
    added = (view.origin < 0) & (view.segments >= 0)
    assert added.any() and (view.ids[added] == MASK).all()
    kept = view.origin >= 0
    assert torch.equal(view.ids[kept], one.ids.flatten()[view.origin[kept]])
    assert torch.equal(view.segments[kept], one.segments.flatten()[view.origin[kept]])
    for row in range(3):  # every token once, in its order
        mine = view.origin[row][view.origin[row] >= 0]
        assert torch.equal(mine, (row * 34 + torch.arange(34))[one.segments[row] >= 0])
    for number in range(one.samples):  # positions count on, a sample is one piece
        mine = view.positions[view.segments == number]
        assert torch.equal(mine, torch.arange(mine.numel()))
    assert view.ids.shape[1] % 8 == 0
    before = view.origin.roll(1, 1)[added]  # what stands before an inserted token is text
    assert (one.index.flatten()[before[before >= 0]] >= 0).all() and (before >= 0).all()


def test_shares_are_met() -> None:
    many = tile(batch(), 300)
    view = insert(many, 0.15, MASK, 512, seed=0)
    added = int(((view.origin < 0) & (view.segments >= 0)).sum())
    assert added / int(many.maskable.sum()) == pytest.approx(0.15, abs=0.006)


def test_a_sample_that_becomes_too_long_loses_its_end() -> None:
    one = batch()
    view = insert(one, 0.9, MASK, 32, seed=0)
    sizes = torch.bincount(view.segments[view.segments >= 0])
    assert int(sizes.max()) == 32 and int(view.positions.max()) == 31
    assert (view.origin[view.segments < 0] == -1).all()
    assert int(view.runs or 0) >= int((view.segments[:, 1:] != view.segments[:, :-1]).sum()) + 3


@pytest.mark.parametrize("way", ["swap", "insert"])
def test_draws_are_functions_of_sample_and_visit(way: str) -> None:
    def made(one: Batch, seed: int = 0) -> dict[int, list[int]]:
        if way == "swap":
            return by_sample(one, swap(one, 0.4, seed).ids)
        view = insert(one, 0.4, MASK, 512, seed)
        names = one.keys.tolist()
        return {names[n]: view.ids[view.segments == n].tolist() for n in range(one.samples)}

    a, b, c = make_samples([20, 9, 30], 4)
    together, apart = made(pack([[a, b], [c]], 34)), made(pack([[c], [b], [a]], 40))
    assert together == apart
    assert made(pack([[a]], 34), seed=1) != made(pack([[a]], 34))
    assert made(pack([[replace(a, visit=1)]], 34)) != made(pack([[a]], 34))
