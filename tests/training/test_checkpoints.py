"""Checkpoints are whole or not believed, and whatever goes wrong, the newest good one is still there."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cloze.errors import ClozeError
from cloze.training import state
from cloze.training.optimisers import OptimizerChoice, build_optimizers
from cloze.training.state import Checkpoints, State, replace_folder, restore_tensors, tensors_of, write_json


class Net(nn.Module):
    """A table tied to a head, a matrix, a norm and a buffer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(16, 8)
        self.body = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))

    def loss(self, ids: Tensor) -> Tensor:
        logits = self.head(self.norm(self.body(self.table(ids))))
        return nn.functional.cross_entropy(logits, (ids + 1) % 16)


def export(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def no_note(text: str) -> None:
    raise AssertionError(text)


def steps(net: Net, optimizers: list[torch.optim.Optimizer], first: int, count: int) -> None:
    for step in range(first, first + count):
        ids = torch.arange(32).mul(step + 3) % 16
        net.loss(ids).backward()
        net.seen += step
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    """Three checkpoints, of steps 10, 20 and 30, of which all are kept."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (10, 20, 30):
        checkpoints.save(State(step=step, steps=40), {"x": torch.full((1000,), float(step))}, export)
    return checkpoints


def step_of(checkpoints: Checkpoints) -> tuple[int, list[str]]:
    """The step that is loaded, and what is said."""
    notes: list[str] = []
    found = checkpoints.load(notes.append)
    assert found is not None
    state, tensors = found
    assert torch.equal(tensors["x"], torch.full((1000,), float(state.step)))
    return state.step, notes


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_training_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    choice = OptimizerChoice.model_validate({"kind": kind})
    net = Net(0)
    optimizers = build_optimizers(net, choice)
    steps(net, optimizers, 0, 3)
    state = State(
        step=3, steps=9, tokens=5, seconds=0.1 + 0.2, cursors=[7, 8], metrics_bytes=9,
        recipe={"a": [1, None]},
        learned={"b": 1e-9}, heldout={"loss": 1 / 3}, window={"loss": 2 / 3}, data={"text": "é"}, threads=1,
        seconds_per_step=1e-3,
    )  # fmt: skip
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state, tensors_of(net, optimizers), export)
    steps(net, optimizers, 3, 4)

    found = checkpoints.load(no_note)
    assert found is not None
    assert found[0] == state
    other = Net(1)
    again = build_optimizers(other, choice)
    restore_tensors(found[1], other, again)
    assert other.head.weight is other.table.weight
    steps(other, again, 3, 4)
    expected, got = tensors_of(net, optimizers), tensors_of(other, again)
    assert expected.keys() == got.keys()
    assert any(name.startswith("optimizer0.exp_avg_sq.") for name in got)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_tied_tensors_are_saved_once() -> None:
    names = tensors_of(Net(0), [])
    assert "model.table.weight" in names
    assert "model.head.weight" not in names


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_tensors_of_another_model_are_refused(change: str) -> None:
    net = Net(0)
    tensors = dict(tensors_of(net, []))
    tensors["model.body.weight"] = torch.zeros(9, 9)
    if change == "missing":
        del tensors["model.body.weight"]
    with pytest.raises(ClozeError, match=r"body\.weight.*another model"):
        restore_tensors(tensors, net, [])


def test_nothing_saved_is_no_error(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", keep=2).load(no_note) is None
    (tmp_path / "some" / "notes").mkdir(parents=True)
    assert Checkpoints(tmp_path / "some", keep=2).load(no_note) is None


def test_the_newest_is_loaded(saved: Checkpoints) -> None:
    assert step_of(saved) == (30, [])


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "empty":
        content.clear()
    elif how == "flipped bit":
        content[-9] ^= 4
    else:
        assert how == "missing"
        path.unlink()
        return
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped bit", "missing"])
@pytest.mark.parametrize("file", ["training.safetensors", "config.json", "state.json"])
def test_a_damaged_one_falls_back_and_says_so(saved: Checkpoints, file: str, how: str) -> None:
    if (file, how) == ("config.json", "flipped bit"):
        (saved.path(30) / file).write_text("[]")  # as long as before
    else:
        damage(saved.path(30) / file, how)
    step, notes = step_of(saved)
    assert step == 20
    assert len(notes) == 1
    assert "step-00000030 is damaged" in notes[0]
    assert file in notes[0]


def test_state_that_is_valid_json_but_not_what_was_written(saved: Checkpoints) -> None:
    path = saved.path(30) / "state.json"
    content = json.loads(path.read_text())
    for other in (content | {"tokens": 1}, {**content, "stop": 1}, [], None, {"files": {}}):
        path.write_text(json.dumps(other))
        assert step_of(saved)[0] == 20


def test_two_damaged_ones_and_then_all(saved: Checkpoints) -> None:
    damage(saved.path(30) / "training.safetensors", "truncated")
    damage(saved.path(20) / "state.json", "missing")
    step, notes = step_of(saved)
    assert (step, len(notes)) == (10, 2)
    damage(saved.path(10) / "training.safetensors", "flipped bit")
    with pytest.raises(ClozeError, match="every checkpoint is damaged"):
        saved.load(notes.append)


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_keep_counts_the_newest(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(tmp_path, keep)
    for step in range(7):
        checkpoints.save(State(step=step), {"x": torch.full((1000,), float(step))}, export)
        assert checkpoints.steps() == list(range(max(0, step - keep + 1), step + 1))
    assert len(list(tmp_path.iterdir())) == keep


@pytest.mark.parametrize("keep", [1, 2])
def test_after_a_fall_back_the_good_ones_are_kept_and_the_damaged_ones_go(
    saved: Checkpoints, keep: int
) -> None:
    saved.keep = keep
    for step in (20, 30):
        damage(saved.path(step) / "training.safetensors", "truncated")
    assert step_of(saved)[0] == 10
    saved.save(State(step=15), {"x": torch.full((1000,), 15.0)}, export)
    assert saved.steps() == ([10, 15] if keep == 2 else [15])
    assert step_of(saved) == (15, [])


def test_saving_a_step_again_replaces_it(saved: Checkpoints) -> None:
    damage(saved.path(30) / "training.safetensors", "truncated")
    saved.save(State(step=30), {"x": torch.full((1000,), 30.0)}, export)
    assert saved.steps() == [10, 20, 30]
    assert step_of(saved) == (30, [])


@pytest.mark.parametrize("step", [30, 40])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_ones(saved: Checkpoints, step: int, error: BaseException) -> None:
    def failing(folder: Path) -> None:
        (folder / "half").write_bytes(b"x" * 1000)
        raise error

    with pytest.raises(type(error)):
        saved.save(State(step=step), {"x": torch.zeros(3)}, failing)
    assert step_of(saved) == (30, [])
    assert [p.name for p in sorted(saved.folder.iterdir())] == [f"step-000000{s}" for s in (10, 20, 30)]


def test_a_folder_left_by_a_kill_is_no_checkpoint_and_goes(saved: Checkpoints) -> None:
    left = saved.folder / ".step-00000037.tmp"
    left.mkdir()
    (left / "training.safetensors").write_bytes(b"half")
    assert saved.steps() == [10, 20, 30]
    assert step_of(saved) == (30, [])
    saved.save(State(step=40), {"x": torch.full((1000,), 40.0)}, export)
    assert not left.exists()
    assert step_of(saved) == (40, [])


def test_replace_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    replace_folder(target, lambda folder: write_json(folder / "a.json", 1))
    replace_folder(target, lambda folder: write_json(folder / "b.json", 2))
    assert [p.name for p in target.iterdir()] == ["b.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_write_json_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"é": [1, 2.5, None]})
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert json.loads(path.read_text("utf-8")) == {"é": [1, 2.5, None]}


@pytest.mark.parametrize("seed", range(20))
def test_the_only_good_one_is_never_deleted(seed: int, tmp_path: Path) -> None:
    """Saves, failed saves, kills and damage in any order: the newest good one is always found."""
    dice = random.Random(seed)
    checkpoints = Checkpoints(tmp_path, keep=dice.choice((1, 2, 3)))
    good: list[int] = []
    for step in range(1, 25):
        what = dice.choice(("save", "save", "fail", "kill", "damage"))
        if what == "save":
            checkpoints.save(State(step=step), {"x": torch.full((1000,), float(step))}, export)
            good.append(step)
        elif what == "fail":
            with pytest.raises(OSError, match="full"):
                checkpoints.save(State(step=step), {"x": torch.zeros(9)}, _full)
        elif what == "kill":
            (tmp_path / f".step-{step:08d}.tmp").mkdir()
        elif len(set(good) & set(checkpoints.steps())) > 1:
            damage(checkpoints.path(good.pop()) / "training.safetensors", dice.choice(("empty", "missing")))
        if good:
            assert step_of(checkpoints)[0] == good[-1]


def _full(folder: Path) -> None:
    (folder / "half").write_bytes(b"x")
    raise OSError(28, "the disk is full")


class _Touch:
    """What a pickle can do when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_no_checkpoint_even_with_the_right_digest(saved: Checkpoints, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    file = saved.path(30) / "training.safetensors"
    for name in ("training.pt", "pytorch_model.bin", "optimizer.pt"):  # beside it: nobody looks
        torch.save(_Touch(trap), saved.path(30) / name)
    assert step_of(saved) == (30, [])
    torch.save(_Touch(trap), file)
    content = json.loads((saved.path(30) / "state.json").read_text())
    digest = content.pop("digest")
    content["files"]["training.safetensors"] = state._digest(file)
    assert digest != state._digest_of(content)
    (saved.path(30) / "state.json").write_text(json.dumps(content | {"digest": state._digest_of(content)}))
    step, notes = step_of(saved)
    assert (step, len(notes)) == (20, 1)
    assert "training.safetensors" in notes[0]
    assert not trap.exists()
    torch.load(saved.path(30) / "training.pt", weights_only=False)  # the trap works
    assert trap.exists()


def test_a_kill_between_two_renames_loses_nothing(saved: Checkpoints) -> None:
    saved.path(30).rename(saved.folder / ".step-00000030.old")
    assert step_of(saved) == (30, [])
