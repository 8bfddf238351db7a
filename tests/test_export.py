"""Models that are copied out, alone or as the mean of several."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from cloze.errors import ClozeError
from cloze.export import export_model
from cloze.run import Run

Train = Callable[..., Run]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def other(train: Train, trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The trained run gone on with, on other masks."""
    folder = tmp_path_factory.mktemp("other") / "run"
    return train(folder, "seed=5", recipe="adapt", model=str(trained.folder / "model"))


def test_a_soup_is_the_mean_of_the_weights(trained: Run, other: Run, tmp_path: Path) -> None:
    export_model([trained.folder, other.folder], tmp_path / "soup")
    a, b = weights(trained.folder / "model"), weights(other.folder / "model")
    soup = weights(tmp_path / "soup")
    assert soup.keys() == a.keys()
    assert any(not torch.equal(a[name], b[name]) for name in a)
    for name in soup:
        assert torch.allclose(soup[name], (a[name].double() + b[name]).div(2).float(), rtol=0, atol=1e-7)
        assert soup[name].dtype == a[name].dtype
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "soup")
    assert torch.equal(model.state_dict()["cls.predictions.bias"], soup["cls.predictions.bias"])
    assert "mean of the weights" in (tmp_path / "soup" / "README.md").read_text("utf-8")


def test_one_run_goes_out_as_it_is(trained: Run, tmp_path: Path) -> None:
    export_model([trained.folder], tmp_path / "one")
    names = {path.name for path in (trained.folder / "model").iterdir()}
    assert {path.name for path in (tmp_path / "one").iterdir()} == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (trained.folder / "model" / name).read_bytes()


def test_models_that_do_not_mix_are_refused(trained: Run, other: Run, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(other.folder, odd)
    config = json.loads((odd / "model" / "config.json").read_text("utf-8"))
    (odd / "model" / "config.json").write_text(json.dumps(config | {"hidden_size": 96}), "utf-8")
    with pytest.raises(ClozeError, match=r"odd: its config\.json is not that of .*: they do not mix"):
        export_model([trained.folder, odd], tmp_path / "soup")
    (odd / "model" / "config.json").write_text(json.dumps(config), "utf-8")
    (odd / "model" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ClozeError, match=r"model\.safetensors: cannot be read"):
        export_model([trained.folder, odd], tmp_path / "soup")
    with pytest.raises(ClozeError, match="holds no run with a model"):
        export_model([trained.folder, tmp_path], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()
