"""Savings of scores: the formulas, their limits, and that few tokens do not bias them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cloze.errors import ClozeError
from cloze.variance import Estimate, Savings, savings


def tokens(sequences: int, each: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Norms [N] of log-normal spread 0.5 around a level that differs between sequences, and sequence [N]."""
    draw = torch.Generator().manual_seed(seed)
    level = torch.randn(sequences, 1, generator=draw, dtype=torch.float64).exp()
    norms = level * (0.5 * torch.randn(sequences, each, generator=draw, dtype=torch.float64)).exp()
    return norms.flatten(), torch.arange(sequences).repeat_interleave(each)


def saved(found: Savings, name: str) -> float:
    value = found.scores[name].value
    assert value is not None
    return value


def test_known_limits() -> None:
    t, of = tokens(12, 30)
    found = savings(t, {"norms": 3 * t, "constant": torch.full_like(t, 0.2), "inverse": 1 / t}, of)
    assert found.scores["norms"].as_dict() == pytest.approx(found.oracle.as_dict())
    assert saved(found, "constant") == pytest.approx(0.0, abs=1e-12)
    high = found.scores["inverse"].high
    assert high is not None and high < -0.3
    assert found.oracle.low is not None and found.oracle.low > 0.1
    cv, oracle = found.cv.value, found.oracle.value
    assert cv is not None and oracle == pytest.approx(1 - 1 / (1 + cv**2))


def test_one_sequence_is_the_plain_formula() -> None:
    """CV² from the unbiased variance over the unbiased square of the mean; no interval."""
    t = torch.tensor([1.0, 2.0, 2.5, 4.0, 0.5], dtype=torch.float64)
    s = torch.tensor([1.0, 1.0, 3.0, 2.0, 1.5], dtype=torch.float64)
    found = savings(t, {"s": s}, torch.zeros(5, dtype=torch.int64))
    square = t.mean() ** 2 - t.var() / 5
    assert found.cv.value == pytest.approx(float((t.var() / square).sqrt()))
    assert found.oracle.value == pytest.approx(float(1 - square / (t**2).mean()))
    pairs = (t**2 / s)[:, None] * s
    wanted = 1 - (pairs.sum() - pairs.trace()) / 20 / (t**2).mean()
    assert found.scores["s"] == Estimate(pytest.approx(float(wanted)), None, None)  # type: ignore[arg-type]


def test_only_differences_within_a_sequence_count() -> None:
    """Another scale in each sequence changes nothing; the level of a sequence alone saves nothing."""
    t, of = tokens(12, 30)
    scale = torch.rand(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[of] + 0.1
    level = torch.stack([t[of == i].mean() for i in range(12)])[of]
    found = savings(t, {"t": t, "scaled": t * scale, "level": level}, of + 100)
    assert saved(found, "scaled") == pytest.approx(saved(found, "t"))
    assert saved(found, "level") == pytest.approx(0.0, abs=1e-12)
    assert saved(savings(t, {"level": level}, torch.zeros_like(of)), "level") > 0.2  # the control


def test_few_tokens_of_a_sequence_do_not_bias_the_saving() -> None:
    """Log-normal norms of spread 0.5: the oracle saves 1 − exp(−0.25). Means over i = j too would miss it."""
    t, of = tokens(3000, 4)
    truth = 1 - torch.tensor(-0.25, dtype=torch.float64).exp()
    found = savings(t, {"t": t}, of)
    assert found.oracle.low is not None and found.oracle.high is not None
    assert found.oracle.low < truth < found.oracle.high
    by_sequence = t.view(3000, 4)
    plain = 1 - (by_sequence.mean(1) ** 2).sum() / (by_sequence**2).mean(1).sum()
    assert plain < found.oracle.low


def test_intervals_hold_the_truth() -> None:
    truth, hits = 1 - float(torch.tensor(-0.25).exp()), 0
    for seed in range(200):
        t, of = tokens(30, 20, seed + 1)
        level = torch.stack([t[of == i].mean() for i in range(30)])[of]
        oracle = savings(t / level, {}, of).oracle
        assert oracle.low is not None and oracle.high is not None
        hits += oracle.low <= truth <= oracle.high
    assert 0.85 < hits / 200 <= 1.0


def test_weights_stand_for_repeated_tokens() -> None:
    """A token of weight 2 in all sequences of many tokens counts as two of them."""
    t, of = tokens(6, 400)
    double = (torch.arange(t.numel()) % 3 == 0).double()
    s = t.sqrt()
    weighted = savings(t, {"s": s}, of, 1 + double)
    twice = torch.cat([torch.arange(t.numel()), double.nonzero().squeeze(1)])
    repeated = savings(t[twice], {"s": s[twice]}, of[twice])
    assert saved(weighted, "s") == pytest.approx(saved(repeated, "s"), rel=0.02)
    assert abs(saved(weighted, "s") / saved(savings(t, {"s": s}, of), "s") - 1) > 1e-4
    constant = savings(t, {"one": torch.ones_like(t)}, of, 1 + double)
    assert saved(constant, "one") == pytest.approx(0.0, abs=1e-12)


def test_scores_of_zero_and_single_tokens() -> None:
    t, of = tokens(5, 10)
    zero = torch.where(torch.arange(50) % 10 == 0, 0.0, t)
    found = savings(t, {"zero": zero, "all zero": torch.zeros_like(t)}, of)
    assert saved(found, "zero") < -100
    assert saved(found, "all zero") == pytest.approx(0.0, abs=1e-12)
    alone = savings(torch.cat([t, t[:1]]), {"t": torch.cat([t, t[:1]])}, torch.cat([of, torch.tensor([9])]))
    assert alone == savings(t, {"t": t}, of)


def test_float32_scores_from_a_model() -> None:
    t, of = tokens(5, 10)
    assert saved(savings(t.float(), {"t": t.float()}, of), "t") == pytest.approx(
        saved(savings(t, {"t": t}, of), "t"), rel=1e-4
    )


def test_arguments_that_cannot_work() -> None:
    t, of = tokens(3, 4)
    with pytest.raises(ClozeError, match="score 'x': a value is negative"):
        savings(t, {"x": t - t.mean()}, of)
    with pytest.raises(ClozeError, match="norms: a value is negative or not finite"):
        savings(t / 0, {}, of)
    with pytest.raises(ClozeError, match="two measured tokens"):
        savings(t[:3], {}, torch.arange(3))
