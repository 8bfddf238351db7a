"""Static sizes: enough for every batch, the same for nearly all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from cloze.training.loop import Trainer
from cloze.training.shapes import Shapes, capacity, samples_per_row

Make = Callable[..., Trainer]
pytestmark = pytest.mark.filterwarnings("default")  # torch.compile has its own


@pytest.mark.parametrize("usual", [1, 64, 128, 1000])
def test_capacity_is_the_usual_size_or_the_next(usual: int) -> None:
    sizes = [capacity(needed, usual) for needed in range(3 * usual + 9)]
    assert all(size >= max(needed, usual) for needed, size in enumerate(sizes))
    assert sizes == sorted(sizes)
    assert set(sizes[: usual + 1]) == {usual}
    assert len(set(sizes)) <= 2 * 8 + 10 + 1
    assert capacity(usual + 1, usual) <= usual * 1.125 + 1


def test_slots_are_a_tenth_more_than_the_rate() -> None:
    shapes = Shapes([])
    assert shapes.slots(10_000, 0.3) == 3328  # 3300 in whole 128s
    assert shapes.slots(1, 0.3) == 128
    assert shapes.slots(1280, 1.0) == 1280  # but never more than there are tokens


def test_samples_per_row_are_counted(make: Make) -> None:
    loader = make().loaders[0]
    rows = len(loader.sources[0])
    counts = torch.tensor([loader.batch(i, 1).samples for i in range(rows)]).double()
    mean, deviation = samples_per_row(loader)
    assert mean == pytest.approx(counts.mean().item())
    assert deviation == pytest.approx(counts.std(correction=0).item())


def test_rows_count_as_dense_if_all_are(make: Make) -> None:
    trainer = make("training.compile=true")
    assert trainer.shapes is not None
    batch = replace(trainer.loaders[0].batch(0, 2), dense=True)  # as by chance
    work = trainer.method.prepare(batch, 0.0)
    assert work.views[0].dense
    assert not trainer.shapes.pad(work, 1).views[0].dense
    trainer.shapes.dense[64] = True
    assert trainer.shapes.pad(work, 1).views[0].dense


@pytest.mark.parametrize("copies", [1, 2])
def test_all_batches_fit_and_nothing_is_dropped(make: Make, copies: int) -> None:
    trainer = make("training.compile=true")
    assert trainer.shapes is not None
    found = set()
    for i in range(40):
        work = trainer.method.prepare(trainer.loaders[0].batch(8 * i, 8).repeat(copies), 0.0)
        padded = trainer.shapes.pad(work, copies)
        assert padded.token_weights.sum() == work.token_weights.sum()
        (view,) = padded.views
        runs = int((view.segments[:, 1:] != view.segments[:, :-1]).sum()) + 8 * copies
        assert view.runs is not None and view.runs >= runs
        found.add((padded.places.numel(), padded.labels.numel(), padded.token_weights.numel(), view.runs))
    assert len(found) == 1
