"""Masks of the measurement are uniform alone, and as pairs share what they were made to share."""

from math import comb

import pytest
import torch
from helpers import chi_square
from torch import Tensor

from cloze.variance import enumerate_masks, family, mask_size
from cloze.variance.masks import offsets

DRAWS = 2000


def drawn(n: int, k: int, count: int, number: int = 0) -> Tensor:
    """[DRAWS, count, n] bool: families of sequences whose windows begin at the same places."""
    families = [family(n, k, count, seed=5, sequence=3 * i, number=number) for i in range(DRAWS)]
    return torch.stack(families)


def overlaps(masks: Tensor) -> Tensor:
    """[..., count, count] shared places."""
    return masks.int() @ masks.int().transpose(-1, -2)


@pytest.mark.parametrize(
    ("n", "rate", "k"), [(127, 0.15, 19), (7, 0.2, 1), (3, 0.1, 1), (1, 0.15, 1), (1, 0.9, 1), (10, 1.0, 10)]
)
def test_size_of_a_mask(n: int, rate: float, k: int) -> None:
    assert mask_size(n, rate) == k


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
@pytest.mark.parametrize(
    ("n", "k"), [(127, 19), (20, 6), (10, 5), (10, 7), (7, 2), (5, 1), (2, 1), (1, 1), (4, 4)]
)
def test_every_mask_has_its_size_and_windows_their_distance(n: int, k: int, count: int) -> None:
    for number in (0, 1):
        for sequence in range(3):
            masks = family(n, k, count, seed=0, sequence=sequence, number=number)
            assert masks.shape == (count, n) and masks.dtype == torch.bool
            assert (masks.sum(1) == k).all()
            starts = torch.tensor(offsets(n, k, count, 2 * sequence + number))
            apart = (starts[:, None] - starts).abs()
            apart = torch.minimum(apart, n - apart)
            wanted = torch.maximum((k - apart).clamp(min=0), torch.tensor(2 * k - n))
            if 2 * k <= n:
                assert (overlaps(masks) == wanted).all()


def test_near_and_far_pairs_occur() -> None:
    """With the default of 8 masks at 15%: 3 of 4 masks are disjoint, one lies across two of them."""
    shares = set()
    for sequence in range(6):
        for number in (0, 1):
            shared = overlaps(family(127, 19, 4, seed=1, sequence=sequence, number=number))
            assert (shared[:3, :3] == 19 * torch.eye(3, dtype=torch.int32)).all()
            assert shared[3, 2] == 0 and shared[3, 0] + shared[3, 1] == 19
            shares.add(int(shared[3, 0]))
    assert shares == {9, 14, 5}
    two = [overlaps(family(127, 19, 2, seed=1, sequence=s, number=f))[0, 1] for s in range(3) for f in (0, 1)]
    assert sorted(map(int, two)) == [0, 0, 0, 5, 9, 14]


def test_each_mask_alone_is_a_simple_random_sample() -> None:
    for number in (0, 1):
        masks = drawn(6, 2, 4, number)
        every = enumerate_masks(6, 2)
        for j in range(4):
            counts = (masks[:, j, None] == every).all(2).sum(0)
            assert int(counts.sum()) == DRAWS
            assert abs(chi_square(counts)) < 6
            assert abs(chi_square(masks[:, j].sum(0))) < 6


def test_pairs_are_uniform_given_what_they_share() -> None:
    """Every ordered pair of disjoint masks as often as any other, and every pair that shares one place."""
    masks, every = drawn(6, 2, 4), enumerate_masks(6, 2)
    shared = overlaps(masks[0])
    names = (masks[:, :, None] == every).all(3).int().argmax(2)
    found = {int(shared[a, b]): names[:, a] * len(every) + names[:, b] for a in range(4) for b in range(a)}
    assert set(found) == {0, 1}
    for same, pairs in found.items():
        possible = comb(6, 2) * (comb(4, 2) if same == 0 else 8)
        counts = torch.bincount(pairs, minlength=len(every) ** 2)
        assert int((counts > 0).sum()) == possible
        assert abs(chi_square(counts[counts > 0])) < 6


def test_segments_in_their_own_order_are_found() -> None:
    """The control: blocks of neighbours have the right frequency of each place, and the wrong masks."""
    starts = torch.randint(0, 6, (DRAWS,), generator=torch.Generator().manual_seed(0))
    masks = ((torch.arange(6) - starts[:, None]) % 6) < 2
    assert abs(chi_square(masks.sum(0))) < 6
    assert chi_square((masks[:, None] == enumerate_masks(6, 2)).all(2).sum(0)) > 6


def test_families_are_functions_of_their_arguments_and_differ() -> None:
    first = family(40, 6, 4, seed=0, sequence=2, number=0)
    assert torch.equal(first, family(40, 6, 4, seed=0, sequence=2, number=0))
    for other in ({"seed": 1}, {"sequence": 5}, {"number": 1}):
        changed = family(40, 6, 4, **({"seed": 0, "sequence": 2, "number": 0} | other))
        assert not torch.equal(first[0], changed[0])


def test_all_masks_are_enumerated_once() -> None:
    masks = enumerate_masks(7, 3)
    assert masks.shape == (comb(7, 3), 7) and (masks.sum(1) == 3).all()
    assert len({tuple(m.tolist()) for m in masks}) == comb(7, 3)
