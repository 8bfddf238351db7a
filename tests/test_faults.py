"""Full disks, signals, clocks, memory and files that go: one clear line, and --resume gives the same run."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result
from safetensors.torch import load_file

import cloze.report.page
from cloze import ClozeError, Run
from cloze.data import corpus as corpus_module
from cloze.methods.token_prediction import TokenPrediction
from cloze.session import Session
from cloze.training.memory import ran_out
from cloze.training.state import Checkpoints, replace_folder
from cloze.training.tracking import Metrics

Train = Callable[..., Run]


@contextmanager
def full_disk(allowed: int = 1000) -> Iterator[None]:
    """No file grows beyond `allowed` bytes: writes fail as they do when the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fails_in(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> list[int]:
    """The disk is full during one call (from 0) of a function; the list grows with its calls."""
    function, calls = getattr(owner, name), []

    def run(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call + 1:
            with full_disk():
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    patch.setattr(owner, name, run)
    return calls


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The model, and all that the newest checkpoint keeps."""
    newest = max((folder / "checkpoints").iterdir())
    return load_file(newest / "training.safetensors") | load_file(folder / "model" / "model.safetensors")


def assert_same(a: Path, b: Path) -> None:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (corpus_module, "save_tokenizer", 0),
        (corpus_module, "prepare", 0),
        (Checkpoints, "save", 0),
        (Checkpoints, "save", 1),
        (Session, "_export", 3),  # of model/; the checkpoint before it is whole
        (cloze.report.page, "write_report", 0),
    ],
    ids=["tokenizer", "prepare", "first checkpoint", "checkpoint", "export", "report"],
)
def test_a_full_disk(
    owner: Any,
    name: str,
    call: int,
    train: Train,
    trained: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if owner is corpus_module:
        monkeypatch.setenv("CLOZE_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch, pytest.raises(ClozeError, match="File too large") as error:
        calls = fails_in(patch, owner, name, call)
        train(tmp_path / "run")
    assert len(calls) == call + 1
    assert "\n" not in str(error.value)
    for folder in (tmp_path / "run" / "checkpoints").glob("*"):
        assert folder.name.startswith("step-")  # nothing half-written takes the space
    train(tmp_path / "run", resume=True)
    assert_same(trained.folder, tmp_path / "run")


@pytest.mark.parametrize("gone", [False, True], ids=["before the export", "between its two renames"])
@pytest.mark.parametrize("before", [None, "3steps"], ids=["new run", "run with a larger budget"])
def test_a_kill_after_the_last_checkpoint_leaves_no_older_model(
    before: str | None,
    gone: bool,
    train: Train,
    trained: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What chaos.py found: nothing was left to train, so model/ stayed as it was three steps earlier."""
    run = tmp_path / "run"
    if before:
        train(run, budget=before)

    class Killed(BaseException):
        pass

    def replace(target: Path, fill: Callable[[Path], None]) -> None:
        if (run / "checkpoints" / "step-00000006").is_dir():
            if gone:
                shutil.rmtree(target)
            raise Killed
        replace_folder(target, fill)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("cloze.session.replace_folder", replace)
        train(run, resume=True)
    assert max((run / "checkpoints").iterdir()).name == "step-00000006"
    train(run, resume=True)
    wanted = load_file(run / "checkpoints" / "step-00000006" / "model.safetensors")
    found = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(found[name], x) for name, x in wanted.items())
    if not before:
        assert_same(trained.folder, run)


def test_text_that_vanishes_between_two_starts(
    train: Train, trained: Run, corpus: Path, tmp_path: Path
) -> None:
    text = Path(shutil.copy2(corpus, tmp_path / "text.txt"))
    run = train(tmp_path / "run", data=text, budget="3steps")
    before = weights(run.folder)
    text.unlink()
    with pytest.raises(ClozeError, match=r"text\.txt: no such file"):
        train(run.folder, data=text, resume=True)
    assert all(torch.equal(before[name], x) for name, x in weights(run.folder).items())
    shutil.copy2(corpus, text)
    assert train(run.folder, data=text, resume=True).summary["steps"] == 6


def test_a_clock_that_goes_back(
    train: Train, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    for number, checkpoint in enumerate(sorted((folder / "checkpoints").iterdir())):
        os.utime(checkpoint, (10**9 - number, 10**9 - number))  # the newest step is the oldest folder
    found = Checkpoints(folder / "checkpoints", keep=2).load(pytest.fail)
    assert found is not None
    assert found[0].step == 6
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 10**8)
    train(folder, resume=True)
    assert_same(trained.folder, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU), MemoryError()]
)
def test_out_of_memory_names_what_to_lower_and_the_run_goes_on(
    error: Exception, train: Train, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    forward, calls = TokenPrediction.forward, []

    def fails(self: TokenPrediction, work: Any) -> Any:
        calls.extend([1] * torch.is_grad_enabled())
        if len(calls) == 5:
            raise error
        return forward(self, work)

    with monkeypatch.context() as patch, pytest.raises(ClozeError) as stop:
        patch.setattr(TokenPrediction, "forward", fails)
        train(tmp_path / "run")
    assert "out of memory at step 4: lower training.micro_tokens" in str(stop.value)
    assert "(now 512), and go on with --resume" in str(stop.value)
    shutil.copytree(tmp_path / "run", tmp_path / "smaller")
    with caplog.at_level(logging.WARNING, "cloze"):
        smaller = train(tmp_path / "smaller", "training.micro_tokens=128", resume=True)  # no --force
    assert "micro_tokens: 128 instead of None: the last bits may differ" in caplog.text
    one, other = weights(trained.folder), weights(smaller.folder)
    assert all(
        torch.allclose(one[n].float(), other[n].float(), atol=1e-3) for n in one if n.startswith("model.")
    )
    train(tmp_path / "run", resume=True)
    assert_same(trained.folder, tmp_path / "run")


def test_other_errors_are_not_taken_for_it(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    assert not ran_out(RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**55)
    assert ran_out(real.value)
    monkeypatch.setattr(TokenPrediction, "forward", fails)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(tmp_path / "run")


def test_a_job_that_restarts_itself(
    cloze: Callable[..., Result], corpus: Path, tiny: tuple[str, ...], trained: Run, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The same command with --resume from the first start on: stopped by the scheduler, then run twice."""
    record = Metrics.record

    def preempted(self: Metrics, kind: str, step: int, **values: Any) -> None:
        record(self, kind, step, **values)
        if (kind, step) == ("step", 2):
            os.kill(os.getpid(), signal.SIGTERM)

    sets = [part for value in tiny for part in ("--set", value)]
    command = ["pretrain", "mlm", "--data", corpus, "--out", tmp_path / "run", "--resume", *sets]
    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "record", preempted)
        first = cloze(*command)
    assert first.code == 128 + signal.SIGTERM
    assert max(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == "step-00000002"
    assert cloze(*command).code == 0
    assert_same(trained.folder, tmp_path / "run")
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert cloze(*command).code == 0
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == files


def test_a_jump_of_the_loss_is_noted_once_and_not_again_after_a_resume(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    forward, steps = TokenPrediction.forward, []

    def jumps(self: TokenPrediction, work: Any) -> Any:
        outcome = forward(self, work)
        steps.extend([None] * torch.is_grad_enabled())
        if torch.is_grad_enabled() and len(steps) > 9:
            outcome.sums["mlm"] = outcome.sums["mlm"] * 1.5
        return outcome

    options = ("training.log_every=1", "evaluation.variance=false")
    monkeypatch.setattr(TokenPrediction, "forward", jumps)
    with caplog.at_level(logging.WARNING, "cloze"):
        train(tmp_path / "run", *options, budget="11steps")
        train(tmp_path / "run", *options, budget="13steps", resume=True)
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    notes = [line for line in lines if line["kind"] == "note" and "jumped" in line["message"]]
    assert [note["step"] for note in notes] == [10]
    assert "lower training.optimizer.learning_rate (now" in notes[0]["message"]
    assert caplog.text.count("the loss jumped to") == 1


OFFLINE = """
import socket, sys
def no(*_, **__):
    sys.stderr.write("NETWORK\\n")
    raise OSError("closed")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = no
from cloze.cli import main
main()
"""


def test_a_run_opens_no_socket(
    train: Train, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, closed)
    train(tmp_path / "run")
    assert_same(trained.folder, tmp_path / "run")


@pytest.mark.slow
def test_the_demo_goes_to_no_network_and_a_hub_id_does(tiny: tuple[str, ...], tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_OFFLINE")}
    sets = [part for value in tiny for part in ("--set", value)]
    command = ["pretrain", "demo", "--out", str(tmp_path / "run"), *sets, "--budget", "2steps"]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *command],
        env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stderr
    hub = subprocess.run(
        [
            sys.executable,
            "-c",
            OFFLINE,
            "pretrain",
            "mlm",
            "--data",
            "some/dataset",
            "--out",
            str(tmp_path / "b"),
        ],
        env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert hub.returncode == 2  # the same trap does see a hub id
    assert "NETWORK" in hub.stderr
