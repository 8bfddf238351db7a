"""A model folder for others: a run's model copied out, or the mean of several (a soup)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from cloze.errors import ClozeError
from cloze.models.detector import is_detector
from cloze.models.twins import is_decoder, is_encoder_decoder
from cloze.training.state import replace_folder

WEIGHTS = "model.safetensors"
MIXED = ("config.json", "tokenizer.json")  # which models of one soup have in common


def export_model(runs: Sequence[Path], to: Path) -> None:
    """Copy the model of a run to a new folder; of several runs the mean of their weights.

    Such a mean (a model soup, 2203.05482; the course soups of 2305.03981) is of use for runs that went on
    from one model, with another order, other masks or courses: weights of unrelated runs do not mix.

    Errors: no run, models of other shapes or tokenizers, a target that exists.
    """
    sources = [run / "model" for run in runs]
    for run, source in zip(runs, sources, strict=True):
        if not (source / "config.json").is_file():
            raise ClozeError(f"{run} holds no run with a model")
    if to.exists():
        raise ClozeError(f"{to} exists already: choose another --to folder")
    mean = _mean(sources) if len(sources) > 1 else None

    def fill(folder: Path) -> None:
        shutil.copytree(sources[0], folder, dirs_exist_ok=True)
        if mean is not None:
            save_file(mean, folder / WEIGHTS, metadata={"format": "pt"})
            names = ", ".join(run.name for run in runs)
            (folder / "README.md").write_text(f"# Soup\n\nThe mean of the weights of {names}.\n", "utf-8")

    try:
        replace_folder(to, fill)
    except OSError as error:
        first = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
        raise ClozeError(f"{to}: cannot be written ({first})") from error


def auto_class(folder: Path) -> str:
    """Name of the class of transformers that loads a model folder."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if is_detector(config):
        return (
            "AutoModelForPreTraining" if config.model_type == "electra" else "AutoModelForTokenClassification"
        )
    if is_encoder_decoder(config):
        return "AutoModelForSeq2SeqLM"
    return "AutoModelForCausalLM" if is_decoder(config) else "AutoModelForMaskedLM"


def _mean(folders: Sequence[Path]) -> dict[str, Tensor]:
    """{name: mean of the models' tensors}, added up in float64."""
    first = folders[0]
    for other in folders[1:]:
        for name in MIXED:
            if _json(first / name) != _json(other / name):
                raise ClozeError(f"{other.parent}: its {name} is not that of {first.parent}: they do not mix")
    totals: dict[str, Tensor] = {}
    for folder in folders:
        try:
            tensors = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise ClozeError(f"{folder / WEIGHTS}: cannot be read ({error})") from None
        for name, tensor in tensors.items():
            total = totals.setdefault(name, torch.zeros(tensor.shape, dtype=torch.float64))
            total += tensor
        kinds = {name: tensor.dtype for name, tensor in tensors.items()}
    return {name: (total / len(folders)).to(kinds[name]) for name, total in totals.items()}


def _json(file: Path) -> object:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        raise ClozeError(f"{file}: cannot be read") from None
