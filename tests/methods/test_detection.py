"""Replaced-token detection: what is judged, by which loss, and what goes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import CLS, FIRST, PAD, SEP, SIZE, make_samples, pack, rows_of, tiny_model, vocabulary, widest
from torch import Tensor
from transformers import AutoModelForPreTraining, AutoModelForTokenClassification, ReformerConfig

from cloze import ClozeError
from cloze.corruption.replace import Replace, Vocabulary
from cloze.data.batch import Batch
from cloze.masking.uniform import Uniform
from cloze.methods.build import Choices, build_method
from cloze.methods.detection import Detection
from cloze.methods.objectives import DetectionObjective
from cloze.models.detector import Detector
from cloze.models.encoder import isolate

RANDOM = Replace(mask=0.0, random=1.0)


def method(
    family: str = "bert", on: str = "all", rate: float = 0.3, words: Vocabulary | None = None
) -> Detection:
    choices = Choices(Uniform(rate=rate), RANDOM, objective=DetectionObjective(on=on))
    made = build_method(choices, isolate(tiny_model(family)), words or vocabulary(), seed=7)
    assert isinstance(made, Detection)
    return made.eval()


def packed() -> Batch:
    sizes = [[60], [1, 1, 2], [20, 20, 12], [3], [58]]
    return pack([*(make_samples(s, seed) for seed, s in enumerate(sizes, start=1)), []], length=64)


def test_every_token_of_the_text_is_judged_and_nothing_else() -> None:
    batch = packed()
    work = method().prepare(batch, 0.0)
    ids, seen = batch.ids.flatten(), work.views[0].ids.flatten()
    assert torch.equal(work.places, (batch.index >= 0).flatten().nonzero().squeeze(1))
    assert not torch.isin(ids[work.places], torch.tensor([PAD, CLS, SEP])).any()
    assert torch.equal(work.labels, (ids != seen)[work.places].long())
    assert 0.25 < work.labels.double().mean() < 0.35
    assert work.plan.hidden.flatten()[work.places][work.labels > 0].all()  # what is not hidden stays
    hidden = method(on="hidden").prepare(batch, 0.0)
    assert torch.equal(hidden.places, work.plan.hidden.flatten().nonzero().squeeze(1))
    assert hidden.density == 0.3 and work.density == 1.0


def test_a_random_token_that_equals_the_original_counts_as_original() -> None:
    few = Vocabulary(SIZE, 4, torch.tensor([FIRST, FIRST + 1]))
    rows = [make_samples([60], s) for s in range(40)]
    batch = pack([[replace(s, ids=(FIRST,) * 60) for s in row] for row in rows], 64)
    work = method(words=few, on="hidden").prepare(batch, 0.0)
    assert work.labels.double().mean() == pytest.approx(0.5, abs=0.07)  # 720 draws of two tokens
    seen = work.views[0].ids.flatten()[work.places]
    assert torch.equal(work.labels > 0, seen == FIRST + 1)


@pytest.mark.parametrize("on", ["all", "hidden"])
def test_the_loss_is_binary_cross_entropy_whose_weight_is_known_before(on: str) -> None:
    m, batch = method(on=on), packed()
    work = m.prepare(batch, 0.0)
    weight = float(m.weights(work)["detection"])
    judged = float((batch.index >= 0).sum())
    if on == "all":
        assert weight == judged
    else:
        assert weight == pytest.approx(0.3 * judged, rel=0.1)
    out = m(work)
    logits = out.feedback["logits"]
    wanted = F.binary_cross_entropy_with_logits(logits, work.labels.float(), reduction="sum")
    assert out.sums["detection"].item() == pytest.approx(wanted.item(), rel=1e-6)
    assert torch.equal(out.feedback["seen"], work.views[0].ids.flatten()[work.places])
    padded = work.padded(work.places.numel() + 30, 64, False)
    assert m(padded).sums["detection"].item() == pytest.approx(wanted.item(), rel=1e-6)


def gradient(m: Detection, batches: list[Batch]) -> dict[str, Tensor]:
    m.zero_grad()
    works = [m.prepare(b, 0.0) for b in batches]
    total = sum(float(m.weights(w)["detection"]) for w in works)
    for work in works:
        (m(work).sums["detection"] / total).backward()
    return {k: p.grad.clone() for k, p in m.named_parameters() if p.grad is not None}


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    m, batch = method(), packed()
    wanted = gradient(m, [batch])
    found = gradient(m, [rows_of(batch, rows) for rows in ([4, 1], [0, 2, 3, 5])])
    assert found.keys() == wanted.keys()
    assert max(float((found[k] - wanted[k]).abs().max()) for k in wanted) < 1e-5
    assert {"detector.model.classifier.weight"} <= wanted.keys()
    assert not any("cls.predictions.bias" in k for k in wanted)  # the vocabulary layer has no part in it


def test_no_tensor_is_as_wide_as_the_vocabulary() -> None:
    m, batch = method(), packed()
    work = m.prepare(batch, 0.0)
    with torch.no_grad(), widest(SIZE) as seen:
        m(work)
    assert seen.rows <= SIZE  # the embedding table itself, at most


@pytest.mark.parametrize("family", ["bert", "modernbert", "electra", "roberta"])
def test_it_goes_out_as_a_stock_model_that_computes_the_same(family: str, tmp_path: Path) -> None:
    m = method(family)
    with torch.no_grad():
        m.detector.output.bias += 0.3  # a shift that would be seen
    m.export().save_pretrained(tmp_path)
    kind = AutoModelForPreTraining if family == "electra" else AutoModelForTokenClassification
    stock, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    names = {"electra": "ElectraForPreTraining", "modernbert": "ModernBertForTokenClassification"}
    assert type(stock).__name__ == names.get(family, type(stock).__name__)
    batch = pack([make_samples([60], 1)], length=62)  # without padding, which differs by family
    work = m.prepare(batch, 0.0)
    with torch.no_grad():
        logits = stock.eval()(input_ids=work.views[0].ids).logits[0]
        ours = m(work).feedback["logits"]
    theirs = logits if family == "electra" else logits[:, 1] - logits[:, 0]
    assert (theirs[work.places] - ours).abs().max() < 1e-5
    if family != "electra":
        assert stock.config.id2label == {0: "original", 1: "replaced"}


def test_a_family_that_judges_no_tokens_is_refused() -> None:
    model = SimpleNamespace(config=ReformerConfig(), dtype=torch.float32)
    with pytest.raises(ClozeError, match=r"reformer has no class that judges tokens"):
        Detector(model, 0)  # type: ignore[arg-type]
