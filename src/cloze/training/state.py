"""The state of a run on disk: written whole or not at all, and checked before it is believed.

A checkpoint is a folder that stock transformers loads, with two more files: `training.safetensors` (all
parameters and the optimisers' state) and `state.json` (the rest, and a digest of every file).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cloze.errors import ClozeError
from cloze.training.sharding import full, part_of

_NAME = re.compile(r"step-(\d+)")


@dataclass
class State:
    """All that a run is, beside tensors.

    Attributes:
        step: steps done. steps: steps that the budget bought.
        tokens: tokens seen, padding not counted. seconds: time spent in steps and evaluations.
        cursors: rows consumed by each phase; phases of one length go on with the first one's.
        metrics_bytes: length of metrics.jsonl when this was saved.
        recipe: the resolved recipe.
        learned: state of learned policies and corruptions.
        heldout: the last held-out loss and accuracy, and the first.
        window: sums since the last line of metrics.jsonl, so that a resumed run writes the same next line.
        data: digests of the text and of the tokenizer's vocabulary.
        threads: torch threads; another number gives other bits. precision: of forward passes; likewise.
        seconds_per_step: measured by the calibration, where there was one.
    """

    step: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cursors: list[int] = field(default_factory=list)
    metrics_bytes: int = 0
    recipe: dict[str, Any] = field(default_factory=dict)
    learned: dict[str, Any] = field(default_factory=dict)
    heldout: dict[str, float] = field(default_factory=dict)
    window: dict[str, float] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    threads: int = 0
    precision: str = ""
    seconds_per_step: float | None = None


def tensors_of(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every tensor of a run by name, tied parameters once; sharded ones whole in the main process alone."""
    found = {f"model.{n}": full(p.detach()) for n, p in model.named_parameters()}
    found |= {f"buffer.{n}": b for n, b in model.named_buffers()}
    for i, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                for key, value in optimizer.state.get(parameter, {}).items():
                    found[f"optimizer{i}.{key}.{name}"] = full(torch.as_tensor(value))
    return found


def restore_tensors(
    saved: dict[str, Tensor], model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Inverse of `tensors_of`. Errors: a parameter that is missing or of another shape.

    A masking policy that the checkpoint knows nothing of starts anew.
    """
    for prefix, members in (("model", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, own in members:
            value = saved.get(f"{prefix}.{name}")
            if value is None and name.startswith("masking."):
                continue
            if value is None or value.shape != own.shape:
                what = "lacks" if value is None else "has another shape of"
                raise ClozeError(f"the checkpoint {what} {name}: it was made by another model")
            own.detach().copy_(part_of(value, own))
    for i, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                start, end = f"optimizer{i}.", f".{name}"
                keys = [
                    k
                    for k in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
                    if start + k + end in saved
                ]
                # Copies, and on the parameter's device: fused optimisers keep even their step there.
                optimizer.state[parameter] = {k: part_of(saved[start + k + end], parameter) for k in keys}


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def writable_folder(folder: Path) -> Path:
    """The --out folder of a command, made and found writable before minutes are spent."""
    folder = folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClozeError(f"{folder}: cannot be written ({error.strerror or error})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ClozeError(f"{folder}: cannot be written (no permission): choose another --out folder")
    return folder


def replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a new folder and put it in the place of `target`; at any moment one of them is whole."""
    temporary, old = (target.with_name(f".{target.name}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
    except BaseException:  # a full disk wants its space back
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    mask = os.umask(0)
    os.umask(mask)
    for file in temporary.rglob("*"):  # safetensors keeps its files to their owner
        if file.is_file():
            file.chmod(0o666 & ~mask)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(temporary, target)
    shutil.rmtree(old, ignore_errors=True)


class Checkpoints:
    """The checkpoints of one run, newest last.

    Args:
        folder: where they are.
        keep: how many are kept; an older one goes only after a newer one is whole.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps of all finished checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(m[1]) for p in self.folder.iterdir() if (m := _NAME.fullmatch(p.name)))

    def path(self, step: int) -> Path:
        """Folder of one checkpoint."""
        return self.folder / f"step-{step:08d}"

    def save(self, state: State, tensors: dict[str, Tensor], export: Callable[[Path], None]) -> Path:
        """Write a checkpoint; `export` puts the model folder's files in place."""
        target = self.path(state.step)

        def fill(folder: Path) -> None:
            export(folder)
            contiguous = {k: v.contiguous().cpu() for k, v in tensors.items()}
            save_file(contiguous, folder / "training.safetensors")
            files = sorted(p for p in folder.iterdir() if p.is_file())
            content = asdict(state) | {"files": {p.name: _digest(p) for p in files}}
            write_json(folder / "state.json", content | {"digest": _digest_of(content)})
            for path in [*files, folder]:
                _sync(path)

        replace_folder(target, fill)
        _sync(self.folder)
        # Later ones were damaged when this run went back behind them.
        later = [step for step in self.steps() if step > state.step]
        earlier = [step for step in self.steps() if step < state.step]
        for step in later + earlier[: max(0, len(earlier) + 1 - self.keep)]:
            shutil.rmtree(self.path(step))
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover)
        return target

    def load(self, note: Callable[[str], None]) -> tuple[State, dict[str, Tensor]] | None:
        """The newest checkpoint that is whole; damaged ones are named to `note`. None: there is none.

        Errors: there are checkpoints, and all are damaged.
        """
        for old in self.folder.glob(".step-*.old"):  # a kill between the two renames of `replace_folder`
            target = self.folder / old.name[1:].removesuffix(".old")
            if not target.exists():
                os.replace(old, target)
        steps = self.steps()
        for step in reversed(steps):
            problem = damage(self.path(step))
            if problem is None:
                folder = self.path(step)
                content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                del content["files"], content["digest"]
                if content.keys() != {f.name for f in fields(State)}:
                    raise ClozeError(f"{folder}: was saved by another version of cloze; go on with that one")
                try:
                    return State(**content), load_file(folder / "training.safetensors")
                except SafetensorError as error:  # with a digest that fits, so it was written like this
                    problem = f"training.safetensors: {error}"
            note(f"checkpoint {self.path(step).name} is damaged ({problem}): going back to the one before")
        if steps:
            raise ClozeError(
                f"{self.folder}: every checkpoint is damaged; start again in another --out folder"
            )
        return None


def damage(folder: Path) -> str | None:
    """What is wrong with the checkpoint in a folder; None: nothing."""
    try:
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if content.pop("digest") != _digest_of(content):
            return "state.json is not what was written"
        for name, digest in content["files"].items():
            if _digest(folder / name) != digest:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "state.json cannot be read"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
