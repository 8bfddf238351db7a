"""Balanced masking: every visit is uniform alone, and over the visits the counts stay close together."""

from __future__ import annotations

import pytest
import torch
from helpers import make_samples, pack, tile
from torch import Tensor

from cloze.masking.balanced import Balanced
from cloze.masking.base import Masking
from cloze.masking.uniform import Uniform

N, RATE, WINDOW = 20, 0.15, 16


def hidden(policy: Masking, visits: int) -> Tensor:
    """[visits, N]"""
    batch = tile(pack([make_samples([N])], N + 2), visits)
    return policy.plan(batch, RATE, 3).hidden[:, 1:-1].double()


def test_counts_stay_together_within_a_window() -> None:
    windows = 60
    found = hidden(Balanced(window=WINDOW), windows * WINDOW).view(windows, WINDOW, N).sum(1)
    alone = hidden(Uniform(), windows * WINDOW).view(windows, WINDOW, N).sum(1)
    assert float(found.mean()) == pytest.approx(RATE * WINDOW)
    assert float(found.var(1).mean()) < 0.25 * float(alone.var(1).mean())
    assert float(alone.var(1).mean()) == pytest.approx(WINDOW * RATE * (1 - RATE), rel=0.15)


def test_what_was_hidden_is_less_likely_the_next_time_but_not_excluded() -> None:
    masks = hidden(Balanced(window=2), 8000).view(-1, 2, N)
    again = float((masks[:, 0] * masks[:, 1]).mean())
    assert 0.2 * RATE**2 < again < 0.8 * RATE**2  # 0 would be disjoint, RATE² independent
    apart = float((masks[:-1, 1] * masks[1:, 0]).mean())
    assert again < 0.9 * apart  # the next window begins anew
    assert apart == pytest.approx(RATE**2, rel=0.06)


def test_a_window_of_one_visit_is_uniform_masking() -> None:
    masks = hidden(Balanced(window=1), 8000)
    assert float((masks[1:] * masks[:-1]).mean()) == pytest.approx(RATE**2, rel=0.06)


def test_a_mask_does_not_depend_on_the_visits_beside_it() -> None:
    """The counts come from random numbers, not from memory."""
    policy, batch = Balanced(), pack([make_samples([N])], N + 2)
    many = policy.plan(tile(batch, 40), RATE, 3).hidden
    for visit in (0, 7, 15, 16, 39):
        batch.visits[:] = visit
        assert torch.equal(policy.plan(batch, RATE, 3).hidden[0], many[visit])
