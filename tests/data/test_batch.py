"""A batch repeated: masked copies of the same rows are more visits of the same samples."""

from __future__ import annotations

from dataclasses import replace

import torch
from helpers import make_samples, pack, rows_of

from cloze.data.batch import Batch


def batch() -> Batch:
    """Two rows of three samples, at visits 4, 0 and 9."""
    first, second = make_samples([5, 3])
    samples = [replace(first, visit=4), second]
    return pack([samples, [replace(make_samples([9], 1)[0], visit=9)], []], 14)


def test_once_is_the_batch_itself() -> None:
    whole = batch()
    assert whole.repeat(1) is whole


def test_rows_are_repeated_whole_as_samples_of_their_own() -> None:
    whole, copies = batch(), batch().repeat(3)
    assert copies.ids.shape == (9, 14)
    assert copies.samples == 9
    for number in range(3):
        part = rows_of(copies, range(3 * number, 3 * number + 3))
        for name in ("ids", "segments", "index", "units", "maskable", "keys"):
            assert torch.equal(getattr(part, name), getattr(whole, name)), name
    assert torch.equal(copies.segments.unique(), torch.arange(-1, 9))
    assert (copies.segments[[2, 5, 8]] == -1).all()


def test_visits_go_on_without_gap_or_repetition() -> None:
    """Visit v of a sample becomes v·copies, v·copies + 1, …"""
    copies = batch().repeat(3)
    assert copies.visits.view(3, 3).tolist() == [[12, 0, 27], [13, 1, 28], [14, 2, 29]]
    seen = [
        v
        for visit in range(5)
        for v in replace(batch(), visits=torch.full((3,), visit)).repeat(2).visits.view(2, 3)[:, 0].tolist()
    ]
    assert seen == list(range(10))


def test_what_is_known_of_the_layout_stays() -> None:
    assert replace(batch(), dense=True).repeat(2).dense
    assert not batch().repeat(2).dense
