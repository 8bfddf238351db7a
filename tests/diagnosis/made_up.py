"""A made-up diagnosis whose numbers look like those of a small model; tests change what they are about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cloze.diagnosis.advice import advise
from cloze.diagnosis.result import (
    Diagnosis,
    Distance,
    Group,
    LossCost,
    Measurements,
    Point,
    ProposalWord,
    Segments,
    Setting,
)
from cloze.variance import Estimate


def about(value: float, half: float | None = None) -> Estimate:
    """An estimate with a symmetric interval, by default of 10%."""
    half = abs(value) / 10 if half is None else half
    return Estimate(value, value - half, value + half)


UNKNOWN = Estimate(None, None, None)


def point(rate: float, variance: float, length: int = 128, noise: Estimate = UNKNOWN) -> Point:
    """Costs are 1 everywhere: variance per compute is variance."""
    return Point(rate, length, about(variance), noise, 1e9, about(variance), noise)


def measurements(**changes: Any) -> Measurements:
    """Uniform masking is fine here, until something is changed; `setting` is a dict of changes."""
    setting = Setting("runs/a", "books & <letters>", 64, 8, 128, 0.15, "80/10/10", "all", None, None, 10, 20)
    setting = replace(setting, **changes.pop("setting", {}))
    terms = about(6.0), about(44.0), about(0.88, 0.02)
    found = Measurements(
        setting=setting,
        data_term=terms[0],
        mask_term=terms[1],
        total=about(50.0),
        mask_share=terms[2],
        groups=[Group("embeddings", *terms), Group("layer 0", *terms), Group("head", *terms)],
        loss_cost=None,
        hamming=[
            Distance(0.0, about(44.0), 512),
            Distance(0.5, about(20.0), 60),
            Distance(1.0, about(-5.0), 512),
        ],
        segments=[Segments(1, Estimate(1.0, 1.0, 1.0)), Segments(2, about(0.95, 0.2))],
        covariance=about(-5.0),
        break_even=about(1.0, 0.5),
        signal=about(0.1, 0.2),
        noise_scale=Estimate(None, 350.0, None),
        cv=about(0.4),
        oracle_saving=about(0.14),
        score_savings={
            "hidden_gradient": about(0.03, 0.02),
            "residual": about(0.01, 0.02),
            "product": about(-0.02),
            "loss": about(-0.3),
            "inverse": about(-38.0),
        },
        proposal_saving=None,
        proposal_words=[],
        rates=[point(0.15, 50.0), point(0.3, 49.0), point(0.5, 48.0)],
        lengths=[point(0.15, 50.0), point(0.15, 110.0, 64)],
    )
    return replace(found, **changes)


def diagnosis(**changes: Any) -> Diagnosis:
    """Measurements with their advice."""
    found = measurements(**changes)
    return Diagnosis(found, advise(found), 12.0, {"torch": "2.13", "hardware": "a CPU"})


def everything() -> Diagnosis:
    """All optional parts are there."""
    term = about(6.0)
    return diagnosis(
        loss_cost=LossCost(term, about(270.0), about(0.9, 0.02)),
        proposal_saving=about(0.08, 0.02),
        proposal_words=[ProposalWord(" <Napoleon>", 0.41), ProposalWord("ism", 0.33)],
        noise_scale=about(1234.0),
        setting={"masking": "mapnet", "passes": 0.5},
        rates=[point(r, 10.0 / r, noise=about(100.0 / r)) for r in (0.08, 0.15, 0.3, 0.5)],
    )
