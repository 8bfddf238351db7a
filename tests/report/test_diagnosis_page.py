"""The page of a diagnosis: what it says, that it needs nothing else, and that gaps do not break it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from diagnosis.made_up import diagnosis, everything, measurements
from report.test_report import Page

from cloze.report.diagnosis import render, write_diagnosis
from cloze.report.diagnosis_plots import savings_svg, segments_svg, terms_svg
from cloze.variance import Estimate


def content(made: Any) -> dict[str, Any]:
    """As it is read from diagnosis.json."""
    return json.loads(json.dumps(made.as_dict()))


def test_it_says_what_was_found(tmp_path: Path) -> None:
    path = write_diagnosis(content(everything()), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["diagnosis.html"] == [path.name]
    page = Page(path.read_text(encoding="utf-8"))
    for words in (
        everything().recommended.reason,
        "mask share 88% [86%, 90%]",
        "weighed by cost in loss 6 [5.4, 6.6] 270 [243, 297] 90% [88%, 92%]",
        "the run's own proposal 8% [6%, 10%]",
        "1 / hidden gradient (control) −3,800% [−4,180%, −3,420%]",
        "<Napoleon> 41%",
        "noise scale 1,234 [1,111, 1,357] sequences",
        "books & <letters>",
        "torch 2.13",
    ):
        assert words in page.text, words
    for heading in (
        "Where the variance is",
        "Choosing what is masked",
        "Other rates and lengths",
        "Glossary",
    ):
        assert heading in page.text
    # terms, distances, segments, savings, rates by variance and by noise, lengths
    assert page.tags.count("svg") == 7


def test_it_needs_nothing_else() -> None:
    source = render(content(everything()))
    page = Page(source)
    assert not {"script", "iframe", "img", "object"} & set(page.tags)
    references = [v or "" for name, v in page.attributes if name in ("src", "href", "srcset", "action")]
    references += re.findall(r"url\(([^)]*)\)", source)
    assert references and all(reference.startswith(("#", "data:,")) for reference in references)
    assert not re.search(r"@import|https?:", source)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_user_text_is_escaped() -> None:
    hostile = "<script>alert(1)</script>\"'&"
    made = content(everything()) | {"model": hostile, "data": hostile, "parameters": hostile}
    made["groups"][0]["name"] = made["proposal_words"][0]["token"] = hostile
    made["recommended"]["reason"] = made["environment"]["hardware"] = hostile
    page = Page(render(made))
    assert "script" not in page.tags
    assert page.text.count(hostile) >= 7


@pytest.mark.parametrize(
    "changes",
    [
        {"covariance": None, "break_even": None, "segments": measurements().segments[:1]},  # rate above 1/2
        {"groups": [], "hamming": [], "segments": [], "rates": [], "lengths": [], "score_savings": {}},
        dict.fromkeys(
            ("data_term", "mask_term", "mask_share", "cv", "noise_scale"), Estimate(None, None, None)
        ),
        {"mask_share": Estimate(0.8, None, None), "oracle_saving": Estimate(0.2, 0.1, None)},
    ],
)
def test_what_is_not_known_is_left_out(changes: dict[str, Any]) -> None:
    made = content(diagnosis()) | json.loads(json.dumps(diagnosis(**changes).as_dict()))
    text = Page(render(made)).text
    assert "nan" not in text and "None" not in text
    assert made["recommended"]["reason"] in text


def test_a_page_of_almost_nothing() -> None:
    assert "Where the gradient’s noise comes from" in Page(render({"model": "m"})).text


def test_plots_without_two_points_are_none() -> None:
    assert terms_svg([]) is None
    assert savings_svg({}) is None
    assert segments_svg([{"segments": 1, "ratio": {"value": 1.0, "low": 1.0, "high": 1.0}}]) is None


def test_a_bad_control_does_not_flatten_the_plot() -> None:
    def width(worst: float) -> float:
        """Of the first bar, in points."""
        bars = {"best possible": {"value": 0.2, "low": 0.1, "high": 0.3}}
        bars["control"] = {"value": worst, "low": worst, "high": worst}
        svg = savings_svg(bars) or ""
        x = [
            float(v) for v in re.findall(r"[ML] ([\d.]+) ", svg[svg.index("patch_3") : svg.index("patch_4")])
        ]
        return max(x) - min(x)

    assert width(-500.0) == pytest.approx(width(-0.6), rel=0.05)
    assert width(-0.1) > 1.2 * width(-0.6)
