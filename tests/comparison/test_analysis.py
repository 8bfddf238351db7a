"""From runs to differences, speed-ups, tables and a page, on runs whose losses are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comparison.made_up import STEPS, TOKENS, plan, run
from report.test_report import Page

from cloze.comparison.analysis import analyse
from cloze.comparison.result import Comparison
from cloze.comparison.statistics import mean_interval
from cloze.comparison.table import lines
from cloze.evaluation.suites.base import Scores
from cloze.report.comparison import render, write_comparison

GAPS = {"mlm": (0.0, 0.0, 0.0), "good": (-0.5, -0.52, -0.48), "same": (0.1, -0.1, 0.05)}


def compared(seeds: int = 3, margin: float | None = None, extra: str | None = None) -> Comparison:
    """mlm, one that is better, one that is not known to be, and perhaps one that diverged once."""
    names = [*GAPS, *([extra] if extra else [])]

    def scores(gap: float) -> dict[str, Scores]:
        return {"fake": {"cola": {"mcc": [0.5 - gap]}, "sst": {"mcc": [0.7]}}}

    runs = [
        run(name, seed, 5.0 + 0.3 * seed + GAPS[name][seed], scores(GAPS[name][seed]))
        for seed in range(seeds)
        for name in GAPS
    ]
    if extra:
        runs += [run(extra, seed, None if seed == 1 else 4.0) for seed in range(seeds)]
    settings = {"seeds": list(range(seeds)), "budget": "400 k tokens"}
    return analyse(plan(names, seeds, seconds={"good": 1.0}), runs, margin, settings)


def test_differences_are_paired_and_corrected() -> None:
    found = {(d.recipe, d.metric): d for d in compared().differences}
    good = found["good", "heldout_loss"]
    assert good.values == pytest.approx((-0.5, -0.52, -0.48))
    assert good.estimate == mean_interval(good.values, comparisons=2)
    assert (good.finding, found["same", "heldout_loss"].finding) == ("better", "open")
    task = found["good", "fake/cola/mcc"]
    assert task.comparisons == 4  # two recipes in two tasks
    assert task.finding == "better"  # by about 0.5, and more is better
    assert found["same", "fake/sst/mcc"].finding == "open"
    assert ("mlm", "heldout_loss") not in found


def test_means_are_of_every_recipe() -> None:
    found = {(m.recipe, m.metric): m for m in compared().means}
    assert found["mlm", "heldout_loss"].mean == pytest.approx(5.3)
    assert found["mlm", "heldout_loss"].spread == pytest.approx(0.3)
    assert found["good", "fake/cola/mcc"].values == pytest.approx((1.0, 1.02, 0.98))


def test_a_suite_of_several_tasks_has_a_mean_that_is_compared_by_itself() -> None:
    found = compared()
    mean = next(m for m in found.means if m.metric == "fake/mean of 2 tasks/mcc" and m.recipe == "good")
    assert mean.values == pytest.approx((0.85, 0.86, 0.84))
    difference = next(d for d in found.differences if d.metric == mean.metric and d.recipe == "good")
    assert (difference.comparisons, difference.finding) == (2, "better")  # two recipes in one suite
    assert {m.metric for m in found.means if m.part} == {"fake/cola/mcc", "fake/sst/mcc"}


def test_a_run_that_diverged_counts_in_the_suites_too() -> None:
    found = compared(extra="wild")
    of = {d.metric: d.finding for d in found.differences if d.recipe == "wild"}
    assert of == dict.fromkeys(of, "diverged")
    assert {"fake/mean of 2 tasks/mcc", "fake/cola/mcc"} <= of.keys()


def test_what_is_needed_for_the_baselines_loss() -> None:
    """Straight lines: a recipe that ends d lower needs (9 − L) / (9 − L + d) of the budget."""
    found = {(s.recipe, s.measure): s for s in compared().speedups}
    shares = [(9 - 5 - 0.3 * s) / (9 - 5 - 0.3 * s - gap) for s, gap in enumerate(GAPS["good"])]
    tokens = found["good", "tokens"]
    assert tokens.needed == pytest.approx([share * STEPS * TOKENS for share in shares], rel=1e-3)
    assert tokens.estimate.value == pytest.approx(
        1 / (shares[0] * shares[1] * shares[2]) ** (1 / 3), rel=1e-3
    )
    assert tokens.reached == 3
    seconds = found["good", "seconds"]  # its steps take twice as long
    assert seconds.estimate.value == pytest.approx(tokens.estimate.value / 2)
    assert found["good", "operations"].estimate.value == pytest.approx(tokens.estimate.value / 2)
    same = found["same", "tokens"]
    assert [x is None for x in same.needed] == [True, False, True]
    assert same.estimate.value is None


def test_a_run_that_diverged_makes_the_difference_unknown() -> None:
    """Or a recipe would be judged by the runs that it survived."""
    found = compared(extra="wild")
    wild = next(d for d in found.differences if (d.recipe, d.metric) == ("wild", "heldout_loss"))
    assert wild.finding == "diverged"
    assert wild.estimate.value is None
    assert any("wild: a run diverged" in line for line in found.verdict)
    assert "wild" in Page(render(found)).text


def test_one_seed_claims_nothing() -> None:
    found = compared(seeds=1)
    assert {d.finding for d in found.differences} == {"no interval"}
    assert all(d.estimate.low is None for d in found.differences)
    text = " ".join([*found.verdict, *lines(found), Page(render(found)).text])
    assert "better than" not in text and "worse than" not in text
    assert "use --seeds 3 or more" in text


def test_a_margin_for_not_worse() -> None:
    same = {m: compared(margin=m).differences[1] for m in (0.1, 2.0)}
    assert {d.recipe for d in same.values()} == {"same"}
    assert [d.finding for d in same.values()] == ["open", "not worse"]


def test_the_verdict() -> None:
    assert compared().verdict[0].startswith("good: better than mlm: −0.500 [−0.5")
    assert compared().verdict[1].startswith("same: no difference to mlm is shown: +0.017 [")
    assert "3 seeds for all 2 recipes together (Bonferroni)" in compared().verdict[2]


def test_the_json_has_what_the_page_shows() -> None:
    content = json.loads(json.dumps(compared().as_dict()))
    assert {"runs", "differences", "speedup_to_baseline", "verdict"} <= content.keys()
    assert {"recipe", "seed", "budget", "heldout_loss", "curve"} <= content["runs"][0].keys()
    assert {"recipe", "baseline", "metric", "value", "low", "high"} <= content["differences"][0].keys()
    assert {"recipe", "baseline", "measure", "needed", "value", "low", "high"} <= content[
        "speedup_to_baseline"
    ][0].keys()


def test_tables_fit_80_columns() -> None:
    found = compared(extra="an-arm with-a-very-long-name=0.123456789 and-another-field=[1, 2, 3]")
    shown = lines(found)
    assert max(map(len, shown)) <= 80
    text = "\n".join(shown)
    for words in (
        "Held-out loss",
        "5.3000 ±0.3000",
        "better",
        "2 of 3 seeds",
        "fake, mcc",
        "Verdict",
        "diverged",
    ):
        assert words in text, text


def test_the_page(tmp_path: Path) -> None:
    path = write_comparison(compared(), tmp_path)
    assert path == tmp_path / "report.html"
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    for words in (
        *compared().verdict,
        "no difference shown",
        "5.3000",
        "masking.rate: 0.1 -> 0.12",
        "fake: mean of 2 tasks",
        "cola",
    ):
        assert words in page.text, words
    assert "script" not in page.tags
    assert source.count("<svg") == 5
    assert not [v for _, v in page.attributes if v and v.startswith("http")]


def test_a_page_of_many_recipes_and_of_strange_names() -> None:
    names = ["<b>mlm</b>", "$x^2$", *(f"recipe-{i}" for i in range(18))]
    runs = [run(n, s, 5.0 - 0.01 * i + 0.001 * s * i) for s in range(2) for i, n in enumerate(names)]
    found = analyse(plan(names, 2), runs, settings={"seeds": [0, 1]})
    source = render(found)
    assert "<b>mlm</b>" not in source
    assert "$x^2$" in Page(source).text


def mixed() -> Comparison:
    """mlm, one that is better, and two that predict something else, one of them with a much lower loss."""
    of = {"tokens": "next tokens", "fakes": "replaced or not"}
    finals = {"mlm": 5.0, "good": 4.5, "tokens": 4.0, "fakes": 0.3}
    right = {"mlm": 0.6, "good": 0.6, "tokens": 0.7, "fakes": 0.5}

    def scores(name: str, seed: int) -> dict[str, Scores]:
        own = {"task": {"accuracy": [right[name] + 0.001 * seed * (name != "mlm")]}}
        return {"minimal-pairs": own, "heldout": {"held-out text": {"loss": [finals[name]]}}}

    runs = [
        run(name, s, finals[name] + 0.01 * s * (name == "good"), scores(name, s))
        for s in range(3)
        for name in finals
    ]
    return analyse(plan(list(finals), measures=of), runs, settings={"seeds": [0, 1, 2]})


def test_losses_of_different_things_are_shown_and_never_subtracted() -> None:
    found = mixed()
    assert (found.mixed, found.comparable) == (True, ["mlm", "good"])
    losses = [d for d in found.differences if d.metric == found.metric]
    assert [(d.recipe, d.comparisons) for d in losses] == [("good", 1)]
    assert {s.recipe for s in found.speedups} == {"good"}
    assert [m.mean for m in found.means if m.metric == found.metric] == pytest.approx([5.0, 4.51, 4.0, 0.3])
    # The suites compare all, but for the one that measures each model by what it predicts.
    pairs = {d.recipe: d.finding for d in found.differences if d.metric.startswith("minimal-pairs")}
    assert pairs == {"good": "open", "tokens": "better", "fakes": "worse"}
    own = {d.recipe for d in found.differences if d.metric.startswith("heldout/") and d.values}
    assert own == {"good"}


def test_what_does_not_compare_is_said_in_words() -> None:
    found = mixed()
    said = "tokens: its held-out loss is of next tokens, that of mlm of masked tokens: not comparable."
    assert said in found.verdict
    assert any(line.startswith("minimal-pairs, tokens: better than mlm: +0.10") for line in found.verdict)
    shown = lines(found)
    assert max(map(len, shown)) <= 80
    assert any("of replaced or not" in line and "0.3000" in line for line in shown)
    page = Page(render(found))
    assert "Recipes predict different things" in page.text
    assert page.text.count("not comparable") >= 2
    assert "Recipes predict different things" not in Page(render(compared())).text
