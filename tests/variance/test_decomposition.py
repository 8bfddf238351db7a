"""The decomposition: exact with all masks, unbiased with drawn ones, the same in blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from variance.tiny_mlm import (
    HIDDEN,
    LENGTH,
    RATE,
    SEQUENCES,
    Urn,
    all_gradients,
    looked_up,
    loss_of,
    tiny,
    tiny_loss,
)

from cloze.errors import ClozeError
from cloze.variance import Decomposition, Estimate, decompose, enumerate_masks, population
from cloze.variance import decomposition as module

SEEDS = 300


def value(estimate: Estimate | None) -> float:
    assert estimate is not None and estimate.value is not None
    return estimate.value


def values(found: Decomposition) -> dict[str, float]:
    """All terms, with the Hamming curve as "distance 0.5", ...."""
    names = ("data", "mask", "total", "signal", "covariance", "break_even")
    terms = {name: value(getattr(found, name)) for name in names}
    return terms | {f"distance {d:g}": value(e) for d, e, _ in found.hamming}


def enumerated() -> dict[str, float]:
    """What `decompose` estimates, from all masks of the same sequences, in plain formulas."""
    g, masks = all_gradients(), enumerate_masks(LENGTH, HIDDEN).double()
    means = g.mean(1)
    apart = g - means[:, None]
    covariances = (apart @ apart.transpose(1, 2)).mean(0)  # [masks, masks]
    shared = masks @ masks.T
    between = means - means.mean(0)
    inner = means @ means.T
    terms = {
        "data": float((between**2).sum() / (SEQUENCES - 1)),
        "mask": float(covariances.diagonal().mean()),
        "signal": float((inner.sum() - inner.trace()) / (SEQUENCES * (SEQUENCES - 1))),
        "covariance": float(covariances[shared == 0].mean()),
        "distance 0.5": float(covariances[shared == 1].mean()),
    }
    terms |= {"distance 0": terms["mask"], "distance 1": terms["covariance"]}
    return terms | {
        "total": terms["data"] + terms["mask"],
        "break_even": terms["data"] + terms["covariance"],
    }


def deviations(seeds: int = SEEDS, masks: int = 8) -> dict[str, float]:
    """How far the mean over seeds is from the truth, in its standard errors."""
    loss, parameters = looked_up()
    sizes = [LENGTH] * SEQUENCES
    found = [values(decompose(loss, sizes, RATE, parameters, masks=masks, seed=s)) for s in range(seeds)]
    truth = enumerated()
    assert set(found[0]) == set(truth)
    columns = {name: torch.tensor([f[name] for f in found], dtype=torch.float64) for name in truth}
    return {n: float((c.mean() - truth[n]) / (c.std() / len(c) ** 0.5)) for n, c in columns.items()}


def test_the_terms_add_up_with_all_masks_enumerated() -> None:
    g = all_gradients()
    data, mask, total = population(g)
    assert data > 0.05 * total and mask > 0.05 * total
    assert abs(data + mask - total) < 1e-6 * total
    flat = g.reshape(-1, g.shape[2])
    assert total == pytest.approx(float(flat.var(0, correction=0).sum()), rel=1e-9)
    assert data == pytest.approx(float(g.mean(1).var(0, correction=0).sum()), rel=1e-9)
    assert mask == pytest.approx(float(g.var(1, correction=0).sum(1).mean()), rel=1e-9)


def test_a_wrong_mean_breaks_the_identity() -> None:
    """The control: with some masks missing for one sequence the terms are no longer those of the whole."""
    g = all_gradients().clone()
    data, _, total = population(g)
    _, mask, _ = population(g[:, : g.shape[1] // 2])
    assert abs(data + mask - total) > 1e-3 * total


def test_the_gradients_are_those_of_the_model() -> None:
    """The looked-up loss of the tests below has the decomposition of the real one."""
    model, _ = tiny()
    sizes, parameters = [LENGTH] * SEQUENCES, dict(model.named_parameters())
    real = values(decompose(tiny_loss, sizes, RATE, parameters, seed=1))
    loss, theta = looked_up()
    assert real == pytest.approx(values(decompose(loss, sizes, RATE, theta, seed=1)), rel=1e-9)


@pytest.mark.parametrize("masks", [8, 4])
def test_every_term_is_unbiased(masks: int) -> None:
    off = deviations(masks=masks)
    assert max(map(abs, off.values())) < 4.5, off


def test_families_that_depend_on_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    family = module.family

    def dependent(n: int, k: int, count: int, *, seed: int, sequence: int, number: int) -> Tensor:
        return family(n, k, 2 * count, seed=seed, sequence=sequence, number=0)[number::2]

    monkeypatch.setattr(module, "family", dependent)
    off = deviations(100)
    assert abs(off["data"]) > 6 and abs(off["mask"]) > 6


def test_contiguous_segments_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    family = module.family

    def contiguous(n: int, k: int, count: int, *, seed: int, sequence: int, number: int) -> Tensor:
        starts = family(n, k, count, seed=seed, sequence=sequence, number=number).int().argmax(1)
        return torch.stack([(torch.arange(n) - start) % n < k for start in starts])

    monkeypatch.setattr(module, "family", contiguous)
    off = deviations(100)
    assert abs(off["covariance"]) > 6


def test_the_plug_in_data_term_is_found() -> None:
    """The control: the variance of the sequences' mean gradients has part of the mask term in it."""
    g, truth = all_gradients(), enumerated()["data"]
    draw = torch.Generator().manual_seed(0)
    plug_in = []
    for _ in range(100):
        chosen = torch.randint(0, g.shape[1], (SEQUENCES, 8), generator=draw)
        means = g[torch.arange(SEQUENCES)[:, None], chosen].mean(1)
        plug_in.append(float(means.var(0).sum()))
    found = torch.tensor(plug_in)
    assert (found.mean() - truth) / (found.std() / 10) > 6


def test_blocks_of_sequences_give_the_same_values() -> None:
    urn = Urn(seed=1, sequences=21)
    whole = decompose(urn.loss, urn.sizes, urn.rate, urn.parameters)
    blocks = decompose(urn.loss, urn.sizes, urn.rate, urn.parameters, memory=0)
    assert values(whole) == pytest.approx(values(blocks), rel=1e-9)
    assert whole.share.value == pytest.approx(value(blocks.share))
    assert whole.mask.low is not None and blocks.mask.low is not None
    assert whole.mask.low != blocks.mask.low
    width = [value(d.mask) - d.mask.low for d in (whole, blocks)]
    assert 0.4 < width[1] / width[0] < 2.5


def test_groups_add_up_and_are_those_of_the_model() -> None:
    model, _ = tiny()
    sizes, parameters = [LENGTH] * SEQUENCES, dict(model.named_parameters())
    groups = {"embedding": "words", "place": "words", "head": "words"}  # apart from each other in the model
    found = decompose(tiny_loss, sizes, RATE, parameters, group=lambda n: groups.get(n, "layer"))
    assert list(found.groups) == ["words", "layer"]
    for i, whole in enumerate((found.data, found.mask)):
        assert sum(value(terms[i]) for terms in found.groups.values()) == pytest.approx(value(whole))
    alone = {n: p for n, p in parameters.items() if n not in groups}
    layer = decompose(tiny_loss, sizes, RATE, alone)
    assert value(found.groups["layer"][1]) == pytest.approx(value(layer.mask))
    assert list(layer.groups) == ["all"]


def test_the_terms_follow_from_each_other() -> None:
    urn = Urn(seed=2, sequences=16)
    found = decompose(urn.loss, urn.sizes, urn.rate, urn.parameters)
    terms = values(found)
    assert terms["data"] + terms["mask"] == pytest.approx(terms["total"])
    assert value(found.share) == pytest.approx(terms["mask"] / terms["total"])
    assert terms["break_even"] == pytest.approx(terms["data"] + terms["covariance"])
    assert value(found.noise_scale) == pytest.approx(terms["total"] / terms["signal"])
    assert [j for j, _ in found.segments] == [1, 2, 3, 4]
    for j, ratio in found.segments:
        assert value(ratio) == pytest.approx(1 + (j - 1) * terms["covariance"] / terms["mask"])
    # Tokens have gradients of their own here: nothing is left of the mask term after a full sweep.
    assert value(found.segments[-1][1]) == pytest.approx(0.0, abs=0.2)
    assert [d for d, _, _ in found.hamming] == [0.0, 0.5, 1.0]
    assert sum(pairs for _, _, pairs in found.hamming[1:]) == 16 * 2 * 6
    assert found.hamming[0][2] == 16 * 8


def test_distances_where_masks_cannot_be_far_apart() -> None:
    urn = Urn(seed=2, sequences=6)
    found = decompose(urn.loss, urn.sizes, 0.75, urn.parameters)
    assert found.covariance is None and found.break_even is None
    assert found.segments == [(1, Estimate(1.0, 1.0, 1.0))]
    assert 0.0 < found.hamming[-1][0] <= 1 / 3 + 1e-9
    half = decompose(urn.loss, urn.sizes, 0.5, urn.parameters)
    assert [j for j, _ in half.segments] == [1, 2] and half.hamming[-1][0] == 1.0


def test_single_tokens_have_no_mask_term() -> None:
    urn = Urn(seed=3, sequences=8)
    one, parameters = loss_of(lambda i, mask, _: urn.tokens[i, :1][mask].mean(0), urn.width)
    found = decompose(one, [1] * 8, 0.15, parameters)
    assert value(found.mask) == pytest.approx(0.0, abs=1e-9)
    assert found.covariance is None and [d for d, _, _ in found.hamming] == [0.0]


def test_sequences_of_different_sizes() -> None:
    urn = Urn(seed=3, sequences=9)
    sizes = [1, 2, 3, 4, 5, 6, 7, 8, 8]

    def gradient(sequence: int, mask: Tensor, draw: int) -> Tensor:
        assert mask.shape == (sizes[sequence],)
        return urn.tokens[sequence, : sizes[sequence]][mask].mean(0)

    loss, parameters = loss_of(gradient, urn.width)
    found = decompose(loss, sizes, 0.3, parameters)
    assert found.covariance is not None and value(found.covariance) < 0 < value(found.mask)


def test_every_mask_has_a_draw_number_of_its_own() -> None:
    urn, seen = Urn(seed=0, sequences=3), []
    progress: list[tuple[int, int]] = []

    def loss(sequence: int, mask: Tensor, draw: int) -> Tensor:
        seen.append((sequence, draw))
        return urn.loss(sequence, mask, draw)

    decompose(loss, urn.sizes, urn.rate, urn.parameters, masks=6, progress=lambda *at: progress.append(at))
    assert seen == [(s, d) for s in range(3) for d in range(6)]
    assert progress == [(1, 3), (2, 3), (3, 3)]


def test_unused_and_half_precision_parameters() -> None:
    urn = Urn(seed=0, sequences=4)
    theta = torch.zeros(urn.width, requires_grad=True)
    spare = torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
    found = decompose(
        lambda i, mask, _: theta @ urn.tokens[i, mask].mean(0).float(),
        urn.sizes,
        urn.rate,
        {"spare": spare, "theta": theta},
        group=lambda name: name,
    )
    exact = decompose(urn.loss, urn.sizes, urn.rate, urn.parameters)
    assert value(found.total) == pytest.approx(value(exact.total), rel=1e-5)
    assert found.groups["spare"][1].value == 0.0


WRONG: list[tuple[Mapping[str, object], str]] = [
    ({"sizes": [8]}, "at least 2"),
    ({"sizes": [8, 0]}, "sequence 1 has no maskable token"),
    ({"rate": 0.0}, "rate 0.0"),
    ({"rate": 15.0}, "rate 15.0"),
    ({"masks": 5}, "even number"),
    ({"masks": 2}, "at least 4"),
    ({"parameters": {}}, "no parameters"),
    ({"parameters": {"frozen": torch.zeros(6)}}, "parameter 'frozen' requires no gradient"),
    ({"metric": []}, "at least one direction"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_arguments_that_cannot_work(change: Mapping[str, object], message: str) -> None:
    urn = Urn(seed=0, sequences=2)
    arguments = {"sizes": urn.sizes, "rate": urn.rate, "parameters": urn.parameters} | dict(change)
    with pytest.raises(ClozeError, match=message):
        decompose(urn.loss, **arguments)  # type: ignore[arg-type]


def test_a_gradient_that_is_not_finite() -> None:
    loss, parameters = loss_of(lambda i, mask, _: torch.full((3,), math.inf).double(), 3)
    with pytest.raises(ClozeError, match="not finite"):
        decompose(loss, [4, 4], 0.5, parameters)
