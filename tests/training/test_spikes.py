"""Jumps of the loss: seen once, by size and spread, and not where a phase begins or losses only fall."""

from __future__ import annotations

import random

import pytest

from cloze.training.spikes import LEAST, Spikes


def alarms(losses: list[float], changes: tuple[int, ...] = ()) -> list[int]:
    spikes = Spikes(changes)
    return [step for step, loss in enumerate(losses, start=1) if spikes.see(step, loss) is not None]


def falling(lines: int, noise: float, seed: int = 0) -> list[float]:
    dice = random.Random(seed)
    return [(3.0 + 5.0 / (1 + 0.2 * i)) * (1.0 + dice.gauss(0.0, noise)) for i in range(lines)]


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03])
def test_a_run_that_learns_gives_no_alarm(noise: float) -> None:
    for seed in range(20):
        assert alarms(falling(200, noise, seed)) == []


@pytest.mark.parametrize("length", [1, 5, 40])
def test_a_jump_is_seen_once_and_the_next_one_again(length: int) -> None:
    losses = falling(200, 0.01)
    for start in (60, 150):
        for i in range(start, min(200, start + length)):
            losses[i] *= 1.5
    assert alarms(losses) == [61, 151]


def test_noise_alone_is_no_jump() -> None:
    dice = random.Random(1)
    losses = [dice.uniform(0.5, 1.5) for _ in range(300)]
    assert alarms(losses) == []
    assert alarms([*losses[:100], 9.0]) == [101]


def test_another_phase_begins_anew() -> None:
    losses = [2.0] * 50 + [4.0] * 50
    assert alarms(losses) == [51]
    assert alarms(losses, changes=(50,)) == []
    losses[60] = 8.0
    assert alarms(losses, changes=(50,)) == [61]


def test_the_first_lines_say_nothing() -> None:
    assert alarms([2.0] * (LEAST - 1) + [9.0]) == []
    assert alarms([2.0] * LEAST + [9.0]) == [LEAST + 1]
