"""The loop on a tiny encoder: accumulation, phases, calibration, and losses that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from training.stepping import Capture, farthest, gradients, parameters

from cloze.training.loop import Diverged, Trainer

Make = Callable[..., Trainer]
SHORT_LONG = "training.phases=[{share: 0.5, length: 64, rows: 8}, {share: 0.5, length: 128, rows: 4}]"


@pytest.mark.parametrize("masking", ["{kind: uniform, rate: 0.3}", "{kind: spans, rate: 0.15}"])
@pytest.mark.parametrize("micro", [64, 192, 511])
def test_accumulated_gradients_are_those_of_the_whole_batch(make: Make, masking: str, micro: int) -> None:
    options = ("training.clip=1e9", f"masking={masking}")
    whole, loss = gradients(make(*options))
    parts, loss_of_parts = gradients(make(*options, f"training.micro_tokens={micro}"))
    assert len(whole) > 10
    assert max(g.abs().max().item() for g in whole.values()) > 0.01
    assert farthest(whole, parts) <= 1e-6
    assert loss == pytest.approx(loss_of_parts, abs=1e-6)


def test_a_mean_of_means_would_be_seen(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: dividing by each micro-batch's own weight is wrong by more than the test above allows."""
    options = ("training.clip=1e9", "masking={kind: spans, rate: 0.15}")
    whole, _ = gradients(make(*options))
    trainer = make(*options, "training.micro_tokens=192")
    prepare, count = trainer.method.prepare, 3

    def alone(batch: Any, progress: float) -> Any:
        work = prepare(batch, progress)
        mean = work.token_weights / trainer.method.weights(work)["mlm"] / count
        object.__setattr__(work, "token_weights", mean)
        return work

    monkeypatch.setattr(trainer.method, "prepare", alone)
    monkeypatch.setattr(trainer, "_total", lambda parts, terms: {"mlm": torch.ones(())})
    assert farthest(whole, gradients(trainer)[0]) > 1e-5


def test_micro_batches_cover_the_batch_in_order(make: Make) -> None:
    trainer = make("training.micro_tokens=192")
    places = trainer._places(trainer.settings.phases[0], 16, 2)
    assert places == [(16, 3), (19, 3), (22, 2), (24, 3), (27, 3), (30, 2)]


def test_clipping_bounds_the_norm_and_reports_the_one_before(make: Make) -> None:
    free, _ = gradients(make("training.clip=1e9"))
    norm = torch.stack([g.norm() for g in free.values()]).norm().item()
    trainer = make(f"training.clip={norm / 2}")
    capture = Capture(trainer.method)
    trainer.optimizers = [capture]  # type: ignore[list-item]
    (result,) = trainer.run(1)
    clipped = torch.stack([g.norm() for g in capture.gradients.values()]).norm().item()
    assert result.gradient_norm == pytest.approx(norm, rel=1e-5)
    assert clipped == pytest.approx(norm / 2, rel=1e-4)


def test_phases_change_the_length_and_the_batch(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(SHORT_LONG, steps=6)
    shapes = []
    prepare = trainer.method.prepare

    def seen(batch: Any, progress: float) -> Any:
        shapes.append((tuple(batch.ids.shape), progress))
        assert (
            batch.index.max() < 62
        )  # a sample is never longer than the encoder takes, its specials included
        return prepare(batch, progress)

    monkeypatch.setattr(trainer.method, "prepare", seen)
    results = list(trainer.run(6))
    assert [shape for shape, _ in shapes] == [(8, 64)] * 3 + [(4, 128)] * 3
    assert [progress for _, progress in shapes] == pytest.approx([i / 6 for i in range(6)])
    assert trainer.state.cursors == [24, 12]
    assert trainer.state.tokens == sum(r.tokens for r in results)
    assert all(450 < r.tokens <= 512 for r in results)


def test_phases_of_one_length_do_not_repeat_their_text(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    phases = "[{share: 0.5, length: 64, rows: 2}, {share: 0.5, length: 64, rows: 4}]"
    trainer = make(f"training.phases={phases}", steps=6)
    keys: list[int] = []
    prepare = trainer.method.prepare

    def seen(batch: Any, progress: float) -> Any:
        keys.extend(batch.keys.tolist())
        return prepare(batch, progress)

    monkeypatch.setattr(trainer.method, "prepare", seen)
    list(trainer.run(6))
    assert len(keys) > 18
    assert len(set(keys)) == len(keys)


def test_the_rate_of_learning_follows_the_schedule(make: Make) -> None:
    trainer = make(
        "training.schedule={kind: linear, warmup: 0.0}", "training.optimizer.learning_rate=0.1", steps=4
    )
    assert [r.learning_rate for r in trainer.run(4)] == pytest.approx([0.0875, 0.0625, 0.0375, 0.0125])


def test_the_loop_can_be_left_and_entered_at_any_step(make: Make) -> None:
    whole, halves = make(SHORT_LONG, steps=6), make(SHORT_LONG, steps=6)
    list(whole.run(6))
    for _ in range(4):
        next(iter(halves.run(6)))
    list(halves.run(6))
    expected, got = parameters(whole), parameters(halves)
    assert halves.state == whole.state
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_calibration_leaves_no_trace(make: Make, optimizer: str) -> None:
    trainer, untouched = (make(SHORT_LONG, f"training.optimizer.kind={optimizer}", steps=4) for _ in range(2))
    before = parameters(trainer)
    assert trainer.calibrate(steps=2, warm=1) > 0
    after = parameters(trainer)
    assert all(torch.equal(before[name].view(torch.int32), after[name].view(torch.int32)) for name in before)
    assert trainer.state == untouched.state
    list(trainer.run(4))
    list(untouched.run(4))
    expected, got = parameters(untouched), parameters(trainer)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_update(
    make: Make, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make()
    list(trainer.run(3))
    before, state = (
        parameters(trainer),
        (trainer.state.step, trainer.state.tokens, list(trainer.state.cursors)),
    )
    forward = trainer.method.forward
    keys: list[int] = []

    def broken(work: Any) -> Any:
        outcome = forward(work)
        keys.extend(work.batch.keys.tolist())
        weight = trainer.method.encoder.vocabulary.weight
        root = (weight - weight.detach()).sum().clamp(min=0).sqrt()  # 0, with an infinite slope
        bad = weight.sum() * float("nan") if what == "loss" else root
        outcome.sums["mlm"] = outcome.sums["mlm"] + bad
        return outcome

    monkeypatch.setattr(trainer.method, "forward", broken)
    with pytest.raises(Diverged, match=r"at step 3; nothing was updated") as stop:
        list(trainer.run(10))
    assert str(keys[0]) in str(stop.value)
    assert "\n" not in str(stop.value)
    assert ("loss is nan" in str(stop.value)) == (what == "loss")
    after = parameters(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (trainer.state.step, trainer.state.tokens, trainer.state.cursors) == state
    monkeypatch.undo()
    assert next(iter(trainer.run(10))).loss > 0
