"""Views: the layout of one forward pass."""

import torch
from helpers import make_samples, pack

from cloze.corruption.view import View


def test_a_view_of_a_batch() -> None:
    batch = pack([make_samples([2, 1]), []], length=9)
    view = View.of(batch, batch.ids + 1, causal=True)
    assert view.ids.equal(batch.ids + 1)
    assert view.segments.tolist()[0] == [0, 0, 0, 0, 1, 1, 1, -1, -1]
    assert view.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 0], [0] * 9]
    assert view.origin.tolist() == [[0, 1, 2, 3, 4, 5, 6, -1, -1], [-1] * 9]
    assert view.causal


def test_a_view_moves_whole() -> None:
    batch = pack([make_samples([2])], length=5)
    moved = View.of(batch, batch.ids, causal=True).to("meta")
    assert {x.device.type for x in (moved.ids, moved.segments, moved.positions, moved.origin)} == {"meta"}
    assert moved.causal
    assert View.of(batch, batch.ids).to(torch.device("cpu")).ids.equal(batch.ids)
