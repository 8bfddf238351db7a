"""Several methods in the loop: rows, shares and stages, whole or accumulated, and left in the middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from training.stepping import Capture, farthest, gradients, parameters

from cloze.methods.composite import Composite, allot
from cloze.training.loop import Trainer
from cloze.training.state import tensors_of

Make = Callable[..., Trainer]
CAUSAL = (
    "variants={causal: {masking: {kind: none}, visibility: {kind: causal}, objective: {kind: next_token}}}"
)
MIXED = (CAUSAL, "stages=[{use: {causal: 1, main: 3}}]")
STAGED = (
    CAUSAL,
    "stages=[{share: 0.25, use: causal}, {share: 0.5}, {share: 0.25, use: {causal: 1, main: 1}}]",
)
SHORT_LONG = "training.phases=[{share: 0.5, length: 64, rows: 8}, {share: 0.5, length: 128, rows: 4}]"


def recorded(trainer: Trainer) -> list[Any]:
    """Let the model stay as it is; the works of the coming steps."""
    trainer.optimizers = [Capture(trainer.method)]  # type: ignore[list-item]
    works: list[Any] = []
    prepare = trainer.method.prepare

    def kept(batch: Any, progress: float) -> Any:
        works.append(prepare(batch, progress))
        return works[-1]

    trainer.method.prepare = kept  # type: ignore[method-assign]
    return works


def given(works: list[Any]) -> dict[int, str]:
    """{key of a sample: who got it}, and that no sample was given twice."""
    found: dict[int, str] = {}
    for work in works:
        for name, part in work.parts.items():
            for number in part.batch.segments.unique().tolist():
                if number >= 0:
                    key = int(part.batch.keys[number])
                    assert key not in found
                    found[key] = name
    return found


@pytest.mark.parametrize("micro", [64, 192, 320])
def test_accumulation_changes_neither_gradients_nor_who_gets_a_row(make: Make, micro: int) -> None:
    options = (*MIXED, "training.clip=1e9")
    whole, loss = gradients(make(*options))
    parts, loss_of_parts = gradients(make(*options, f"training.micro_tokens={micro}"))
    assert farthest(whole, parts) <= 1e-6
    assert loss == pytest.approx(loss_of_parts, abs=1e-6)
    trainers = [make(*MIXED), make(*MIXED, f"training.micro_tokens={micro}")]
    works = [recorded(trainer) for trainer in trainers]
    for trainer in trainers:
        list(trainer.run(4))
    assert given(works[0]) == given(works[1])
    assert len(works[1]) > len(works[0]) == 4


def test_every_step_has_its_shares_and_both_losses(make: Make) -> None:
    trainer = make(*MIXED)
    works = recorded(trainer)
    results = list(trainer.run(4))
    for work, result in zip(works, results, strict=True):
        rows = {name: part.batch.ids.shape[0] for name, part in work.parts.items()}
        assert rows == {"causal": 2, "main": 6}
        assert result.losses.keys() == {"causal/next_token", "main/mlm"}
        mean = 0.25 * result.losses["causal/next_token"] + 0.75 * result.losses["main/mlm"]
        assert result.loss == pytest.approx(mean)
        assert result.predicted == int(work.predicted)
        assert result.tokens == int((work.batch.segments >= 0).sum())
    assert trainer.state.cursors == [32]


def test_the_text_of_a_row_has_nothing_to_do_with_who_gets_it(make: Make) -> None:
    """At its next visit a text goes to another method as often as the shares say."""
    loader = make(*MIXED).loaders[0]
    rows = len(loader.sources[0])
    owner = allot(torch.arange(4 * rows), [0.25, 0.75]).tolist()
    owners: dict[int, list[int]] = {}
    for (_, row, _), number in zip(loader.rows_at(range(4 * rows)), owner, strict=True):
        owners.setdefault(row, []).append(number)
    assert {len(numbers) for numbers in owners.values()} == {4}
    never = sum(0 not in numbers for numbers in owners.values()) / rows
    assert never == pytest.approx(0.75**4, abs=5 * (0.32 * 0.68 / rows) ** 0.5)


def test_stages_and_phases_are_divided_by_themselves(make: Make) -> None:
    trainer = make(*STAGED, SHORT_LONG, steps=8)
    works = recorded(trainer)
    results = list(trainer.run(8))
    terms = [sorted(result.losses) for result in results]
    causal, both = ["causal/next_token"], ["causal/next_token", "main/mlm"]
    assert terms == [causal] * 2 + [["main/mlm"]] * 4 + [both] * 2
    assert [work.batch.ids.shape[1] for work in works] == [64] * 4 + [128] * 4
    assert results[0].predicted > 2 * results[2].predicted  # every token against 30%


def test_what_the_optimiser_knows_goes_on_at_the_switch(make: Make) -> None:
    trainer = make(CAUSAL, "stages=[{share: 0.5, use: causal}, {share: 0.5}]", steps=4)
    list(trainer.run(2))
    before = tensors_of(trainer.method, trainer.optimizers)
    moments = [n for n in before if "exp_avg." in n or "momentum_buffer." in n]
    kept = {n: before[n].clone() for n in moments}
    assert len(moments) > 10
    (result,) = trainer.run(3)
    assert result.losses.keys() == {"main/mlm"}
    after = tensors_of(trainer.method, trainer.optimizers)
    one, two = (torch.cat([tensors[n].flatten() for n in moments]) for tensors in (kept, after))
    cosine = torch.nn.functional.cosine_similarity(one, two, dim=0)
    assert cosine > 0.5


@pytest.mark.parametrize("options", [MIXED, STAGED])
def test_the_loop_can_be_left_and_entered_at_any_step(make: Make, options: tuple[str, ...]) -> None:
    whole, halves = (make(*options, "model.dropout=0.1", steps=8) for _ in range(2))
    assert isinstance(whole.method, Composite)
    list(whole.run(8))
    for _ in range(5):
        next(iter(halves.run(8)))
    list(halves.run(8))
    expected, got = parameters(whole), parameters(halves)
    assert halves.state == whole.state
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_calibration_measures_every_stage_and_leaves_no_trace(make: Make) -> None:
    trainer, untouched = (make(*STAGED, SHORT_LONG, steps=8) for _ in range(2))
    works: list[Any] = []
    prepare = trainer.method.prepare

    def kept(batch: Any, progress: float) -> Any:
        works.append((prepare(batch, progress), progress))
        return works[-1][0]

    trainer.method.prepare = kept  # type: ignore[method-assign]
    assert trainer.calibrate(steps=2, warm=1) > 0
    names = [(round(progress, 3), "+".join(work.parts), work.batch.ids.shape[1]) for work, progress in works]
    assert names[::3] == [
        (0.125, "causal", 64),
        (0.375, "main", 64),
        (0.625, "main", 128),
        (0.875, "causal+main", 128),
    ]
    trainer.method.prepare = prepare  # type: ignore[method-assign]
    assert trainer.state == untouched.state
    list(trainer.run(3))
    list(untouched.run(3))
    expected, got = parameters(untouched), parameters(trainer)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


FIRST = "stages=[{share: 0.4, use: causal}, {share: 0.6, use: main"
AT = 4  # of ten steps, the first of the second stage


def test_a_stage_may_warm_up_again(make: Make) -> None:
    plain, warm = make(CAUSAL, FIRST + "}]"), make(CAUSAL, FIRST + ", warmup: 0.5}]")
    rates = [[result.learning_rate for result in trainer.run(10)] for trainer in (plain, warm)]
    factors = [b / a for a, b in zip(*rates, strict=True)]
    assert factors == pytest.approx([1.0] * AT + [1 / 6, 3 / 6, 5 / 6] + [1.0] * 3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stage_may_begin_with_a_fresh_optimiser(make: Make, optimizer: str) -> None:
    kind = f"training.optimizer.kind={optimizer}"
    kept, fresh = make(CAUSAL, kind, FIRST + "}]"), make(CAUSAL, kind, FIRST + ", fresh_optimizer: true}]")

    def after(trainer: Trainer, steps: int) -> dict[str, Any]:
        for _ in trainer.run(steps):
            pass
        return tensors_of(trainer.method, trainer.optimizers)

    assert all(
        torch.equal(x, y) for x, y in zip(after(kept, AT).values(), after(fresh, AT).values(), strict=True)
    )
    before, now = after(kept, AT + 1), after(fresh, AT + 1)
    steps = {n: (float(before[n]), float(now[n])) for n in now if ".step." in n}
    assert set(steps.values()) == {(AT + 1.0, 1.0)}
    assert any(not torch.equal(before[n], now[n]) for n in now if n.startswith("model."))
