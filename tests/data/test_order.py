"""Orders are permutations, differ by seed and epoch, and sources get exactly their shares."""

import pytest
import torch
from helpers import chi_square
from torch import Tensor

from cloze.data.order import BLOCK, permute, quotas, source_of

SIZES = [
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    15,
    16,
    17,
    63,
    64,
    65,
    255,
    256,
    257,
    1000,
    1023,
    1024,
    1025,
    4095,
    4096,
    4097,
]
GOLDEN = [0, 3, 1, 5, 2, 8, 9, 4, 6, 7]
GOLDEN_LARGE = [129497, 165240, 596953, 525409, 577386]


def order(size: int, seed: int = 0, epoch: int = 0) -> Tensor:
    return permute(torch.arange(size), size, seed, torch.full((size,), epoch))


@pytest.mark.parametrize("size", SIZES)
def test_permute_is_a_bijection(size: int) -> None:
    for seed, epoch in ((0, 0), (1, 0), (0, 1), (2**63 + 5, 10**12)):
        assert torch.equal(order(size, seed, epoch).sort().values, torch.arange(size))


def test_permute_large_indices_without_an_array_of_that_size() -> None:
    size = 10**12 + 39
    index = torch.arange(100_000) * 9_999_991
    there = permute(index, size, 3, torch.zeros_like(index))
    assert there.min() >= 0
    assert there.max() < size
    assert there.unique().numel() == index.numel()
    assert abs(chi_square(torch.bincount((there / size * 64).long(), minlength=64))) < 6


def test_golden_order() -> None:
    """Whoever changes this changes the order of the rows in every recorded run."""
    assert order(10, seed=1, epoch=2).tolist() == GOLDEN
    assert permute(torch.arange(5), 10**6, 1, torch.full((5,), 2)).tolist() == GOLDEN_LARGE


def test_epochs_and_seeds_differ() -> None:
    base = order(1000)
    for other in (order(1000, epoch=1), order(1000, seed=1), order(1000, seed=2**32), torch.arange(1000)):
        assert (base == other).sum() < 10  # one is expected


def test_one_call_may_mix_epochs() -> None:
    index = torch.tensor([5, 5, 90, 0])
    epoch = torch.tensor([0, 3, 1, 2])
    together = permute(index, 91, 7, epoch)
    alone = [int(permute(index[i : i + 1], 91, 7, epoch[i : i + 1])) for i in range(4)]
    assert together.tolist() == alone
    assert permute(index[:0], 91, 7, epoch[:0]).shape == (0,)


def _orders(places: Tensor) -> float:
    """Whether the places of the first two rows, [epochs, rows], are all as likely: see `chi_square`."""
    size = places.shape[1]
    counts = torch.bincount(places[:, 0] * size + places[:, 1], minlength=size * size)
    return chi_square(counts[~torch.eye(size, dtype=torch.bool).flatten()])


@pytest.mark.parametrize("size", [3, 5, 8, 11, 16, 17, 64, 65, 100])
def test_every_place_and_every_order_of_two_rows_is_as_likely(size: int) -> None:
    epochs = 30_000
    epoch = torch.arange(epochs)[:, None].expand(epochs, 2)
    rows = torch.arange(2).expand(epochs, 2)
    places = permute(rows.flatten(), size, 0, epoch.flatten()).view(epochs, 2)
    assert abs(chi_square(torch.bincount(places[:, 0], minlength=size))) < 6
    full = torch.zeros(epochs, size, dtype=torch.long)
    full[:, :2] = places
    assert abs(_orders(full)) < 6
    # The control, a rotation, puts every row everywhere as often, but keeps neighbours together.
    full[:, :2] = (rows + epoch) % size
    assert chi_square(torch.bincount(full[:, 0], minlength=size)) < 6
    assert _orders(full) > 6


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ([1.0], [1000]),
        ([0.7, 0.3], [700, 300]),
        ([0.29, 0.71], [290, 710]),
        ([1, 1, 1], [334, 333, 333]),
        ([1e-9, 1.0], [1, 999]),
        ([5, 3, 2], [500, 300, 200]),
        ([1e-9] * 3 + [1.0], [1, 1, 1, 997]),
    ],
)
def test_quotas(weights: list[float], wanted: list[int]) -> None:
    counts = quotas(weights)
    assert sorted(counts) == sorted(wanted)
    assert sum(counts) == BLOCK
    exact = [w / sum(weights) * BLOCK for w in weights]
    assert all(abs(c - e) < 1 or c == 1 or len(weights) == 4 for c, e in zip(counts, exact, strict=True))


def test_each_block_has_the_exact_shares_and_each_source_goes_on_without_gaps() -> None:
    counts = quotas([0.6, 0.3, 0.1])
    source, place = source_of(torch.arange(4 * BLOCK), counts, seed=5)
    for block in source.view(4, BLOCK):
        assert torch.bincount(block, minlength=3).tolist() == counts
    for i, count in enumerate(counts):
        assert place[source == i].sort().values.tolist() == list(range(4 * count))
        # A block's rows come before the next block's.
        assert (place[source == i].view(4, count) // count == torch.arange(4)[:, None]).all()


def test_sources_are_mixed_within_a_block_and_differently_in_the_next() -> None:
    source, _ = source_of(torch.arange(2 * BLOCK), [500, 500], seed=5)
    first, second = source.view(2, BLOCK)
    changes = int((first[1:] != first[:-1]).sum())
    assert abs(changes - 500) < 100  # 499.5 are expected; rows in blocks of a source would have 1
    assert abs(int((first == second).sum()) - 500) < 100
    other, _ = source_of(torch.arange(BLOCK), [500, 500], seed=6)
    assert abs(int((first == other).sum()) - 500) < 100


def test_source_of_is_a_pure_function_of_the_cursor() -> None:
    cursor = torch.tensor([999, 0, 123_456_789, 1000])
    source, place = source_of(cursor, [700, 300], seed=1)
    for i, c in enumerate(cursor.tolist()):
        alone = source_of(torch.tensor([c]), [700, 300], seed=1)
        assert (int(alone[0]), int(alone[1])) == (int(source[i]), int(place[i]))


def test_a_single_source_keeps_its_cursor() -> None:
    cursor = torch.tensor([3, 10**10])
    source, place = source_of(cursor, [BLOCK], seed=1)
    assert source.tolist() == [0, 0]
    assert torch.equal(place, cursor)
