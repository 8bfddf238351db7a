"""Several processes on this machine, joined by gloo, and what they are asked to do in the tests."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import small
from torch.distributed.tensor import DTensor
from training.stepping import Capture

from cloze import ClozeError, pretrain
from cloze.assembly import method_of
from cloze.data.corpus import open_corpus
from cloze.diagnosis import online
from cloze.errors import SharedError
from cloze.masking import stratified, trust
from cloze.methods.build import vocabulary_of
from cloze.models.build import build_model
from cloze.models.encoder_decoder import wrap
from cloze.processes import Processes, summed
from cloze.recipes.load import load_recipe
from cloze.training.loop import Trainer
from cloze.training.state import State

PATIENCE = 500  # seconds until processes that wait for each other are ended


def joined(number: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(*arguments)` gives in each of so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = [folder / f"answer-{rank}.pt" for rank in range(number)]
    processes = []
    for rank, answer in enumerate(answers):
        process = context.Process(target=_life, args=(rank, number, port, answer, work, arguments))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(PATIENCE)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0] * number
    return [torch.load(answer, weights_only=False) for answer in answers]


def _life(rank: int, number: int, port: int, answer: Path, work: Callable[..., Any], arguments: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.save(work(*arguments), answer)


# -- steps of a trainer -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """Steps of a trainer of a tiny recipe.

    Attributes:
        starved: the second half of every step's rows has nothing that can be masked.
        frozen: the model stays as it is, and its gradients are kept.
        changes: overrides of the recipe.
    """

    recipe: str = "mlm"
    number: int = 3
    changes: Sequence[str] = ()
    starved: bool = False
    frozen: bool = True


@dataclass(frozen=True)
class Seen:
    """What steps gave: of the last one the gradients, and what was learnt outside of them."""

    losses: list[float] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)  # predicted tokens of this process alone
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    held: tuple[int, int] = (0, 0)  # numbers that this process keeps of the parameters, and all of them
    divided: bool = False  # all parameters are DTensors


def steps(data: str, jobs: dict[str, Steps]) -> dict[str, Seen]:
    """Run every job in the processes that there are."""
    processes = Processes()
    with pytest.MonkeyPatch.context() as patch:  # what is learnt is used within a few steps
        patch.setattr(trust, "WARM", 2)
        patch.setattr(trust, "MARGIN", -1.0)
        patch.setattr(stratified, "FIRST_FREEZE", 1)
        return {name: _steps(processes, data, job) for name, job in jobs.items()}


def _steps(processes: Processes, data: str, job: Steps) -> Seen:
    recipe = load_recipe(job.recipe, [*small(job.recipe), *job.changes], {"data": {"sources": [data]}})
    corpus = processes.in_turn(lambda: open_corpus(recipe.data, recipe.tokenizer))
    encoder = wrap(build_model(recipe.model, corpus.tokenizer, recipe.seed))
    counts = torch.ones(encoder.vocabulary.weight.shape[0])
    method = method_of(recipe, encoder, vocabulary_of(corpus.tokenizer), counts).train()
    layouts = [corpus.layout(phase.length, encoder.longest(), False) for phase in recipe.training.phases]
    loaders = [corpus.loader(layout, recipe.seed) for layout in layouts]
    settings, state = recipe.training, State(steps=job.number)
    trainer = Trainer(
        method, loaders, settings, state, recipe.seed, Accelerator(cpu=True), recipe.stages
    )  # fmt: skip
    capture = Capture(method)
    if job.frozen:
        trainer.optimizers = [capture]  # type: ignore[list-item]
    prepare, own = method.prepare, []

    def starved(batch: Any, progress: float) -> Any:
        place = batch.place + torch.arange(batch.ids.shape[0])
        fed = place % settings.phases[0].rows < settings.phases[0].rows // 2
        batch = replace(batch, maskable=batch.maskable & fed[:, None]) if job.starved else batch
        work = prepare(batch, progress)
        own.append(int(work.predicted))
        return work

    method.prepare = starved  # type: ignore[method-assign]
    results = list(trainer.run(job.number))
    buffers = {n: b.clone() for n, b in method.named_buffers() if "masking" in n or "corruption" in n}
    predicted = [r.predicted for r in results]
    held = [(p.to_local() if isinstance(p, DTensor) else p).numel() for p in method.parameters()]
    size = sum(held), sum(p.numel() for p in method.parameters())
    divided = all(isinstance(p, DTensor) for p in method.parameters())
    return Seen([r.loss for r in results], predicted, own, capture.gradients, buffers, size, divided)


# -- whole runs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A run of a tiny recipe."""

    recipe: str
    out: Path
    changes: Sequence[str] = ()
    options: dict[str, Any] = field(default_factory=dict)


def runs(data: str, jobs: Sequence[Job]) -> list[dict[str, Any] | str]:
    """Summaries of the runs, made one after the other; of one that cannot be made the error."""
    found: list[dict[str, Any] | str] = []
    for job in jobs:
        with pytest.MonkeyPatch.context() as patch:
            if job.recipe == "auto":  # it decides by what is measured, in tiny runs too
                patch.setattr(online, "SHARE", 1e9)
                patch.setattr(online, "MOST", 6)
            # Muon orthogonalises in bfloat16: of a gradient's last bit that makes a thousandth of an update.
            patch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
            try:
                changes = [*small(job.recipe), *job.changes]
                found.append(pretrain(job.recipe, data, job.out, overrides=changes, **job.options).summary)
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")
    return found


def both(data: str, jobs: dict[str, Steps], whole: Sequence[Job]) -> tuple[Any, ...]:
    """Steps, whole runs, and how processes get on."""
    return steps(data, jobs), runs(data, whole), manners()


@dataclass
class Stop:
    """A listener that sends SIGTERM to its own process at a step."""

    step: int

    def begin(self, steps: int) -> None:
        pass

    def record(self, record: dict[str, Any]) -> None:
        if (record["kind"], record["step"]) == ("step", self.step):
            os.kill(os.getpid(), signal.SIGTERM)


# -- processes themselves ---------------------------------------------------------------------------------


def manners() -> dict[str, Any]:
    """What the last of the processes has goes to all, and what the main one has."""
    processes = Processes()
    last = processes.index == processes.number - 1

    def broken(error: Exception | None) -> str:
        try:
            with processes.together():
                if error is not None:
                    raise error
        except Exception as seen:
            return f"{type(seen).__name__}: {seen}"
        return "fine"

    def differs() -> str:
        try:
            processes.equal(last, "another letter")
        except SharedError as error:
            return str(error)
        return "fine"

    tensors = {"a": torch.arange(3.0) + processes.index, "b": torch.tensor(processes.index == 0)}
    integer, real = summed(torch.tensor([2**40 + processes.index]), torch.tensor(0.5))
    return {
        "fine": broken(None),
        "user's": broken(ClozeError("no such file") if last else None),
        "ours": broken(ValueError("a bug") if last else None),
        "differs": differs(),
        "from main": processes.from_main(processes.index),
        "tensors": {name: value.tolist() for name, value in processes.tensors_from_main(tensors).items()},
        "largest": processes.largest(15 if last else 0),
        "in turn": processes.in_turn(lambda: processes.index),
        "summed": (integer.tolist(), integer.dtype, float(real)),
    }
