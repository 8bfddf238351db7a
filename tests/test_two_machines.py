"""Two torchruns that meet on loopback, each with a cache and a folder of its own, as two machines have."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small
from safetensors.torch import load_file

from cloze import Run

PATIENCE = 1500  # seconds: on a busy machine torch takes minutes to import
CLOCKS = {"seconds", "tokens_per_second", "took"}


def start(arguments: list[str], folder: Path, text: Path) -> subprocess.Popen[str]:
    """A torchrun that trains in `folder`, in which it stands, with a cache of its own."""
    sets = [part for value in (*small("mlm"), "training.budget=6steps") for part in ("--set", value)]
    command = [sys.executable, "-m", "torch.distributed.run", *arguments]
    command += ["-m", "cloze", "pretrain", "mlm", "--data", str(text), "--out", "run", *sets]
    folder.mkdir(parents=True)
    own = {"CLOZE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | own | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What they said; all of them ended well."""
    try:
        said = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


def read(run: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The lines of metrics.jsonl without clocks, and all tensors of the end."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    newest = max((run / "checkpoints").iterdir())
    tensors = load_file(newest / "training.safetensors") | load_file(run / "model" / "model.safetensors")
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines], tensors


@pytest.mark.slow
def test_two_machines_are_one_machine_with_two_processes(corpus: Path, trained: Run, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = ["--standalone", "--nproc-per-node", "2"]
    ended([start(alone, tmp_path / "one machine", corpus)])
    meet = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "test", "--rdzv-backend", "c10d"]
    meet += ["--rdzv-endpoint", f"127.0.0.1:{port}"]
    machines = [tmp_path / "first", tmp_path / "second"]
    texts = [Path(machine.with_suffix(".txt")) for machine in machines]
    for text in texts:  # of each machine's own disk
        text.write_bytes(corpus.read_bytes())
    said = ended([start(meet, m, t) for m, t in zip(machines, texts, strict=True)])
    written = [machine for machine in machines if (machine / "run").exists()]
    assert len(written) == 1  # the main process alone writes, wherever torchrun has put it
    assert all(any((machine / "cache").iterdir()) for machine in machines)  # both have tokenised
    lines, tensors = read(written[0] / "run")
    wanted_lines, wanted = read(tmp_path / "one machine" / "run")
    assert lines == wanted_lines
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    assert (
        json.loads((written[0] / "run" / "summary.json").read_text("utf-8"))["environment"]["processes"] == 2
    )
    assert "Traceback" not in "".join(said)
    # The control: one process has other last bits.
    assert any(not torch.equal(tensors[name], x) for name, x in read(trained.folder)[1].items())
