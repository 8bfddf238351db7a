"""Visibility masks say who sees whom."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cloze.errors import ClozeError
from cloze.models.visibility import Visibility, attention

SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, -1], [2, 2, 2, 2, 2, 2]])


def brute(segments: Tensor, reach: int | None, causal: bool) -> Tensor:
    rows, length = segments.shape
    mask = torch.zeros(rows, length, length, dtype=torch.bool)
    for r in range(rows):
        for query in range(length):
            for key in range(length):
                near = reach is None or abs(query - key) <= reach
                past = not causal or key <= query
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


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_by_hand(groups: int) -> None:
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 6, 8, generator=draw)
    key, value = (torch.randn(2, 4 // groups, 6, 8, generator=draw) for _ in range(2))
    out, weights = attention(
        nn.Module(), query, key, value, None, scaling=0.3, sliding_window=3, visibility=Visibility(SEGMENTS)
    )
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * 0.3
    scores = scores.masked_fill(~brute(SEGMENTS, 2, False)[:, None], float("-inf"))
    wanted = (F.softmax(scores, -1) @ value.repeat_interleave(groups, 1)).transpose(1, 2)
    assert out.shape == (2, 6, 4, 8)
    assert out.is_contiguous()
    assert weights is None
    assert (out - wanted).abs().max() < 1e-6


def test_padding_gives_no_nan() -> None:
    x = torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out, _ = attention(nn.Module(), x, x, x, None, visibility=Visibility(SEGMENTS, causal=True))
    assert out.isfinite().all()
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_misuse_is_an_error() -> None:
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ClozeError, match="without `visibility`"):
        attention(nn.Module(), x, x, x, None)
    with pytest.raises(ClozeError, match="attention_mask"):
        attention(
            nn.Module(), x, x, x, torch.ones(1, 2), visibility=Visibility(torch.zeros(1, 2, dtype=torch.long))
        )
