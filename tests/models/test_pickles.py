"""A model that is a pickle is refused, and nothing in it runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cloze import ClozeError, Run
from cloze.models.build import load_body, load_causal_lm, load_decoder, load_masked_lm


class Touch:
    """What a pickle can do when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def trap(trained: Run, tmp_path: Path) -> Path:
    """A model folder whose weights are a pickle."""
    folder = tmp_path / "model"
    shutil.copytree(trained.folder / "model", folder)
    (folder / "model.safetensors").unlink()
    torch.save(Touch(tmp_path / "sprung"), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("load", [load_masked_lm, load_body, load_causal_lm, load_decoder])
def test_a_pickle_is_refused(load: Any, trap: Path) -> None:
    with pytest.raises(ClozeError, match="safetensors") as error:
        load(str(trap))
    assert "\n" not in str(error.value)
    assert not (trap.parent / "sprung").exists()


def test_weights_that_are_only_called_safetensors(trap: Path) -> None:
    (trap / "pytorch_model.bin").rename(trap / "model.safetensors")
    with pytest.raises(ClozeError, match="cannot be loaded"):
        load_masked_lm(str(trap))
    assert not (trap.parent / "sprung").exists()


def test_good_weights_in_a_pickle_are_refused_too(trained: Run, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained.folder / "model", folder)
    torch.save(trained.model.state_dict(), folder / "pytorch_model.bin")
    load_masked_lm(str(folder))  # the safetensors are taken
    (folder / "model.safetensors").unlink()
    with pytest.raises(ClozeError, match="safetensors"):
        load_masked_lm(str(folder))


def test_code_in_a_folder_is_not_run(trained: Run, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained.folder / "model", folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    names = {"AutoConfig": "code.Mine", "AutoModelForMaskedLM": "code.Mine"}
    config |= {"model_type": "mine", "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "code.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ClozeError, match="cannot be loaded"):
        load_masked_lm(str(folder))
    assert not (tmp_path / "sprung").exists()
