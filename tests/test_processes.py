"""Several processes: gradients, losses and learnt state are those of one; runs start, stop and go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Job, Seen, Steps, both, joined, runs
from safetensors.torch import load_file

from cloze.recipes.load import shipped
from cloze.run import Run

BIG = "training.clip=1e9"
SPANS = "masking={kind: spans, rate: 0.15}"
CAUSAL = (
    "variants={causal: {masking: {kind: none}, visibility: {kind: causal}, objective: {kind: next_token}}}"
)
JOBS = {
    "whole": Steps(number=1, changes=(BIG, SPANS)),
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
REPRESENTATIVE = ("mlm", "auto", "electra", "gpt-bert")
TIMES = {"seconds", "tokens_per_second", "took"}


@pytest.fixture(scope="module")
def made(corpus: Path, trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process gave and what two gave: of steps, and of whole runs."""
    jobs, folder = JOBS | LEARNERS | LONG, tmp_path_factory.mktemp("ranks")
    said = joined(2, folder, both, str(corpus), jobs, whole_runs(REPRESENTATIVE, 2, trained, folder))
    one, _ = both(str(corpus), jobs, whole_runs(REPRESENTATIVE, 1, trained, folder))
    return (one, [answer[0] for answer in said]), (folder, [answer[1] for answer in said])


@pytest.fixture(scope="module")
def one_and_two(made: Any) -> tuple[Any, list[Any]]:
    """The steps of one process, and of each of two."""
    return made[0]


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max() / max(1.0, float(a[n].abs().max()))) for n in a)


@pytest.mark.parametrize("name", JOBS)
def test_gradients_are_those_of_one_process(name: str, one_and_two: Any) -> None:
    one, two = one_and_two[0][name], [found[name] for found in one_and_two[1]]
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
    seen: list[Seen] = [found["whole"] for found in one_and_two[1]]
    shares = [sum(found.own) / sum(found.predicted) for found in seen]
    assert abs(shares[0] - 0.5) > 1e-3


@pytest.mark.parametrize("name", LEARNERS)
def test_what_learns_is_the_same_in_all(name: str, one_and_two: Any) -> None:
    one, (first, second) = one_and_two[0][name], [found[name] for found in one_and_two[1]]
    assert len(one.buffers) >= 2
    assert all(torch.equal(first.buffers[n], second.buffers[n]) for n in first.buffers)
    assert farthest(one.buffers, first.buffers) <= 3e-6
    assert first.losses == pytest.approx(one.losses, abs=1e-6)


def test_losses_over_many_steps(one_and_two: Any) -> None:
    one, two = one_and_two[0]["long"], one_and_two[1][0]["long"]
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
    assert [(x["kind"], x["step"]) for x in lines] == [(x["kind"], x["step"]) for x in lines_of_both]
    for one, other in zip(lines, lines_of_both, strict=True):
        same = {"tokens", "loss", "learning_rate", "gradient_norm", "rate", "losses", "predicted", "copies"}
        for key in same & one.keys():
            assert other[key] == pytest.approx(one[key], rel=1e-4), key


def whole_runs(recipes: Sequence[str], number: int, trained: Run, folder: Path) -> list[Job]:
    """A run of each recipe, for so many processes."""
    jobs = []
    for recipe in recipes:
        options = {"model": str(trained.folder / "model")} if recipe == "adapt" else {}
        changes = (halved(recipe),) if number == 1 else ()
        jobs.append(Job(recipe, folder / f"{recipe}-{number}", changes, options))
    return jobs


def check(recipe: str, number: int, folder: Path, said: list[Any]) -> None:
    first, second = (answers[number] for answers in said)
    assert first == second
    assert isinstance(first, dict), first
    assert first["environment"]["processes"] == 2
    compare(folder / f"{recipe}-1", folder / f"{recipe}-2")


@pytest.mark.parametrize("recipe", REPRESENTATIVE)
def test_representative_recipes(recipe: str, made: Any) -> None:
    check(recipe, REPRESENTATIVE.index(recipe), *made[1])


@pytest.fixture(scope="module")
def every(corpus: Path, trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("every")
    runs(str(corpus), whole_runs(shipped(), 1, trained, folder))
    return folder, joined(2, folder, runs, str(corpus), whole_runs(shipped(), 2, trained, folder))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", shipped())
def test_every_recipe(recipe: str, every: Any) -> None:
    check(recipe, shipped().index(recipe), *every)
