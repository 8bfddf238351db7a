"""Several GPUs, with processes that are none: one run at a time on each, errors, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cloze.comparison import devices
from cloze.comparison.devices import Place, error_of, gpus, log_of, places, run_on, start
from cloze.comparison.runs import Job
from cloze.recipes.load import load_recipe
from cloze.session import Interrupted


def jobs(folder: Path, count: int) -> list[Job]:
    recipe = load_recipe("mlm", ["training.budget=4steps"])
    (folder / "runs").mkdir()
    return [
        Job(
            "mlm",
            seed,
            recipe.model_copy(update={"seed": seed}),
            folder / "runs" / f"mlm-{seed}",
            1.0,
            1.0,
            {},
        )
        for seed in range(count)
    ]


def on(*gpus: str) -> list[Place]:
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus]


class Ears:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def begin(self, steps: int) -> None:
        self.heard.append(steps)

    def record(self, record: dict[str, Any]) -> None:
        self.heard.append(record["step"])


class Fake:
    """A process that writes a record each time one looks, and ends after a few."""

    def __init__(self, job: Job, looks: int, code: int = 0):
        self.job, self.left, self.code = job, looks, code
        self.signals: list[int] = []
        self.step = 0

    def poll(self) -> int | None:
        self.left -= 1
        if self.left <= 0:
            return self.code
        self.job.folder.mkdir(exist_ok=True)
        with (self.job.folder / "metrics.jsonl").open("a") as file:
            self.step += 1
            file.write(json.dumps({"kind": "step", "step": self.step}) + "\n" + '{"kind": "st')
            file.flush()
            file.truncate(file.tell() - 12)  # the half of a line is gone again when the next one comes
        return None

    def wait(self) -> int:
        self.left = 0
        self.code = 143
        return self.code

    def send_signal(self, sig: int) -> None:
        self.signals.append(sig)


class Machine:
    """Starts fakes and knows which GPU is busy."""

    def __init__(self, looks: int = 4, codes: dict[int, int] | None = None):
        self.looks, self.codes = looks, codes or {}
        self.started: list[tuple[int, str]] = []
        self.processes: list[Fake] = []

    def __call__(self, job: Job, place: Place) -> Fake:
        gpu = place["CUDA_VISIBLE_DEVICES"]
        busy = {g for (_, g), p in zip(self.started, self.processes, strict=True) if p.left > 0}
        assert gpu not in busy
        self.started.append((job.seed, gpu))
        self.processes.append(Fake(job, self.looks + job.seed, self.codes.get(job.seed, 0)))
        return self.processes[-1]


def test_every_run_is_made_once_and_every_gpu_is_used(tmp_path: Path) -> None:
    machine, ears, ended = Machine(), {}, []
    todo = jobs(tmp_path, 5)
    for job in todo:
        ears[job.seed] = Ears()
    run_on(on("0", "7"), todo, lambda j: ears[j.seed], lambda j, e: ended.append((j.seed, e)), machine, 0.0)
    assert sorted(ended) == [(seed, None) for seed in range(5)]
    assert [seed for seed, _ in machine.started] == [0, 1, 2, 3, 4]
    assert {gpu for _, gpu in machine.started} == {"0", "7"}
    assert ears[0].heard == [4, 1, 2, 3]


def test_an_error_is_told_and_what_runs_is_stopped(tmp_path: Path) -> None:
    machine = Machine(looks=3, codes={1: 2})
    todo = jobs(tmp_path, 4)
    log_of(todo[1]).write_text("reading\nerror: there is no text\n")

    def ended(job: Job, error: str | None) -> None:
        if error is not None:
            raise ValueError(f"{job.seed}: {error}")

    with pytest.raises(ValueError, match="1: there is no text"):
        run_on(on("0", "1", "2"), todo, lambda _: Ears(), ended, machine, 0.0)
    assert machine.processes[2].signals == [signal.SIGTERM]
    assert error_of(todo[2], 137) == f"ended with exit code 137; see {log_of(todo[2])}"


def test_ctrl_c_asks_every_run_once_and_starts_no_more(tmp_path: Path) -> None:
    machine, sent = Machine(looks=1000), []

    class Impatient(Ears):
        def record(self, record: dict[str, Any]) -> None:
            super().record(record)
            if record["step"] == 2 and not sent:
                sent.append(os.kill(os.getpid(), signal.SIGINT))

    with pytest.raises(Interrupted) as stopped:
        run_on(on("0", "1"), jobs(tmp_path, 3), lambda _: Impatient(), lambda *_: None, machine, 0.0)
    assert stopped.value.signal == signal.SIGINT
    assert [p.signals for p in machine.processes] == [[signal.SIGTERM]] * 2


def test_a_run_gets_its_gpu_and_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, Any] = {}

    def popen(command: list[str], **options: Any) -> str:
        called.update(options, command=command)
        return "process"

    monkeypatch.setattr(subprocess, "Popen", popen)
    job = jobs(tmp_path, 2)[1]
    assert start(job, {"CUDA_VISIBLE_DEVICES": "3"}) == "process"
    assert called["env"]["CUDA_VISIBLE_DEVICES"] == "3"
    assert called["start_new_session"]
    assert called["command"][3:] == [
        "pretrain",
        str(job.folder) + ".yaml",
        "--out",
        str(job.folder),
        "--resume",
    ]
    assert load_recipe(called["command"][4]) == job.recipe


def test_the_gpus_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == ["0", "1"]
    assert places(2) == on("0", "1", "0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert gpus() == ["3", "5"]
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 0)
    assert gpus() == []


def test_runs_on_the_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(devices.torch, "get_num_threads", lambda: 8)
    assert places() == [{"OMP_NUM_THREADS": "8"}]
    assert places(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert places(20) == [{"OMP_NUM_THREADS": "1"}] * 20
