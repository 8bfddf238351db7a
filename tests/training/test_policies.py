"""Policies in the loop: what learns does so once a step, whole or accumulated; copies share their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from training.stepping import Capture, farthest, gradients, parameters

from cloze import ClozeError
from cloze.masking import stratified, trust
from cloze.masking.base import Evidence
from cloze.training.loop import Trainer

Make = Callable[..., Trainer]
LEARNERS = {
    "mapnet": "{kind: mapnet, power: 1.0, learning_rate: 0.05}",
    "predicted part": "{kind: mapnet, power: 1.0, predict: 0.5, learning_rate: 0.05}",
    "stratified": "{kind: stratified, order: score}",
    "difficulty": "{kind: difficulty}",
    "auto": "{kind: auto}",
}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is learnt is used within a few steps."""
    monkeypatch.setattr(trust, "WARM", 2)
    monkeypatch.setattr(trust, "MARGIN", -1.0)
    monkeypatch.setattr(stratified, "FIRST_FREEZE", 1)


def still(trainer: Trainer) -> list[Any]:
    """Let the main model stay as it is; the works of the coming steps."""
    trainer.optimizers = [Capture(trainer.method)]  # type: ignore[list-item]
    return recorded(trainer)


def made(make: Make, masking: str, *settings: str) -> Trainer:
    """A trainer whose `auto` has decided for the proposal, which learns; the others decide nothing."""
    trainer = make(f"masking={masking}", *settings)
    trainer.method.decide(Evidence(visits=0.5, rate=0.2, body=1.0, head=1.0, saving_low=0.2))
    return trainer


def recorded(trainer: Trainer) -> list[Any]:
    works: list[Any] = []
    prepare = trainer.method.prepare

    def kept(batch: Any, progress: float) -> Any:
        works.append(prepare(batch, progress))
        return works[-1]

    trainer.method.prepare = kept  # type: ignore[method-assign]
    return works


def hidden(works: list[Any]) -> dict[tuple[int, int], list[bool]]:
    """{(key, visit): which of the sample's tokens are hidden}, however they were batched."""
    found = {}
    for work in works:
        batch = work.batch
        for number, name in enumerate(zip(batch.keys.tolist(), batch.visits.tolist(), strict=True)):
            assert name not in found
            found[name] = work.plan.hidden[(batch.segments == number) & (batch.index >= 0)].tolist()
    return found


def learnt(trainer: Trainer) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in trainer.method.named_buffers() if name.startswith("masking.")}


# -- what learns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", LEARNERS.values(), ids=LEARNERS)
def test_accumulation_changes_neither_masks_nor_what_is_learnt(make: Make, masking: str) -> None:
    whole, parts = made(make, masking), made(make, masking, "training.micro_tokens=192")
    masks = [still(whole), still(parts)]
    list(whole.run(4))
    list(parts.run(4))
    assert (len(masks[0]), len(masks[1])) == (4, 12)
    assert hidden(masks[0]) == hidden(masks[1])
    one, two = learnt(whole), learnt(parts)
    assert one.keys() == two.keys()
    assert len(one) >= 2
    for name in one:
        size = max(1.0, float(one[name].abs().max()))
        assert float((one[name] - two[name]).abs().max()) <= 3e-6 * size, name


def test_learning_from_each_micro_batch_alone_would_be_seen(make: Make) -> None:
    """The control: a step of the small network for each micro-batch."""
    whole, parts = (make(f"masking={LEARNERS['mapnet']}", "training.micro_tokens=192") for _ in range(2))
    still(whole)
    still(parts)
    observe = parts.method.observe

    def alone(works: list[Any], feedback: list[Any]) -> None:
        for work, found in zip(works, feedback, strict=True):
            observe([work], [found])

    parts.method.observe = alone  # type: ignore[method-assign]
    list(whole.run(2))
    list(parts.run(2))
    assert farthest(learnt(whole), learnt(parts)) > 1e-3


@pytest.mark.parametrize("masking", LEARNERS.values(), ids=LEARNERS)
def test_what_is_learnt_changes_the_masks(make: Make, masking: str) -> None:
    """Else the equality above would say nothing about it."""
    learning, blind = made(make, masking), made(make, masking)
    masks = [still(learning), still(blind)]
    blind.method.observe = lambda works, feedback: None  # type: ignore[method-assign]
    list(learning.run(4))
    list(blind.run(4))
    assert hidden(masks[0][:1]) == hidden(masks[1][:1])
    assert hidden(masks[0]) != hidden(masks[1]) or masking == LEARNERS["predicted part"]
    predicted = [torch.cat([w.plan.predicted for w in works]) for works in masks]
    assert not torch.equal(*predicted)


def test_mapnet_is_uniform_masking_until_it_is_let_in(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, losses and the gradients' norms of the main model, bit for bit."""
    monkeypatch.setattr(trust, "WARM", 4)
    uniform, mapnet = make(), make("masking={kind: mapnet, rate: 0.3, learning_rate: 0.05}")
    results = [list(t.run(4)) for t in (uniform, mapnet)]
    assert results[0] == results[1]
    one, two = parameters(uniform), parameters(mapnet)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    mapnet.method.get_buffer("masking.trust.moments")[-1] = 0.0  # as if the exponent 1 saved everything
    assert mapnet.method.log()["proposal_power"] == 1.0
    assert list(uniform.run(6)) != list(mapnet.run(6))


def test_clipping_and_the_optimisers_leave_the_small_network_out(make: Make) -> None:
    trainer = make(f"masking={LEARNERS['mapnet']}", "training.clip=1e9")
    found, _ = gradients(trainer)
    assert found.keys() == parameters(trainer).keys()
    assert not any(name.startswith("masking") for name in found)
    groups = [g for o in make(f"masking={LEARNERS['mapnet']}").optimizers for g in o.param_groups]
    assert {name for group in groups for name in group["names"]} == set(found)


def test_calibration_teaches_nothing(make: Make) -> None:
    trainer = make(f"masking={LEARNERS['mapnet']}")
    before = learnt(trainer)
    trainer.calibrate(steps=2, warm=1)
    after = learnt(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)


# -- copies of a row in one step --------------------------------------------------------------------------

PAIRS = "masking={kind: fully_explored, rate: 0.25, same_step: 2}"


@pytest.mark.parametrize("micro", [None, 256, 64])
def test_two_copies_halve_the_rows_and_hide_different_tokens(make: Make, micro: int | None) -> None:
    options = [] if micro is None else [f"training.micro_tokens={micro}"]
    trainer, single = make(PAIRS, *options), make(*options)
    works, others = still(trainer), still(single)
    results, alone = list(trainer.run(3)), list(single.run(3))
    assert trainer.state.cursors == [12]
    assert single.state.cursors == [24]
    first = {None: 1, 256: 2, 64: 4}[micro]  # micro-batches of the first step
    assert [w.batch.ids.shape[0] for w in works[:first]] == [8 // first] * first
    for work in works:
        one, two = work.batch.ids.chunk(2)
        assert torch.equal(one, two)
        assert work.batch.ids.unique(dim=0).shape[0] == work.batch.ids.shape[0] // 2
        masks = work.plan.hidden.chunk(2)
        assert not (masks[0] & masks[1]).any()
        assert work.batch.visits.chunk(2)[0].tolist() == [0] * (work.batch.samples // 2)
        assert work.batch.visits.chunk(2)[1].tolist() == [1] * (work.batch.samples // 2)
    # As many tokens as without copies, of the same text in the same order.
    assert sum(r.tokens for r in results) == pytest.approx(sum(r.tokens for r in alone), rel=0.02)
    rows = torch.cat([w.batch.ids.chunk(2)[0] for w in works])
    assert torch.equal(rows, torch.cat([w.batch.ids for w in others])[: len(rows)])


def test_accumulated_copies_give_the_gradient_of_the_whole(make: Make) -> None:
    whole, loss = gradients(make(PAIRS, "training.clip=1e9"))
    parts, loss_of_parts = gradients(make(PAIRS, "training.clip=1e9", "training.micro_tokens=256"))
    assert farthest(whole, parts) <= 1e-6
    assert loss == pytest.approx(loss_of_parts, abs=1e-6)


@pytest.mark.parametrize(("rows", "copies"), [(7, 2), (8, 3), (2, 4)])
def test_rows_that_copies_do_not_divide_are_refused(make: Make, rows: int, copies: int) -> None:
    masking = f"masking={{kind: fully_explored, same_step: {copies}}}"
    with pytest.raises(ClozeError, match=rf"training\.phases: {rows} rows .*use a multiple of {copies}$"):
        make(masking, f"training.phases=[{{share: 1.0, length: 64, rows: {rows}}}]")


def test_copies_that_a_policy_decides_on_count_from_the_next_run(make: Make) -> None:
    trainer = make("masking={kind: auto, rate: 0.2}")
    works = still(trainer)
    list(trainer.run(2))
    trainer.method.decide(Evidence(0.5, 0.2, 1.0, 1.0, 1.0, 1.0, break_even_high=-1.0))
    list(trainer.run(4))
    assert [w.batch.ids.shape[0] for w in works] == [8] * 4
    assert [w.batch.ids.unique(dim=0).shape[0] for w in works] == [8, 8, 4, 4]
    assert trainer.state.cursors == [24]
    trainer.method.decide(Evidence(0.5, 0.2, 1.0, 1.0))
    list(trainer.run(5))
    assert trainer.state.cursors == [32]
    text = torch.cat([w.batch.ids.unique(dim=0) for w in works])
    assert text.unique(dim=0).shape[0] == 32  # no row is left out or repeated
