"""Visibility masks say who sees whom."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cloze.models.visibility import Visibility

SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, -1], [2, 2, 2, 2, 2, 2]])


def brute(segments: Tensor, reach: int | None, causal: bool, open: Tensor | None = None) -> Tensor:
    rows, length = segments.shape
    mask = torch.zeros(rows, length, length, dtype=torch.bool)
    for r in range(rows):
        for query in range(length):
            for key in range(length):
                near = reach is None or abs(query - key) <= reach
                past = not causal or key <= query or (open is not None and bool(open[r, key]))
                mask[r, query, key] = near and past and bool(segments[r, query] == segments[r, key])
    return mask


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("reach", [None, 0, 1, 3, 4, 5, 50])
@pytest.mark.parametrize("rows", [[0, 1], [1]])
def test_masks_by_hand(rows: list[int], reach: int | None, causal: bool) -> None:
    segments = SEGMENTS[rows]
    mask = Visibility(segments, causal).mask(reach)
    wanted = brute(segments, reach, causal)
    if mask is None:
        assert wanted.all()
    else:
        assert torch.equal(mask.expand(len(rows), 1, 6, 6)[:, 0], wanted)


@pytest.mark.parametrize("reach", [None, 0, 2, 50])
@pytest.mark.parametrize("rows", [[0, 1], [1]])
def test_open_tokens_are_seen_by_their_whole_segment(rows: list[int], reach: int | None) -> None:
    segments = SEGMENTS[rows]
    open = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 0, 0]], dtype=torch.bool)[rows]
    wanted = brute(segments, reach, True, open)
    for dense in (False, True) if rows == [1] else (False,):
        mask = Visibility(segments, True, dense, open=open).mask(reach)
        assert mask is not None
        assert torch.equal(mask.expand(len(rows), 1, 6, 6)[:, 0], wanted)
    assert torch.equal(wanted, brute(segments, reach, True)) == (reach == 0)
    # Where everything is seen anyway, being open means nothing.
    assert Visibility(segments, open=open).open is None


def test_no_mask_where_everything_is_seen() -> None:
    one = torch.zeros(3, 8, dtype=torch.long)
    assert Visibility(one, dense=True).mask(None) is None
    assert Visibility(one, dense=True).mask(7) is None
    assert Visibility(one, dense=True).mask(6) is not None
    assert Visibility(one, causal=True, dense=True).mask(None) is not None
    assert Visibility(SEGMENTS).mask(None) is not None
    assert Visibility(one).mask(None) is not None  # nobody looks: that would wait for a GPU


def test_a_mask_is_made_once_for_all_layers() -> None:
    visibility = Visibility(SEGMENTS)
    assert visibility.mask(2) is visibility.mask(2)
    assert visibility.mask(2) is not visibility.mask(3)


def packing(seed: int, rows: int, length: int) -> Tensor:
    """Random segments: samples of any size, and padding at the end of some rows."""
    draw = torch.Generator().manual_seed(seed)
    segments = torch.full((rows, length), -1)
    number = 0
    for row in range(rows):
        at, end = 0, length - int(torch.randint(0, length // 2, (), generator=draw)) * (row % 2)
        while at < end:
            size = int(torch.randint(1, max(2, length // 2), (), generator=draw))
            segments[row, at : min(at + size, end)] = number
            at, number = at + size, number + 1
    return segments


def prefixes(segments: Tensor) -> Tensor:
    """About the first half of each segment."""
    place = torch.arange(segments.shape[1]).expand_as(segments)
    first = [[row.index(s) for s in row] for row in segments.tolist()]
    last = [[len(row) - row[::-1].index(s) for s in row] for row in segments.tolist()]
    return (2 * place < torch.tensor(first) + torch.tensor(last)) & (segments >= 0)


@pytest.mark.parametrize(("causal", "opened"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("reach", [None, 0, 5, 64, 500])
@pytest.mark.parametrize(("seed", "rows", "length"), [(0, 3, 40), (1, 2, 128), (2, 4, 300), (3, 1, 513)])
def test_block_masks_say_the_same(
    seed: int, rows: int, length: int, reach: int | None, causal: bool, opened: bool
) -> None:
    segments = packing(seed, rows, length)
    visibility = Visibility(segments, causal, open=prefixes(segments) if opened else None)
    blocks, mask = visibility.blocks(reach), visibility.mask(reach)
    assert mask is not None
    row, head, query, key = (torch.arange(n) for n in (rows, 1, length, length))
    at = (row[:, None, None, None], head[:, None, None], query[:, None], key)
    assert torch.equal(blocks.mask_mod(*at).expand(rows, 1, length, length), mask)
    # A block that is left out has nothing to see, and one that is taken as full hides nothing.
    padded = F.pad(mask, (0, -length % 128, 0, -length % 128)).unflatten(3, (-1, 128)).unflatten(2, (-1, 128))
    padded = padded.transpose(3, 4)[:, 0]
    kept = torch.zeros(padded.shape[:3], dtype=torch.bool)
    for counts, indices, whole in (
        (blocks.kv_num_blocks, blocks.kv_indices, False),
        (blocks.full_kv_num_blocks, blocks.full_kv_indices, True),
    ):
        assert counts is not None and indices is not None
        for r in range(rows):
            for q in range(counts.shape[2]):
                for k in indices[r, 0, q, : counts[r, 0, q]].tolist():
                    kept[r, q, k] = True
                    assert not whole or padded[r, q, k].all()
    assert torch.equal(kept, padded.flatten(3).any(3))
    assert visibility.blocks(reach) is blocks


def test_starts_by_hand() -> None:
    assert Visibility(SEGMENTS).starts().tolist() == [0, 3, 5, 6, *[12] * 9]
    assert Visibility(SEGMENTS, runs=4).starts().tolist() == [0, 3, 5, 6, 12]
    starts = Visibility(SEGMENTS, runs=6)
    assert starts.starts().tolist() == [0, 3, 5, 6, 12, 12, 12]
    assert starts.starts().dtype == torch.int32
    assert starts.starts() is starts.starts()
    with pytest.raises((RuntimeError, IndexError)):  # too little room must never join two samples
        Visibility(SEGMENTS, runs=3).starts()


@pytest.mark.parametrize("seed", range(20))
def test_starts_are_the_runs(seed: int) -> None:
    segments = packing(seed, rows=4, length=50)
    flat = segments.flatten().tolist()
    wanted = [at for at in range(200) if at % 50 == 0 or flat[at] != flat[at - 1]]
    room = int(segments.max()) + 1 + 4  # what `View.of` leaves: samples and rows
    starts = Visibility(segments, runs=room).starts().tolist()
    assert starts == wanted + [200] * (room + 1 - len(wanted))
