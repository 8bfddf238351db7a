"""Several processes: gradients, losses and learnt state are those of one; runs start, stop and go on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from ranks import Job, Seen, Steps, Stop, both, joined, manners, runs
from safetensors.torch import load_file

from cloze.errors import ClozeError, SharedError
from cloze.launch import is_silent
from cloze.recipes.load import shipped
from cloze.run import Run

BIG = "training.clip=1e9"
SPANS = "masking={kind: spans, rate: 0.15}"
CAUSAL = (
    "variants={causal: {masking: {kind: none}, visibility: {kind: causal}, objective: {kind: next_token}}}"
)
JOBS = {
    "whole": Steps(number=1, changes=(BIG, SPANS)),
    "recomputed": Steps(
        number=1, changes=(BIG, SPANS, "model.layers=3", "training.gradient_checkpointing=true")
    ),
    "accumulated": Steps(number=1, changes=(BIG, SPANS, "training.micro_tokens=64")),
    "starved": Steps(number=1, changes=(BIG, SPANS, "training.micro_tokens=128"), starved=True),
    "unused parameters": Steps("rts", 1, (BIG, "training.micro_tokens=128")),
    "mixture": Steps(number=1, changes=(BIG, CAUSAL, "stages=[{use: {causal: 1, main: 7}}]")),
    "stages": Steps(number=4, changes=(CAUSAL, "stages=[{share: 0.5, use: causal}, {share: 0.5}]")),
}
LEARNERS = {
    "mapnet": Steps(changes=("masking={kind: mapnet, power: 1.0, learning_rate: 0.05}",), starved=True),
    "stratified": Steps(changes=("masking={kind: stratified, order: score}",)),
    "difficulty": Steps(changes=("masking={kind: difficulty}",), starved=True),
    "clusters": Steps("c-rts"),
}
# Rounding grows in training, by Adam where a gradient is next to nothing: so its epsilon is larger here.
LONG = {
    "long": Steps(
        number=50,
        changes=(SPANS, "training.optimizer={kind: adamw, epsilon: 1.0e-5}"),
        frozen=False,
    )
}
# How two processes go together, and what makes them do so.
WAYS = {"copies": (), "sharded": ("training.sharding=full",)}
REPRESENTATIVE = ("mlm", "auto", "gpt-bert")
SHARDED = ("gpt-bert",)  # of those sharded as well; `mlm` is stopped and goes on in one process
DIVIDED = (*JOBS, *LONG, "mapnet")  # which reads embeddings
TIMES = {"seconds", "tokens_per_second", "took"}


@pytest.fixture(scope="module")
def made(corpus: Path, trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process gave and what two gave: of steps, and of whole runs."""
    jobs, folder = JOBS | LEARNERS | LONG, tmp_path_factory.mktemp("ranks")
    ways = {f"copies {name}": job for name, job in jobs.items()}
    ways |= {f"sharded {n}": replace(jobs[n], changes=(*jobs[n].changes, *WAYS["sharded"])) for n in DIVIDED}
    whole = whole_runs(REPRESENTATIVE, 2, trained, folder) + whole_runs(
        SHARDED, 2, trained, folder, "sharded"
    )
    stopped = [Job("mlm", folder / name, options={"listeners": [Stop(4)]}) for name in ("two", "later-one")]
    stopped.append(replace(stopped[0], out=folder / "sharded", changes=WAYS["sharded"]))
    resumed = Job("mlm", folder / "two", options={"resume": True})
    said = joined(2, folder, both, str(corpus), ways, [*whole, *stopped, resumed])
    again = [
        Job("mlm", folder / name, (halved("mlm"),), {"resume": True}) for name in ("later-one", "sharded")
    ]
    one, _, _ = both(str(corpus), jobs, [*whole_runs(REPRESENTATIVE, 1, trained, folder), *again])
    steps_, runs_, manners_ = zip(*said, strict=True)
    return {"steps": (one, steps_), "runs": (folder, runs_), "manners": manners_}


@pytest.fixture(scope="module")
def one_and_two(made: Any) -> tuple[Any, list[Any]]:
    """The steps of one process, and of each of two."""
    found: tuple[Any, list[Any]] = made["steps"]
    return found


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max() / max(1.0, float(a[n].abs().max()))) for n in a)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", JOBS)
def test_gradients_are_those_of_one_process(name: str, way: str, one_and_two: Any) -> None:
    one, two = one_and_two[0][name], [found[f"{way} {name}"] for found in one_and_two[1]]
    assert len(one.gradients) > 10
    assert max(float(g.abs().max()) for g in one.gradients.values()) > 0.01
    assert all(farthest(one.gradients, found.gradients) <= 1e-6 for found in two)
    assert all(found.losses == pytest.approx(one.losses, abs=1e-6) for found in two)
    assert all(found.predicted == one.predicted for found in two)
    own = [sum(found.own) for found in two]
    assert sum(own) == sum(one.predicted)
    if "mixture" not in name and name != "unused parameters":
        assert own[0] != own[1]
    assert (own[1] == 0) == (name == "starved")


def test_a_mean_of_the_processes_means_would_be_seen(one_and_two: Any) -> None:
    """The control: what DDP alone would do is wrong by far more than the tests above allow."""
    seen: list[Seen] = [found["copies whole"] for found in one_and_two[1]]
    shares = [sum(found.own) / sum(found.predicted) for found in seen]
    assert abs(shares[0] - 0.5) > 1e-3


@pytest.mark.parametrize("name", DIVIDED)
def test_sharded_parameters_are_divided(name: str, one_and_two: Any) -> None:
    copies, sharded = ([found[f"{way} {name}"] for found in one_and_two[1]] for way in WAYS)
    whole = one_and_two[0][name].held[1]
    assert [seen.held for seen in copies] == [(whole, whole)] * 2
    assert all(seen.divided for seen in sharded)
    own = [seen.held[0] for seen in sharded]
    assert sum(own) == whole
    assert max(own) < 0.52 * whole
    assert not any(seen.divided for seen in copies)


@pytest.mark.parametrize(("name", "way"), [*((name, "copies") for name in LEARNERS), ("mapnet", "sharded")])
def test_what_learns_is_the_same_in_all(name: str, way: str, one_and_two: Any) -> None:
    one, (first, second) = one_and_two[0][name], [found[f"{way} {name}"] for found in one_and_two[1]]
    assert len(one.buffers) >= 2
    assert all(torch.equal(first.buffers[n], second.buffers[n]) for n in first.buffers)
    assert farthest(one.buffers, first.buffers) <= 3e-6
    assert first.losses == pytest.approx(one.losses, abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_losses_over_many_steps(way: str, one_and_two: Any) -> None:
    one, two = one_and_two[0]["long"], one_and_two[1][0][f"{way} long"]
    assert sum(one.losses[-10:]) < sum(one.losses[:10]) - 1.0
    assert two.losses == pytest.approx(one.losses, abs=1e-5)


# -- whole runs -------------------------------------------------------------------------------------------


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The metrics without times, and the last checkpoint's tensors."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    newest = max((folder / "checkpoints").iterdir())
    return [
        {k: v for k, v in line.items() if k not in TIMES} for line in lines
    ], load_file(newest / "training.safetensors")  # fmt: skip


def halved(recipe: str) -> str:
    """Micro-batches of one process as large as the batches of two."""
    return f"training.micro_tokens={64 * (8 if recipe == 'gpt-bert' else 4)}"


def compare(alone: Path, both: Path) -> None:
    """Two processes give what one gives with as many micro-batches."""
    (lines, tensors), (lines_of_both, tensors_of_both) = read(alone), read(both)
    assert farthest(tensors, tensors_of_both) <= 1e-5
    models = [load_file(folder / "model" / "model.safetensors") for folder in (alone, both)]
    assert farthest(*models) <= 1e-5
    assert [(x["kind"], x["step"]) for x in lines] == [(x["kind"], x["step"]) for x in lines_of_both]
    for one, other in zip(lines, lines_of_both, strict=True):
        same = {"tokens", "loss", "learning_rate", "gradient_norm", "rate", "losses", "predicted", "copies"}
        for key in same & one.keys():
            assert other[key] == pytest.approx(one[key], rel=1e-4), key


def whole_runs(
    recipes: Sequence[str], number: int, trained: Run, folder: Path, way: str = "copies"
) -> list[Job]:
    """A run of each recipe, for so many processes."""
    jobs = []
    for recipe in recipes:
        options = {"model": str(trained.folder / "model")} if recipe == "adapt" else {}
        changes = (halved(recipe),) if number == 1 else WAYS[way]
        name = f"{recipe}-{number}" if way == "copies" else f"{recipe}-{way}"
        jobs.append(Job(recipe, folder / name, changes, options))
    return jobs


def check(recipe: str, number: int, folder: Path, said: list[Any], way: str = "copies") -> None:
    first, second = (answers[number] for answers in said)
    assert first == second
    assert isinstance(first, dict), first
    assert first["environment"]["processes"] == 2
    compare(folder / f"{recipe}-1", folder / f"{recipe}-{2 if way == 'copies' else way}")


@pytest.mark.parametrize("recipe", REPRESENTATIVE)
def test_representative_recipes(recipe: str, made: Any) -> None:
    check(recipe, REPRESENTATIVE.index(recipe), *made["runs"])


@pytest.mark.parametrize("recipe", SHARDED)
def test_sharded_recipes(recipe: str, made: Any) -> None:
    check(recipe, len(REPRESENTATIVE) + SHARDED.index(recipe), *made["runs"], "sharded")


def test_saved_by_two_sharded_and_resumed_in_one(made: Any) -> None:
    folder, said = made["runs"]
    assert [answers[-2] for answers in said] == ["Interrupted: stopped at step 4"] * 2
    compare(folder / "mlm-1", folder / "sharded")


def test_a_signal_to_one_process_stops_all_and_resumes_in_two_or_in_one(made: Any) -> None:
    folder, said = made["runs"]
    ends = [[str(answer) for answer in answers[-4:-2]] for answers in said]
    assert ends == [["Interrupted: stopped at step 4"] * 2] * 2
    for whole, resumed in (("mlm-2", "two"), ("mlm-1", "later-one")):
        (lines, tensors), (lines_resumed, tensors_resumed) = read(folder / whole), read(folder / resumed)
        assert farthest(tensors, tensors_resumed) == 0.0
        assert lines == lines_resumed
    status = json.loads((folder / "two" / "summary.json").read_text("utf-8"))["status"]
    assert status == "finished"
    assert said[0][-1] == said[1][-1]


def test_an_error_of_one_ends_all_and_is_told_by_the_main_one(made: Any) -> None:
    first, second = made["manners"]
    assert first["fine"] == second["fine"] == "fine"
    assert first["user's"] == second["user's"] == "SharedError: process 1: no such file"
    assert first["ours"] == "SharedError: process 1: ValueError('a bug')"
    assert second["ours"] == "ValueError: a bug"
    assert first["differs"] == second["differs"] == "process 1 has another letter than process 0"


def test_what_the_main_process_has_and_what_all_have(made: Any) -> None:
    first, second = made["manners"]
    assert first["from main"] == second["from main"] == 0
    assert first["tensors"] == second["tensors"] == {"a": [0.0, 1.0, 2.0], "b": True}
    assert first["largest"] == second["largest"] == 15
    assert (first["in turn"], second["in turn"]) == (0, 1)
    assert first["summed"] == second["summed"] == ([2**41 + 1], torch.int64, 1.0)
    alone = manners()
    assert alone["user's"] == "ClozeError: no such file"
    assert alone["ours"] == "ValueError: a bug"


@pytest.mark.parametrize(
    ("rank", "local", "error", "silent"),
    [
        (0, 0, ClozeError("x"), False),
        (1, 1, ClozeError("x"), True),  # before they are joined: the first of its machine shows it
        (8, 0, ClozeError("x"), False),
        (8, 0, SharedError("x"), True),
        (0, 0, SharedError("x"), False),
    ],
)
def test_who_shows_an_error(
    rank: int, local: int, error: Exception, silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local))
    assert is_silent(error) == silent


@pytest.mark.parametrize("command", [("recipes",), ("pretrain", "mlm", "--dry-run")])
def test_what_is_one_process_refuses_to_be_several(
    command: tuple[str, ...], cloze: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = cloze(*command)
    assert result.code == 2
    assert "is one process: start it without torchrun" in result.err
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cloze(*command).err == ""


@pytest.mark.slow
def test_torchrun(corpus: Path, tmp_path: Path) -> None:
    """The command of the documentation: what it shows is shown once, an error is one line."""

    def start(*options: str) -> subprocess.CompletedProcess[str]:
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        sets = [part for change in (*TINY, *options) for part in ("--set", change)]
        command = (*torchrun, "-m", "cloze", "pretrain", "mlm", "--data", str(corpus), *sets)
        command = (*command, "--out", str(tmp_path / f"run-{len(options)}"))
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    good = start()
    assert good.returncode == 0, good.stderr
    assert good.stdout.count("held-out loss") == 1
    assert good.stderr.count("held-out loss") == 3
    assert "Warning" not in good.stderr
    bad = start("training.phases=[{share: 1.0, length: 64, rows: 7}]")
    assert bad.returncode == 1
    errors = [line for line in bad.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "7 rows cannot be split over 2 process(es)" in errors[0]


@pytest.fixture(scope="module")
def every(corpus: Path, trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("every")
    runs(str(corpus), whole_runs(shipped(), 1, trained, folder))
    jobs = [job for way in WAYS for job in whole_runs(shipped(), 2, trained, folder, way)]
    return folder, joined(2, folder, runs, str(corpus), jobs)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", shipped())
def test_every_recipe(recipe: str, way: str, every: Any) -> None:
    check(recipe, list(WAYS).index(way) * len(shipped()) + shipped().index(recipe), *every, way)


@pytest.mark.slow
def test_saved_by_two_sharded_and_resumed_in_three(corpus: Path, tmp_path: Path) -> None:
    changes = (
        "training.phases=[{share: 1.0, length: 64, rows: 12}]",
        "training.optimizer.epsilon=1.0e-5",  # or Adam makes much of rounding
    )
    begun = Job("mlm", tmp_path / "sharded", (*changes, *WAYS["sharded"]), {"listeners": [Stop(4)]})
    assert joined(2, tmp_path, runs, str(corpus), [begun]) == [["Interrupted: stopped at step 4"]] * 2
    answers = joined(3, tmp_path, runs, str(corpus), [replace(begun, options={"resume": True})])
    assert all(isinstance(said, dict) for (said,) in answers), answers
    runs(str(corpus), [Job("mlm", tmp_path / "whole", (*changes, "training.micro_tokens=256"))])
    compare(tmp_path / "whole", begun.out)
