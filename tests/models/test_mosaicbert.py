"""MosaicBERT: its bias, padding and packing give the same, and its folder loads with and without cloze."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from evaluation.made_up_tasks import save_encoder, tagged, topic, write_task
from helpers import FIRST, PAD, SIZE, make_samples, pack, tiny_model
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import cloze
from cloze.corruption.view import View
from cloze.data.batch import Batch
from cloze.errors import ClozeError
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites import SUITES
from cloze.evaluation.suites.base import Options
from cloze.models.encoder import isolate
from cloze.models.families import MosaicBertForMaskedLM
from cloze.models.mosaicbert import bias_of, slopes_of
from cloze.models.twins import decoder_twin
from cloze.run import Run

SIZES = (9, 30, 1, 17)


def test_slopes_are_the_papers_and_the_bias_is_symmetric() -> None:
    assert torch.allclose(slopes_of(8), torch.tensor([2.0**-n for n in range(1, 9)]))
    assert torch.allclose(slopes_of(16)[:2], torch.tensor([2.0**-0.5, 2.0**-1]))
    bias = bias_of(slopes_of(4), 7)
    assert bias.shape == (4, 7, 7)
    assert torch.equal(bias, bias.transpose(1, 2))
    assert bias[1, 2, 6] == -4 * slopes_of(4)[1]
    assert (bias.diagonal(dim1=1, dim2=2) == 0).all()


def padded(samples: Batch) -> tuple[Tensor, Tensor]:
    """A row for each sample, and its mask."""
    parts = [samples.ids[samples.segments == n] for n in range(samples.samples)]
    ids = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=PAD)
    sizes = torch.tensor([part.numel() for part in parts])
    return ids, (torch.arange(ids.shape[1]) < sizes[:, None]).long()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padded_is_unpadded_in_outputs_and_gradients(implementation: str) -> None:
    """Rows of their own with a 2-D mask in transformers' attention, and one packed row in ours."""
    packed = pack([make_samples(SIZES, 3)], 70)
    ids, mask = padded(packed)
    place = (packed.segments.flatten() >= 0).nonzero().squeeze(1)
    pull = torch.randn(place.numel(), SIZE, generator=torch.Generator().manual_seed(0))

    def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    stock = tiny_model("mosaicbert")
    stock.set_attn_implementation(implementation)
    wanted = stock(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    (wanted * pull).sum().backward()
    encoder = isolate(tiny_model("mosaicbert"))
    features = encoder(View.of(packed, packed.ids), place).features
    found = torch.nn.functional.linear(features, encoder.vocabulary.weight, encoder.vocabulary.bias)
    (found * pull).sum().backward()
    assert (found - wanted).abs().max() < 1e-5
    theirs = gradients(stock)
    largest = max(float(g.abs().max()) for g in theirs.values())
    assert gradients(encoder.model).keys() == theirs.keys()
    for name, gradient in gradients(encoder.model).items():
        assert (gradient - theirs[name]).abs().max() < 1e-5 * largest, name
    blind = stock(input_ids=ids).logits[mask.bool()]  # the control: padding that is seen
    assert (blind - wanted).abs().max() > 1e-3


def test_a_mirrored_text_gives_mirrored_states() -> None:
    """Distances only: a model with positions, or with a bias of one side, would know the difference."""
    ids = torch.randint(FIRST, SIZE, (1, 40), generator=torch.Generator().manual_seed(2))
    for family, alike in (("mosaicbert", True), ("bert", False), ("modernbert", False)):
        model = tiny_model(family)
        with torch.no_grad():
            forwards, backwards = model(ids).logits, model(ids.flip(1)).logits.flip(1)
        assert (float((forwards - backwards).abs().max()) < 1e-4) == alike, family


def test_order_matters_nevertheless() -> None:
    model = tiny_model("mosaicbert")
    ids = torch.arange(FIRST, FIRST + 20)[None]
    other = ids[:, torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        first, second = model(ids).logits[0], model(other).logits[0]
    assert (first[0] - second[(other[0] == FIRST).nonzero()[0, 0]]).abs().max() > 1e-3


def test_heads_and_losses(tmp_path: Path) -> None:
    tiny_model("mosaicbert").save_pretrained(tmp_path)
    ids, mask = padded(pack([make_samples(SIZES, 3)], 70))
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3).eval()
    words = AutoModelForTokenClassification.from_pretrained(tmp_path, num_labels=5).eval()
    one = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).eval()
    out = whole(ids, mask, labels=torch.tensor([0, 1, 2, 1]))
    assert out.logits.shape == (4, 3)
    assert torch.allclose(out.logits[2], whole(ids[2:3, :3], mask[2:3, :3]).logits[0], atol=1e-5)
    tags = torch.where(mask.bool(), 1, -100)
    assert words(ids, mask, labels=tags).logits.shape == (*ids.shape, 5)
    masked = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    lost = [out.loss, words(ids, mask, labels=tags).loss, masked(ids, mask, labels=tags).loss]
    lost.append(one(ids, mask, labels=torch.ones(4)).loss)
    assert all(loss.isfinite() and loss.requires_grad for loss in lost)


REMOTE = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cloze":
            raise ImportError("cloze is not installed here")

sys.meta_path.insert(0, Without())
import torch
from transformers import AutoModelForMaskedLM, AutoModelForTokenClassification, AutoTokenizer

folder, ids = sys.argv[1], torch.arange(5, 45)[None]
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
torch.save(model(ids).logits, folder + "/logits.pt")
assert not any(name.partition(".")[0] == "cloze" for name in sys.modules)
assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True).mask_token == "[MASK]"
tagger = AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=True, num_labels=3)
assert tagger(ids).logits.shape == (1, 40, 3)
"""


def test_a_folder_loads_as_our_class_and_as_remote_code(tmp_path: Path) -> None:
    save_encoder(tmp_path, "mosaicbert")
    ids = torch.arange(5, 45)[None]
    ours = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert type(ours) is MosaicBertForMaskedLM
    assert type(AutoModel.from_pretrained(tmp_path)) is type(ours.model)
    kept = {"PYTHONPATH": "", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", REMOTE, str(tmp_path)],
        cwd=tmp_path, env=os.environ | kept, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    with torch.no_grad():
        assert (torch.load(tmp_path / "logits.pt") - ours(ids).logits).abs().max() < 1e-6
    again = tmp_path / "again"
    isolate(ours).model.save_pretrained(again)
    assert (again / "mosaicbert.py").read_text("utf-8") == (tmp_path / "mosaicbert.py").read_text("utf-8")


def test_a_run_leaves_a_model_that_every_command_takes(train: Callable[..., Run], tmp_path: Path) -> None:
    model = "model={kind: new, family: mosaicbert, layers: 1, width: 32, heads: 2, longest: 64}"
    run = train(tmp_path / "run", model, recipe="mosaicbert", budget="4steps")
    assert run.summary["heldout_loss"] < run.summary["heldout_loss_initial"]
    assert run.summary["model"]["family"] == "mosaicbert"
    assert type(run.model) is MosaicBertForMaskedLM
    assert "trust_remote_code=True" in (run.folder / "model" / "README.md").read_text("utf-8")
    assert "auto_map" in json.loads((run.folder / "model" / "config.json").read_text("utf-8"))
    logits = cloze.load(run.folder).logits("The old river")
    with torch.no_grad():
        stock = run.model.eval()(**run.tokenizer("The old river", return_tensors="pt")).logits[0]
    assert (logits - stock).abs().max() < 1e-4


@pytest.mark.parametrize(("suite", "make"), [("classify", topic), ("tag", tagged)])
def test_it_is_fine_tuned(suite: str, make: Callable[..., object], tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "model", "mosaicbert")
    data = write_task(tmp_path / "task", make, train=64)  # type: ignore[arg-type]
    found = SUITES[suite].run(Subject(folder), Options(data=str(data), seeds=1, epochs=1, length=32))
    assert all(0.0 <= value <= 1.0 for metric in found["task"].values() for value in metric)


def test_it_has_no_decoder_twin() -> None:
    with pytest.raises(ClozeError, match=r"^mosaicbert: a model that predicts the next token"):
        decoder_twin(tiny_model("mosaicbert"))
