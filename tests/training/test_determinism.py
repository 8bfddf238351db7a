"""`training.deterministic`: the same bits, an error where there are none, and nothing left changed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cloze import ClozeError, Run
from cloze.methods.token_prediction import TokenPrediction
from cloze.recipes.load import load_recipe
from cloze.training.determinism import FIXED, WORKSPACE, deterministic

Train = Callable[..., Run]
ON = "training.deterministic=true"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, "")  # so that it is put back
    monkeypatch.delenv(WORKSPACE)


def weights(run: Run) -> dict[str, torch.Tensor]:
    """The model, and all that the newest checkpoint keeps."""
    newest = max((run.folder / "checkpoints").iterdir())
    return load_file(newest / "training.safetensors") | load_file(run.folder / "model" / "model.safetensors")


def same(a: Run, b: Run) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def settings() -> tuple[bool, bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
    )


def test_on_inside_and_as_before_afterwards() -> None:
    before = settings()
    with deterministic(False):
        assert settings() == before
        assert WORKSPACE not in os.environ
    with deterministic(True):
        assert settings() == (True, False, True, False)
        assert os.environ[WORKSPACE] in FIXED
    assert settings() == before
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(KeyError), deterministic(True):
            raise KeyError
        assert settings()[:2] == (True, True)
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_variable_that_allows_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with (
        pytest.raises(ClozeError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0 .*set it to :4096:8"),
        deterministic(True),
    ):
        pass
    for value in FIXED:
        monkeypatch.setenv(WORKSPACE, value)
        with deterministic(True):
            assert os.environ[WORKSPACE] == value


def test_a_variable_that_comes_too_late(
    monkeypatch: pytest.MonkeyPatch, train: Train, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ClozeError, match="set it to :4096:8 before Python starts"):
        train(tmp_path / "run", ON)
    assert WORKSPACE not in os.environ
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic(True):
        pass


def test_a_run_on_a_cpu(train: Train, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits of a run without it, for the loop has no operation of the other kind; and it is on."""
    forward, seen = TokenPrediction.forward, []

    def run(self: TokenPrediction, work: object) -> object:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return forward(self, work)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(TokenPrediction, "forward", run)
        one = train(tmp_path / "one", ON)
    assert seen and all(seen)
    assert not torch.are_deterministic_algorithms_enabled()
    assert same(one, trained)


def test_an_operation_without_the_same_bits_is_one_line(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = TokenPrediction.forward

    def run(self: TokenPrediction, work: object) -> object:
        torch.nn.functional.max_unpool2d(
            torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.int64), 2
        )
        return forward(self, work)  # type: ignore[arg-type]

    monkeypatch.setattr(TokenPrediction, "forward", run)
    with pytest.raises(ClozeError, match=r"training\.deterministic: max_unpool.* set it to false") as error:
        train(tmp_path / "run", ON)
    assert "\n" not in str(error.value)
    train(tmp_path / "without")


def test_it_is_not_for_compiled_code() -> None:
    with pytest.raises(ClozeError, match=r"use training\.compile=false"):
        load_recipe("mlm", [ON, "training.compile=true"])


def test_a_resume_with_another_number_of_threads_says_that_bits_may_differ(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "run", budget="3steps")
    number = torch.get_num_threads()
    with caplog.at_level(logging.WARNING, "cloze"):
        train(tmp_path / "run", resume=True, budget="4steps")
        assert "bits may differ" not in caplog.text  # the control
        torch.set_num_threads(number + 1)
        try:
            train(tmp_path / "run", resume=True, budget="5steps")
        finally:
            torch.set_num_threads(number)
        assert f"threads: {number + 1} instead of {number}: the last bits may differ" in caplog.text
        caplog.clear()
        train(tmp_path / "run", ON, resume=True, budget="6steps")
    assert "deterministic: True instead of False: the last bits may differ" in caplog.text
    assert f"threads: {number} instead of {number + 1}" in caplog.text


SCRIPT = """
import json, sys, torch
from cloze.training.determinism import deterministic
a = torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda") if sys.argv[1] == "late" else None
try:
    with deterministic(True):
        b = torch.ones(64, 64, device="cuda")
        print(json.dumps(float((b @ b).sum())))
except Exception as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_the_variable_is_set_in_time_or_missed() -> None:
    found = {}
    for when in ("early", "late"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, when], capture_output=True, text=True, check=True
        )
        found[when] = json.loads(done.stdout)
    assert found["early"] == 64.0**3
    assert "before Python starts" in found["late"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    "recipe", ["mlm", "causal", "prefix", "mapnet", "rts", "gpt-bert", "mosaicbert", "enc-dec"]
)
def test_two_runs_on_a_gpu_are_bit_equal(
    recipe: str, precision: str, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start with CUBLAS_WORKSPACE_CONFIG=:4096:8, for other tests have used CUDA before."""
    monkeypatch.setenv(WORKSPACE, FIXED[0])
    changes = [ON, f"training.precision={precision}", "training.budget=30steps"]
    assert same(*(train(tmp_path / name, *changes, recipe=recipe) for name in ("one", "two")))
