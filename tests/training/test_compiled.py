"""Compiled code: one graph, no compilation after the first step, and the same numbers.

The counters and gradients are checked with the backend `aot_eager`, which traces and differentiates as
inductor does, but generates no code; one slow test takes inductor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from training.stepping import farthest, gradients, parameters

from cloze.corruption.view import View
from cloze.diagnosis import online
from cloze.methods import token_prediction
from cloze.methods.token_prediction import TokenPrediction
from cloze.models.vocabulary_loss import vocabulary_loss
from cloze.training.loop import Trainer
from cloze.training.state import tensors_of

Make = Callable[..., Trainer]
pytestmark = pytest.mark.filterwarnings("default")  # torch.compile has its own
COMPILED = "training.compile=true"
MODERN = "model={kind: new, family: modernbert, layers: 3, width: 32, heads: 2, longest: 256}"
LONG = "training.phases=[{share: 1.0, length: 160, rows: 8}]"  # beyond ModernBERT's window of 64
MIXED = (
    "variants={causal: {masking: {kind: none}, visibility: {kind: causal}, objective: {kind: next_token}}}",
    "stages=[{use: {causal: 1, main: 3}}]",
)
MAPNET = "masking={kind: mapnet, learning_rate: 0.05}"


@pytest.fixture(autouse=True)
def _traced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield
    torch._dynamo.reset()


def look(trainer: Trainer) -> None:
    """What a session does between steps: an evaluation, and the instrument."""
    method = trainer.method.main
    assert isinstance(method, TokenPrediction)
    batch = trainer.loaders[0].batch(0, 3)
    method.eval()
    with torch.no_grad():
        method.encoder(View.of(batch, batch.ids), torch.arange(5))
    method.train()
    assert online.measure(method, [trainer.loaders[0].batch(i, 1) for i in range(3)], 0.3, 0) is not None


@pytest.mark.parametrize(
    "options",
    [(), (MODERN, LONG), (MODERN, LONG, MAPNET), (MODERN, LONG, "training.micro_tokens=500"), (*MIXED, LONG)],
    ids=["bert", "modernbert", "mapnet", "accumulated", "mixed"],
)
def test_one_graph_and_no_compilation_after_the_first_step(make: Make, options: tuple[str, ...]) -> None:
    trainer = make(COMPILED, *options, steps=14)
    steps = trainer.run(14)
    next(steps)
    graphs = dict(counters["stats"])
    # No graph break: body, gathering, head and loss are one graph.
    assert graphs["unique_graphs"] == 1
    assert not counters["graph_break"]
    shapes = set()
    prepare = trainer.method.prepare

    def note(batch: Any, progress: float) -> Any:
        work = prepare(batch, progress)
        shapes.add((int(work.predicted), batch.samples))
        return work

    trainer.method.prepare = note  # type: ignore[method-assign]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number, _ in enumerate(steps):
            if number == 3:
                look(trainer)
    assert len(shapes) > 5  # the batches differ
    assert dict(counters["stats"]) == graphs
    assert not counters["graph_break"]


def test_the_control_shapes_as_they_come_are_compiled_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(COMPILED)
    assert trainer.shapes is not None
    monkeypatch.setattr(trainer.shapes, "pad", lambda work, _: work)
    list(trainer.run(3))
    assert counters["stats"]["unique_graphs"] > 1


def test_each_phase_has_its_graph(make: Make) -> None:
    phases = "[{share: 0.5, length: 64, rows: 8}, {share: 0.5, length: 96, rows: 4}]"
    list(make(COMPILED, f"training.phases={phases}", steps=6).run(6))
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize("options", [(), (MODERN, LONG), (MODERN, LONG, MAPNET), (MODERN, LONG, *MIXED)])
def test_gradients_are_those_of_code_that_is_not_compiled(
    make: Make, options: tuple[str, ...], chunks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunks:  # of 50 tokens
        monkeypatch.setattr(
            token_prediction, "vocabulary_loss", partial(vocabulary_loss, chunk_bytes=4 * 320 * 50)
        )
    options = (*options, "training.clip=1e9")
    eager, loss = gradients(make(*options))
    compiled, loss_of_compiled = gradients(make(*options, COMPILED))
    assert counters["stats"]["unique_graphs"] == 1
    assert max(g.abs().max().item() for g in eager.values()) > 0.01
    assert farthest(eager, compiled) <= 1e-5
    assert loss_of_compiled == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(("options", "layers"), [((), 1), ((MODERN, LONG), 3)])
def test_with_gradient_checkpointing_layers_are_graphs(
    make: Make, options: tuple[str, ...], layers: int
) -> None:
    """The layers share masks, which torch does not let a checkpointed part of a graph make for the others."""
    found = []
    for more in ((), (COMPILED,)):
        trainer = make(*options, "training.clip=1e9", *more)
        trainer.method.export().gradient_checkpointing_enable({"use_reentrant": False})
        found.append(gradients(trainer))
    assert farthest(found[0][0], found[1][0]) <= 1e-5
    assert 1 < counters["stats"]["unique_graphs"] <= layers + 4


def test_what_is_learnt_is_the_same(make: Make) -> None:
    """The proposal network learns from norms that compiled code gives, spare slots among them."""
    trainers = [make(MAPNET, *more, steps=4) for more in ((), (COMPILED,))]
    for trainer in trainers:
        list(trainer.run(4))
    learnt = [dict(trainer.method.named_buffers()) for trainer in trainers]
    assert learnt[0].keys() == learnt[1].keys()
    for name, value in learnt[0].items():
        other = learnt[1][name]  # single weights may differ more: Adam moves by signs where nothing pulls
        far, size = (float(x.double().norm()) for x in (value - other, value))
        assert far <= 1e-4 * max(1.0, size), name


def test_names_of_tensors_are_the_same(make: Make) -> None:
    found = []
    for more in ((), (COMPILED,)):
        trainer = make(*more)
        next(trainer.run(1))
        found.append(tensors_of(trainer.method, trainer.optimizers))
        assert not any("forward" in vars(m) for m in trainer.method.modules())  # nothing is left behind
    assert found[0].keys() == found[1].keys()
    assert any(name.startswith("optimizer0.") for name in found[0])


def test_micro_batches_are_equal_where_they_can_be(make: Make) -> None:
    def sizes(rows: int, micro: int, *more: str) -> list[int]:
        phases = f"training.phases=[{{share: 1.0, length: 64, rows: {rows}}}]"
        trainer = make(phases, f"training.micro_tokens={64 * micro}", *more)
        return [n for _, n in trainer._places(trainer.settings.phases[0], 0, 1)]

    assert sizes(8, 3) == [3, 3, 2]
    assert sizes(8, 3, COMPILED) == [2, 2, 2, 2]
    assert sizes(12, 5, COMPILED) == [4, 4, 4]
    assert sizes(8, 8, COMPILED) == [8]
    assert sizes(7, 3, COMPILED) == [3, 3, 1]  # one row at a time would be worse than a second graph


def test_kernels_are_named(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """As at the start of a run on a GPU."""
    with caplog.at_level("INFO", logger="cloze"):
        make(MODERN, LONG)._say_kernels()
    assert "rows of 160 tokens: global layers " in caplog.text
    assert ", local layers " in caplog.text


def test_an_encoder_compiled_by_itself_is_right_all_the_same(make: Make) -> None:
    """Without `sparse` around it, it is left out of the compiled code."""
    trainer = make()
    assert isinstance(trainer.method, TokenPrediction)
    encoder, batch = trainer.method.encoder.eval(), trainer.loaders[0].batch(0, 2)
    view, places = View.of(batch, batch.ids), torch.arange(9)
    with torch.no_grad():
        wanted, got = encoder(view, places), torch.compile(encoder)(view, places)
    assert torch.equal(wanted.features, got.features)


@pytest.mark.slow
def test_inductor(make: Make) -> None:
    options = (MODERN, LONG, MAPNET, "training.clip=1e9")
    eager, loss = gradients(make(*options))
    compiled, loss_of_compiled = gradients(make(*options, COMPILED))
    assert farthest(eager, compiled) <= 1e-5
    assert loss_of_compiled == pytest.approx(loss, abs=1e-5)
    trainer = make(*options, COMPILED, steps=12)
    before, steps = parameters(trainer), trainer.run(12)
    next(steps)
    with torch._dynamo.config.patch(error_on_recompile=True):
        losses = [result.loss for result in steps]
    assert losses[-1] < loss
    assert farthest(before, parameters(trainer)) > 0
