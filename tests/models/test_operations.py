"""Counted operations: what attention sees, and the cost of a step (test_benchmarks.py counts a real one)."""

from __future__ import annotations

import pytest
import torch

from cloze.models.operations import operations, seen
from cloze.models.visibility import Visibility


@pytest.mark.parametrize("reach", [None, 0, 3, 7, 100])
def test_what_a_token_sees_is_what_the_mask_shows(reach: int | None) -> None:
    """Packed samples and windows, against the mask of the attention."""
    lengths = [1, 2, 7, 8, 9, 30]
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    mask = Visibility(segments).mask(reach)
    assert mask is not None
    shown = mask.sum().item() / sum(lengths)
    assert seen(lengths, [reach]) == pytest.approx(shown)
    both = seen(lengths, [reach, None])
    assert both == pytest.approx((shown + sum(n * n for n in lengths) / sum(lengths)) / 2)


@pytest.mark.parametrize("reach", [None, 0, 3, 100])
@pytest.mark.parametrize("prefixes", [[], [1, 0, 3, 8, 1, 20]])
def test_what_a_token_sees_under_causal_visibility(reach: int | None, prefixes: list[int]) -> None:
    lengths = [1, 2, 7, 8, 9, 30]
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    starts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    place = torch.arange(sum(lengths)) - starts[segments[0]]
    open = (place < torch.tensor(prefixes)[segments[0]])[None] if prefixes else None
    mask = Visibility(segments, causal=True, open=open).mask(reach)
    assert mask is not None
    assert seen(lengths, [reach], prefixes) == pytest.approx(mask.sum().item() / sum(lengths))


def test_a_parameter_costs_six_operations_for_each_token_it_works_on() -> None:
    assert operations(body=10, head=3, tokens=5, predicted=2) == 6 * (10 * 5 + 3 * 2)
    assert operations(10, 3, 5, 2, attended=7) - operations(10, 3, 5, 2) == 12 * 7
