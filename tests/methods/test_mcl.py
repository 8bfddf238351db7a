"""Course learning: what each course calls wrong, what is corrected, and that every course can be learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MASK, make_samples, pack, rows_of, tiny_model, vocabulary
from torch import Tensor

from cloze.auc import auc
from cloze.corruption.courses import Courses
from cloze.corruption.generator import Generator
from cloze.data.batch import Batch
from cloze.masking.uniform import Uniform
from cloze.methods.build import Choices, build_method
from cloze.methods.electra import Electra
from cloze.methods.mcl import Mcl
from cloze.methods.objectives import DetectionObjective
from cloze.models.encoder import isolate
from cloze.recipes.load import load_recipe

TERMS = {"mlm", "detection", "swapped", "inserted", "mlm_again", "detection_again"}


def method(family: str = "electra", **choices: Any) -> Mcl:
    made = build_method(
        Choices(Uniform(rate=0.3), Courses(**choices), objective=DetectionObjective()),
        isolate(tiny_model(family).double()),
        vocabulary(),
        seed=7,
    )
    assert isinstance(made, Mcl)
    return made.eval()


def packed() -> Batch:
    sizes = [[58], [1, 1, 2], [20, 20, 12], [3], [56]]
    return pack([make_samples(s, seed) for seed, s in enumerate(sizes, start=1)], length=64)


def gradient(m: Mcl, batches: list[Batch], terms: set[str] | None = None) -> dict[str, Tensor]:
    """As the loop adds it up."""
    m.zero_grad()
    works = [m.prepare(batch, 0.0) for batch in batches]
    factors = m.coefficients(0.0)
    totals = {t: sum(float(m.weights(w)[t]) for w in works) for t in factors}
    for work in works:
        sums = m(work).sums
        assert sums.keys() == factors.keys() == m.weights(work).keys()
        parts = [factors[t] * sums[t] / totals[t] for t in factors if terms is None or t in terms]
        torch.stack(parts).sum().backward()
    return {n: p.grad.clone() for n, p in m.named_parameters() if p.grad is not None and p.grad.any()}


def test_labels_of_each_course() -> None:
    m, batch = method(), packed()
    work = m.prepare(batch, 0.0)
    text = batch.index >= 0
    swapped, inserted = work.courses["swapped"], work.courses["inserted"]
    assert swapped.places.numel() == int(text.sum()) == inserted.places.numel() - inserted.filled.numel()
    changed = (swapped.view.ids != batch.ids)[text]
    assert torch.equal(swapped.labels, changed.long()) and 0.05 < float(changed.double().mean()) < 0.16
    assert int(inserted.labels.sum()) == inserted.filled.numel()
    assert (inserted.view.ids.flatten()[inserted.filled] == MASK).all()
    filled = m._filled(inserted)
    assert (filled.ids.flatten()[inserted.filled] != MASK).all()
    kept = filled.origin >= 0
    assert torch.equal(filled.ids[kept], batch.ids.flatten()[filled.origin[kept]])


def test_what_went_wrong_is_written_again_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    m, batch = method(), packed()
    work = m.prepare(batch, 0.0)
    written: list[tuple[Tensor, Tensor, Tensor]] = []
    write = Electra._write

    def kept(self: Electra, w: Any, view: Any, weights: Tensor, draws: Tensor) -> Any:
        found = write(self, w, view, weights, draws)
        written.append((view.ids, weights, found[1]))
        return found

    monkeypatch.setattr(Electra, "_write", kept)
    feedback = m(work).feedback
    (_, _, first), (ids, weights, second) = written
    guess = torch.zeros(batch.ids.numel()).long().index_copy(0, work.places, feedback["guess"])
    right = (first == batch.ids).flatten() & (guess == 0)
    notebook = torch.zeros(batch.ids.numel(), dtype=torch.bool).index_fill(0, work.hidden, True) & ~right
    assert 0 < int(notebook.sum()) <= work.hidden.numel()
    assert torch.equal(ids.flatten() == MASK, notebook)
    assert torch.equal(ids.flatten()[~notebook], batch.ids.flatten()[~notebook])
    assert torch.equal(weights > 0, notebook[work.hidden])
    assert torch.equal(second.flatten()[~notebook], batch.ids.flatten()[~notebook])
    labels = (second != batch.ids).flatten()[work.places].long()
    assert torch.equal(feedback["detection_again/labels"], labels)
    assert not torch.equal(first.flatten()[notebook], second.flatten()[notebook])


@pytest.mark.parametrize(
    ("choices", "gone"),
    [
        ({}, set()),
        ({"swapped": 0.0}, {"swapped"}),
        ({"inserted": 0.0}, {"inserted"}),
        ({"corrections": ()}, {"mlm_again", "detection_again"}),
        ({"corrections": ("model",)}, {"mlm_again"}),
        ({"corrections": ("generator",)}, {"detection_again"}),
    ],
)
def test_courses_can_be_left_out(choices: dict[str, Any], gone: set[str]) -> None:
    m = method(**choices)
    assert m.coefficients(0.0).keys() == TERMS - gone
    work = m.prepare(packed(), 0.0)
    assert m(work).sums.keys() == m.weights(work).keys() == TERMS - gone
    again = len(m.courses.corrections)
    fills = bool(m.courses.inserted)
    # ELECTRA's two; swapped; inserted and filled; the generator again, and the model.
    assert len(m.passes(work)) == 2 + bool(m.courses.swapped) + 2 * fills + bool(again) + (
        "model" in m.courses.corrections
    )


def test_without_courses_it_is_electra() -> None:
    m = method(swapped=0.0, inserted=0.0, corrections=())
    choices = Choices(Uniform(rate=0.3), Generator(), objective=DetectionObjective())
    plain = build_method(choices, isolate(tiny_model("electra").double()), vocabulary(), seed=7).eval()
    ours, theirs = (x(x.prepare(packed(), 0.0)) for x in (m, plain))
    assert ours.sums.keys() == theirs.sums.keys()
    assert all(torch.equal(ours.sums[t], theirs.sums[t]) for t in ours.sums)


@pytest.mark.parametrize("family", ["electra", "modernbert"])
def test_micro_batches_change_nothing(family: str) -> None:
    m = method(family, **({} if family == "electra" else {"generator": Generator(width=1.0, depth=0.5)}))
    batch = packed()
    whole = gradient(m, [batch])
    parts = gradient(m, [rows_of(batch, rows) for rows in ([0, 1], [2], [3, 4])])
    scale = max(float(g.abs().max()) for g in whole.values())
    assert whole.keys() == parts.keys()
    assert max(float((whole[n] - parts[n]).abs().max()) for n in whole) < 1e-6 * scale


def test_what_is_judged_teaches_the_model_and_what_is_written_the_generator() -> None:
    m, batch = method(), [packed()]
    table = "encoder.model.electra.embeddings.word_embeddings.weight"
    for terms, inside in (({"swapped", "inserted", "detection_again"}, True), ({"mlm_again"}, False)):
        names = set(gradient(m, batch, terms))
        assert table in names
        assert any(n.startswith("detector") for n in names) == inside
        assert any(n.startswith("encoder.model.electra.encoder") for n in names) == inside
        assert any(n.startswith("generator.model.electra.encoder") for n in names) != inside


def halves(number: int) -> Batch:
    """The first half of every sample is one token, the second half another."""
    batch = pack([make_samples([30], 100 * number + i) for i in range(12)], length=32)
    return replace(batch, ids=torch.where(batch.index >= 0, 10 + 40 * (batch.index >= 15), batch.ids))


def test_every_course_is_learnt_and_logged() -> None:
    """AUC on text that was not seen, by a generator that writes nearly anything; untrained it is a half."""
    torch.manual_seed(0)
    m = method(generator=Generator(width=0.5, temperature=8.0)).float().train()
    names = ("swapped", "inserted", "detection_again")

    def scores() -> dict[str, float]:
        with torch.enable_grad():
            found = m(m.prepare(halves(900), 0.0)).feedback
        pairs = [("detection", found["logits"], found["labels"])]
        pairs += [(n, found[f"{n}/logits"], found[f"{n}/labels"]) for n in names]
        return {name: auc(logits, labels > 0) for name, logits, labels in pairs}

    before = scores()
    optimizer = torch.optim.Adam(m.parameters(), lr=1e-3)
    for step in range(130):
        work = m.prepare(halves(step), 0.0)
        outcome = m(work)
        factors, weights = m.coefficients(0.0), m.weights(work)
        sum(factors[t] / 50 * v / weights[t] for t, v in outcome.sums.items()).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
        m.observe([work], [outcome.feedback])
    after, log = scores(), m.log()
    assert max(before.values()) < 0.65
    assert min(after.values()) > 0.8, after
    assert log["swapped/positive"] == pytest.approx(0.075, abs=0.03)  # half go to an equal one
    assert log["inserted/positive"] == pytest.approx(0.13, abs=0.03)
    assert 0.0 < log["replaced"] < 0.3 and 0.0 < log["detection_again/positive"] < 0.3
    assert {f"{name}/auc" for name in names} <= log.keys()


@pytest.mark.parametrize("override", ["objective.on=hidden", "training.compile=true"])
def test_what_it_cannot_do_is_refused(override: str) -> None:
    from cloze.errors import ClozeError

    with pytest.raises(ClozeError, match="judges all tokens of texts that become longer"):
        load_recipe("mcl", [override])


def test_a_run_costs_its_passes_and_both_networks_go_out(train: Callable[..., Any], tmp_path: Path) -> None:
    small = "model={kind: new, family: electra, layers: 1, width: 32, heads: 2, longest: 64}"
    run = train(tmp_path / "run", small, recipe="mcl")
    assert (run.folder / "model" / "config.json").is_file() and (run.folder / "generator").is_dir()
    log = (run.folder / "metrics.jsonl").read_text("utf-8")
    assert '"swapped/auc"' in log and '"inserted/positive"' in log and '"main/detection_again"' in log
