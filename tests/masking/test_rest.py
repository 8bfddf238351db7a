"""Rest: the hidden part is an end of the sample, as often as it says."""

from __future__ import annotations

import torch
from helpers import make_samples, pack, tile

from cloze.masking.rest import Rest


def test_a_token_is_hidden_as_often_as_its_probability_says() -> None:
    batch = tile(pack([make_samples([12, 5, 1], 3)], 30), 4000)
    plan = Rest().plan(batch, 0.5, 11)
    assert torch.equal(plan.hidden, plan.predicted)
    text = batch.index >= 0
    assert not bool(plan.hidden[~text].any())
    frequency = plan.hidden.float().mean(0)
    expected = plan.inclusion[0]
    deviation = (expected * (1 - expected) / 4000).sqrt().clamp(min=1e-9)
    assert ((frequency - expected).abs() <= 5 * deviation).all()
    assert not ((frequency - 0.5).abs() <= 5 * deviation)[text[0]].all()  # a control: they are not all alike
    assert torch.equal(plan.reference, plan.inclusion)


def test_what_is_hidden_is_an_end() -> None:
    batch = tile(pack([make_samples([12, 5, 1], 3)], 30), 50)
    hidden = Rest().plan(batch, 0.5, 2).hidden
    text = batch.index >= 0
    for number in range(batch.samples):
        inside = hidden[(batch.segments == number) & text].tolist()
        assert inside == sorted(inside)
        assert inside[-1]
