"""Every policy draws with the inclusion probabilities that its plan states."""

from typing import Any

import pytest
import torch
from helpers import SIZE, make_samples, networks, pack, tile
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking import POLICIES, Masking
from cloze.masking.base import Policy
from cloze.masking.units import cut

VISITS = 8_000
SIZE_OF_SAMPLE = 24
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "fully_explored": [{}, {"units": "words"}, {"units": "spans"}],
    "balanced": [{}, {"units": "words"}, {"rate": 0.6}],
    "mapnet": [{"power": 1.0}, {"power": 0.5, "units": "words"}, {}, {"predict": 0.5, "power": 1.0}],
    "stratified": [{}, {"units": "words"}],
    "difficulty": [{}, {"reweight": True}],
    "rest": [{"rate": 0.5}],
    "frequency": [{"power": 1.0}, {"reweight": True, "units": "words"}],
}
CASES = [(kind, s) for kind in POLICIES if kind != "none" for s in SETTINGS.get(kind, [{}])]


def opinionated(policy: Policy) -> Policy:
    """Give the state of a policy that learns large differences between tokens."""
    if isinstance(policy, torch.nn.Module):
        generator = torch.Generator().manual_seed(3)
        for name, buffer in policy.named_buffers():
            if name.endswith(("theta", "frozen")):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.5)
            if name.endswith(("losses", "number")):
                buffer.copy_(1 + 9 * torch.rand(buffer.shape, generator=generator))
    return policy


def build(kind: str, settings: dict[str, Any]) -> tuple[Masking, Policy]:
    config = POLICIES[kind](rate=0.3, **settings) if "rate" not in settings else POLICIES[kind](**settings)
    return config, opinionated(config.build(networks(SIZE)))


def deviation(found: Tensor, wanted: Tensor) -> float:
    """Largest difference of frequencies from probabilities, in standard deviations."""
    p = wanted.double()
    return float(((found - p).abs() / (p * (1 - p) / VISITS).sqrt().clamp(min=1e-3)).max())


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_frequencies_match_inclusion(kind: str, settings: dict[str, Any]) -> None:
    """Over many visits the mean of [predicted] is the mean of π, and weighted by p/π it is the mean of p."""
    config, policy = build(kind, settings)
    rate = float(config.rate)  # type: ignore[arg-type]
    batch = tile(pack([make_samples([SIZE_OF_SAMPLE])], SIZE_OF_SAMPLE + 2), VISITS)
    plan = policy.plan(batch, rate, 7)
    drawn = plan.predicted[:, 1:-1].double()
    pi, p = plan.inclusion[:, 1:-1].double(), plan.reference[:, 1:-1].double()
    whole = settings.get("predict", 1.0) == 1.0
    if whole:  # else π is known given the hidden set only
        assert deviation(drawn.mean(0), pi.mean(0)) < 5.0
        assert deviation(drawn.mean(0), 0.75 * pi.mean(0)) > 5.0  # the control
    weighted = torch.where(drawn > 0, p / pi, 0.0)
    spread = weighted.std(0) / VISITS**0.5
    assert float(((weighted.mean(0) - p.mean(0)).abs() / spread.clamp(min=1e-9)).max()) < 5.0
    unequal = float(pi.mean(0).max() / pi.mean(0).min()) > 1.2 or not whole
    if (
        unequal and config.unbiased and not torch.equal(pi, p)
    ):  # the control: without weights the same test fails
        assert float(((drawn.mean(0) - p.mean(0)).abs() / spread.clamp(min=1e-9)).max()) > 5.0
    if kind in ("mapnet", "frequency", "difficulty") and settings != {} and whole:
        assert unequal


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_units_whole_counts_fixed_nothing_outside(kind: str, settings: dict[str, Any]) -> None:
    config, policy = build(kind, settings)
    rate = float(config.rate)  # type: ignore[arg-type]
    batch = pack([make_samples([40]), make_samples([9, 1, 20], seed=1), make_samples([2], seed=2)], length=44)
    plan = policy.plan(batch, rate, 1)
    assert not (plan.hidden & ~batch.maskable).any()
    assert not (plan.predicted & ~plan.hidden).any()
    assert (plan.inclusion[batch.maskable] > 0).all()
    assert (plan.inclusion <= 1 + 1e-6).all()
    assert (plan.inclusion[~batch.maskable] == 0).all()
    assert (plan.reference[~batch.maskable] == 0).all()
    units = cut(batch, getattr(config, "units", {"words": "words", "spans": "spans"}.get(kind, "tokens")), 1)
    for unit in range(units.sample.numel()):
        assert plan.hidden[units.of == unit].unique().numel() == 1
    if kind != "frequency" or settings.get("reweight"):
        weights = (plan.reference / plan.inclusion)[plan.predicted]
        share = settings.get("predict", 1.0)
        assert float(weights.max()) <= 1 / (getattr(config, "epsilon", 1.0) * share) + 1e-4


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_masks_do_not_depend_on_the_company(kind: str, settings: dict[str, Any]) -> None:
    config, policy = build(kind, settings)
    rate = float(config.rate)  # type: ignore[arg-type]
    samples = make_samples([30, 12, 25])
    batch = tile(pack([samples[:2], samples[2:]], length=48), 3)
    alone: Batch = tile(pack([samples[2:]], 48), 3)
    whole, part = policy.plan(batch, rate, 2), policy.plan(alone, rate, 2)
    assert torch.equal(whole.hidden[1::2], part.hidden)
    assert torch.equal(whole.predicted[1::2], part.predicted)
    assert torch.allclose(whole.inclusion[1::2], part.inclusion, atol=1e-6)


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_nothing_to_mask(kind: str, settings: dict[str, Any]) -> None:
    config, policy = build(kind, settings)
    plan = policy.plan(pack([make_samples([0, 0])], 8), float(config.rate), 0)  # type: ignore[arg-type]
    assert not plan.hidden.any()
    assert float(plan.mass()) == 0.0
