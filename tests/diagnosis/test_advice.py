"""Each branch of the advice, at its boundaries: nothing is recommended that the interval does not allow."""

from __future__ import annotations

from typing import Any

import pytest
from diagnosis.made_up import UNKNOWN, about, diagnosis, everything, measurements, point

from cloze.diagnosis.advice import advise, interval, percent
from cloze.diagnosis.cost import operations, relative
from cloze.diagnosis.result import Segments
from cloze.diagnosis.table import WIDTH, lines
from cloze.variance import Estimate


def test_uniform_is_fine() -> None:
    advice = advise(measurements())
    assert (advice.masking, advice.rate) == ("uniform", 0.15)
    assert advice.reason.startswith("Uniform masking is fine here. The choice of masks makes 88% [86, 90] of")
    assert "in one update do not pay" in advice.reason
    assert "Whether a proposal pays is open: the score hidden_gradient" in advice.reason
    assert "No other masking rate has a surely lower variance" in advice.reason
    assert "at least 350 sequences" in advice.reason


@pytest.mark.parametrize(
    ("break_even", "masking", "words"),
    [
        (Estimate(-1.0, -1.9, -0.1), "fully_explored", "variance falls by about 2.0%, at least 0.2%"),
        (Estimate(-1.0, -2.0, 0.0), "uniform", "is open"),
        (Estimate(-1.0, None, None), "uniform", "is open"),
        (Estimate(0.5, 0.0, 1.0), "uniform", "do not pay"),
        (None, "uniform", "no two masks of a sequence are disjoint"),
    ],
)
def test_same_step_needs_an_interval_below_zero(
    break_even: Estimate | None, masking: str, words: str
) -> None:
    advice = advise(measurements(break_even=break_even))
    assert advice.masking == masking
    assert words in advice.reason
    assert ("same_step=2" in advice.reason) == (masking == "fully_explored")


@pytest.mark.parametrize(
    ("high", "passes", "masking", "words"),
    [
        (0.99, None, "uniform", "cost nothing: of the mask term they leave 50%"),
        (0.99, 2.0, "fully_explored", "sees its text 2 times."),
        (0.99, 1.9, "uniform", "too few for that"),
        (1.0, 14.0, "uniform", ""),
    ],
)
def test_sweeps_need_disjoint_masks_that_help_and_text_that_comes_again(
    high: float, passes: float | None, masking: str, words: str
) -> None:
    segments = [Segments(1, Estimate(1.0, 1.0, 1.0)), Segments(6, Estimate(0.5, 0.1, high))]
    advice = advise(measurements(segments=segments, setting={"masking": "uniform", "passes": passes}))
    assert advice.masking == masking
    assert words in advice.reason
    assert ("fully_explored" in advice.reason) == (high < 1.0)


@pytest.mark.parametrize(
    ("name", "saving", "masking"),
    [
        ("hidden_gradient", Estimate(0.1, 0.021, 0.2), "mapnet"),
        ("hidden_gradient", Estimate(0.1, 0.02, 0.2), "uniform"),
        ("hidden_gradient", Estimate(0.1, None, None), "uniform"),
        ("residual", Estimate(0.1, 0.03, 0.2), "mapnet"),
        ("loss", Estimate(0.3, 0.2, 0.4), "uniform"),  # controls are never recommended
        ("inverse", Estimate(0.3, 0.2, 0.4), "uniform"),
    ],
)
def test_a_proposal_needs_a_sure_saving(name: str, saving: Estimate, masking: str) -> None:
    scores = measurements().score_savings | {name: saving}
    advice = advise(measurements(score_savings=scores))
    assert advice.masking == masking
    if masking == "mapnet":
        assert f"score={name}" in advice.reason
        assert "10%" in advice.reason and "about 9% of the whole variance" in advice.reason  # 0.88 · 0.1


def test_a_proposal_that_surely_saves_little_does_not_pay() -> None:
    scores = measurements().score_savings | {
        "hidden_gradient": about(0.0, 0.02),
        "residual": about(0.0, 0.01),
    }
    assert "A proposal does not pay" in advise(measurements(score_savings=scores)).reason
    scores["residual"] = about(0.01, 0.02)
    assert "is open" in advise(measurements(score_savings=scores)).reason


@pytest.mark.parametrize(
    ("masking", "saving", "wanted"),
    [
        ("mapnet", Estimate(0.06, 0.03, 0.09), "mapnet"),
        ("mapnet", Estimate(0.06, 0.01, 0.11), "uniform"),
        ("stratified", Estimate(0.06, 0.03, 0.09), "stratified"),
        ("words", None, "words"),
    ],
)
def test_what_a_run_has_is_kept_unless_it_does_not_pay(
    masking: str, saving: Estimate | None, wanted: str
) -> None:
    advice = advise(measurements(proposal_saving=saving, setting={"masking": masking}))
    assert advice.masking == wanted
    start = "Try uniform masking" if wanted != masking else f"Keep masking.kind={masking}."
    assert advice.reason.startswith(start)
    assert saving is None or "The run's own proposal saves 6%" in advice.reason


def test_a_run_with_disjoint_masks_keeps_them() -> None:
    segments = [Segments(1, Estimate(1.0, 1.0, 1.0)), Segments(6, Estimate(0.5, 0.4, 0.6))]
    setting = {"masking": "stratified", "passes": 10.0}
    assert advise(measurements(segments=segments, setting=setting)).masking == "stratified"


def test_another_rate_needs_intervals_that_do_not_meet() -> None:
    def rate(*points: tuple[float, float], **noise: Any) -> float:
        return advise(measurements(rates=[point(*p, **noise) for p in points])).rate

    assert rate((0.15, 50.0), (0.3, 41.0)) == 0.15  # 45 … 55 and 36.9 … 45.1
    assert rate((0.15, 50.0), (0.3, 40.0)) == 0.3
    assert (
        rate((0.15, 50.0), (0.3, 30.0), (0.4, 26.0), (0.5, 24.0)) == 0.4
    )  # the smallest that is near the best
    assert rate((0.15, 50.0), (0.08, 30.0)) == 0.08
    assert rate((0.3, 30.0), (0.4, 20.0)) == 0.15  # the present rate was not measured
    same = {"noise": about(700.0)}  # known noise scales come first, and these are the same
    assert rate((0.15, 50.0), (0.3, 30.0), **same) == 0.15
    reason = advise(measurements(rates=[point(0.15, 50.0), point(0.3, 30.0)])).reason
    assert "masking.rate=0.3" in reason and "60% [49, 73]" in reason and "another objective" in reason


def test_the_noise_scale_is_said_as_far_as_it_is_known() -> None:
    assert "is 1234 [1111, 1357] sequences" in advise(measurements(noise_scale=about(1234.0))).reason
    assert "cannot be told" in advise(measurements(noise_scale=UNKNOWN)).reason


def test_numbers_for_people() -> None:
    assert interval(about(41.94, 4.0)) == "41.9 [37.9, 45.9]"
    assert interval(Estimate(2.0, None, 3.0)) == "2.00 [?, 3.00]"
    assert interval(Estimate(-0.04, -1.5, 0.7)) == "-0.04 [-1.50, 0.70]"
    assert interval(Estimate(3.2e-7, 1e-7, 5.44e-7)) == "3.2 [1.0, 5.4]e-07"
    assert interval(Estimate(12345.0, 1e4, None)) == "1.2 [1.0, ?]e+04"
    assert interval(Estimate(0.0, 0.0, 0.0)) == "0.00 [0.00, 0.00]"
    assert interval(Estimate(None, 350.0, None)) == "≥ 350"
    assert interval(UNKNOWN) == interval(None) == "–"
    assert percent(Estimate(-0.004, -38.1, None)) == "0% [-3,810, ?]"
    assert percent(about(-38.1)) == "below -1,000%"


def test_the_cost_is_counted() -> None:
    setting = measurements().setting  # 10 body and 20 head parameters
    assert operations(setting, 100, 15) == 6 * (10 * 100 + 20 * 15)
    ratio = relative(Estimate(2.0, 1.0, 3.0), Estimate(4.0, 2.0, 8.0))
    assert (ratio.value, ratio.low, ratio.high) == (0.5, 0.125, 1.5)
    assert relative(UNKNOWN, about(1.0)) == UNKNOWN


@pytest.mark.parametrize("found", [diagnosis(), everything(), diagnosis(groups=[], segments=[], lengths=[])])
def test_the_table_fits_and_ends_with_the_advice(found: Any) -> None:
    text = lines(found)
    assert max(map(len, text)) <= WIDTH
    last = text[text.index("What to do") + 1 :]
    assert " ".join(line.strip() for line in last) == found.recommended.reason
    assert any("mask term" in line for line in text) and any("15% (now)" in line for line in text)
