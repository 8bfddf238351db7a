"""ELECTRA: two networks, two terms, one table of token embeddings, and no gradient through samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import FIRST, SIZE, Sample, chi_square, make_samples, pack, rows_of, tile, tiny_model, vocabulary
from torch import Tensor
from transformers import ElectraForMaskedLM, ElectraForPreTraining

from cloze import ClozeError
from cloze.corruption.generator import Generator, sample
from cloze.data.batch import Batch
from cloze.masking.uniform import Uniform
from cloze.methods.build import Choices, build_method
from cloze.methods.electra import Electra
from cloze.methods.objectives import DetectionObjective
from cloze.models.encoder import isolate

TABLE = "encoder.model.electra.embeddings.word_embeddings.weight"


def method(family: str = "electra", on: str = "all", **corruption: float) -> Electra:
    choices = Choices(Uniform(rate=0.3), Generator(**corruption), objective=DetectionObjective(on=on))
    made = build_method(choices, isolate(tiny_model(family)), vocabulary(), seed=7)
    assert isinstance(made, Electra)
    return made.eval()


def packed() -> Batch:
    sizes = [[60], [1, 1, 2], [20, 20, 12], [3], [58]]
    return pack([*(make_samples(s, seed) for seed, s in enumerate(sizes, start=1)), []], length=64)


def gradients(m: Electra, term: str, batches: list[Batch] | None = None) -> dict[str, Tensor]:
    m.zero_grad()
    works = [m.prepare(b, 0.0) for b in batches or [packed()]]
    total = sum(float(m.weights(w)[term]) for w in works)
    for work in works:
        (m(work).sums[term] / total).backward()
    return {n: p.grad.clone() for n, p in m.named_parameters() if p.grad is not None and p.grad.any()}


def test_no_gradient_of_detection_reaches_the_generator_but_in_the_shared_embeddings() -> None:
    m = method()
    found = gradients(m, "detection")
    assert not any(name.startswith("generator") for name in found)
    assert {TABLE, "detector.model.discriminator_predictions.dense_prediction.weight"} <= found.keys()
    # The controls: its own term reaches the generator and the shared table, and nothing else of the model.
    own = gradients(m, "mlm")
    assert any(name.startswith("generator.model.electra.encoder") for name in own)
    assert {name for name in own if not name.startswith("generator")} == {TABLE}
    table = m.encoder.model.get_input_embeddings().weight
    assert m.generator.model.get_input_embeddings().weight is table
    assert m.generator.vocabulary.weight is table


def test_the_generator_is_small_and_its_table_is_counted_once() -> None:
    m = method(width=0.5, depth=0.5)
    config = m.generator.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 1, 1)
    assert config.embedding_size == m.encoder.model.config.embedding_size
    assert [n for n, p in m.named_parameters() if p is m.generator.vocabulary.weight] == [TABLE]
    assert method("bert", width=1.0, depth=0.5).generator.model.config.num_hidden_layers == 1
    assert method("modernbert", width=1.0, depth=0.5).generator.model.config.num_hidden_layers == 2
    with pytest.raises(ClozeError, match=r"corruption.width=0.25: a bert generator shares"):
        method("bert")


@pytest.mark.parametrize("on", ["all", "hidden"])
def test_all_hidden_tokens_are_written_anew_and_equal_ones_are_original(on: str) -> None:
    m, batch = method(on=on), packed()
    work = m.prepare(batch, 0.0)
    assert (work.views[0].ids[work.plan.hidden] == 4).all()  # the generator sees masks only
    out = m(work)
    seen, clean = out.feedback["seen"], batch.ids.flatten()[work.places]
    hidden = work.plan.hidden.flatten()[work.places]
    assert torch.equal(seen[~hidden], clean[~hidden])
    assert torch.equal(out.feedback["labels"] > 0, seen != clean)
    assert out.feedback["labels"][hidden].double().mean() > 0.8  # untrained: one in 91 is right by chance
    weights = m.weights(work)
    assert float(weights["mlm"]) == pytest.approx(float(work.plan.mass()))
    assert float(weights["detection"]) == (
        float((batch.index >= 0).sum()) if on == "all" else pytest.approx(float(work.plan.mass()))
    )
    assert out.sums["mlm"].item() / float(weights["mlm"]) > 3.0
    assert torch.isin(seen[hidden], m.vocabulary.ordinary).all()


def test_samples_follow_the_generators_distribution_and_the_temperature() -> None:
    draw = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(12, 4, generator=draw), torch.randn(12, generator=draw)
    one = torch.randn(1, 4, generator=draw)
    ordinary, number = torch.arange(2, 12), 20_000
    u = torch.rand(number, generator=draw, dtype=torch.float64)
    features = one.expand(number, 4)
    logits = (one @ weight.T + bias)[0, 2:]
    for temperature in (1.0, 0.5):
        found = sample(features, weight, bias, u, ordinary, temperature)
        expected = number * (logits / temperature).softmax(-1)
        common = expected > 20
        counts = torch.bincount(found, minlength=12)[2:]
        assert chi_square(counts[common], expected[common]) < 6
        other = number * (logits / (1.5 * temperature)).softmax(-1)  # the control
        assert chi_square(counts[common], other[common]) > 6
    cold = sample(features, weight, bias, u, ordinary, 1e-3)
    assert (cold == 2 + logits.argmax()).all()


def test_accumulation_packing_and_static_shapes_change_nothing() -> None:
    m, batch = method(), packed()
    for term in ("mlm", "detection"):
        wanted = gradients(m, term)
        found = gradients(m, term, [rows_of(batch, rows) for rows in ([4, 1], [0, 2, 3, 5])])
        assert found.keys() == wanted.keys()
        assert max(float((found[k] - wanted[k]).abs().max()) for k in wanted) < 1e-5
    work = m.prepare(batch, 0.0)
    padded = work.padded(work.places.numel() + 30, 64, False)
    a, b = m(work), m(padded)
    assert padded.hidden.numel() == 256
    for term in ("mlm", "detection"):
        assert b.sums[term].item() == pytest.approx(a.sums[term].item(), rel=1e-5)
        assert float(m.weights(padded)[term]) == pytest.approx(float(m.weights(work)[term]))


def test_other_visits_get_other_samples_and_the_same_one_the_same() -> None:
    m = method()
    row = pack([make_samples([60], 3)], 64)
    first, again, others = (m(m.prepare(b, 0.0)).feedback["seen"] for b in (row, row, tile(row, 2)))
    assert torch.equal(first, again)
    assert torch.equal(others[:60], first) and not torch.equal(others[60:], first)


def test_both_networks_go_out_as_stock_electra_models(tmp_path: Path) -> None:
    m = method()
    m.export().save_pretrained(tmp_path / "model")
    ((name, generator),) = m.companions().items()
    generator.save_pretrained(tmp_path / name)
    judge, report = ElectraForPreTraining.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    writer, report = ElectraForMaskedLM.from_pretrained(tmp_path / "generator", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    batch = pack([make_samples([60], 1)], length=62)
    work = m.prepare(batch, 0.0)
    with torch.no_grad():
        found = m(work).feedback
        ids = batch.ids.clone().flatten()
        ids[work.places] = found["seen"]
        logits = judge.eval()(input_ids=ids[None]).logits[0]
        assert (logits[work.places] - found["logits"]).abs().max() < 1e-5
        theirs = writer.eval()(input_ids=work.views[0].ids).logits[0, work.hidden]
        layer = m.generator.vocabulary
        ours = m.generator(work.views[0], work.hidden).features @ layer.weight.T + layer.bias
        assert (theirs - ours).abs().max() < 1e-4
    assert theirs.shape[1] == SIZE


def planted(step: int) -> Batch:
    """Texts of one token each, every seventh place another one of all tokens."""
    draw = torch.Generator().manual_seed(step)
    ids = torch.randint(FIRST, FIRST + 24, (16, 1), generator=draw).repeat(1, 30)
    other = torch.rand(16, 30, generator=draw) < 1 / 7
    ids = torch.where(other, torch.randint(FIRST, SIZE, (16, 30), generator=draw), ids)
    rows = [[Sample(100 * step + i, tuple(row.tolist()), tuple(range(30)))] for i, row in enumerate(ids)]
    return pack(rows, 32)


def test_fakes_become_fewer_than_the_rate_and_are_told_apart() -> None:
    m = method(width=1.0).train()
    adam = torch.optim.Adam(m.parameters(), lr=3e-3)
    numbers = []
    for step in range(100):
        work = m.prepare(planted(step), 0.0)
        outcome, weights, factors = m(work), m.weights(work), m.coefficients(0.0)
        loss = sum(factors[term] * total / weights[term] for term, total in outcome.sums.items())
        adam.zero_grad()
        loss.float().backward()  # type: ignore[union-attr]
        adam.step()
        m.observe([work], [outcome.feedback])
        numbers.append(m.log())
    rate = 0.3
    fakes = [n["replaced"] for n in numbers]
    areas = [n["auc"] for n in numbers]
    assert sum(areas[:3]) / 3 == pytest.approx(0.5, abs=0.12)  # untrained: the control
    assert sum(areas[-10:]) / 10 > 0.7
    assert sum(fakes[:5]) / 5 > 0.9 * rate
    assert sum(fakes[-10:]) / 10 < 0.85 * rate
