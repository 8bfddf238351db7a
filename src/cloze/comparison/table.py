"""A comparison as lines of text that fit 80 columns."""

from __future__ import annotations

from textwrap import wrap

from cloze.comparison.result import Comparison, Difference, Mean, Speedup
from cloze.comparison.verdict import signed

WIDTH, NAME = 80, 29
TITLES = {"heldout_loss": "Held-out loss", "bits_per_character": "Bits per character"}
_WORDS = {name: name for name in ("better", "worse", "not worse", "open", "diverged")}


def lines(comparison: Comparison) -> list[str]:
    """A table for each metric, what is needed for the baseline's loss, and the verdict.

    Of a suite of several tasks only the mean over them is shown; the report has them all. A line that does
    not start with a space is a heading.
    """
    metrics = list(dict.fromkeys(mean.metric for mean in comparison.means if not mean.part))
    parts = [_metric(comparison, metric) for metric in metrics]
    parts.insert(1, _speedups(comparison))
    parts.append(["Verdict", *(line for text in comparison.verdict for line in _wrapped(text))])
    if comparison.notes:
        parts.append(["Notes", *(line for text in comparison.notes for line in _wrapped(text))])
    return [line for part in parts if part for line in [*part, ""]][:-1]


def _wrapped(text: str) -> list[str]:
    return wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _short(name: str, width: int = NAME - 3) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"


def _metric(comparison: Comparison, metric: str) -> list[str]:
    means = [m for m in comparison.means if m.metric == metric]
    differences = {d.recipe: d for d in comparison.differences if d.metric == metric}
    title = TITLES.get(metric) or f"{metric.partition('/')[0]}, {metric.rpartition('/')[2]}"
    found = [f"{_short(title, NAME):<{NAME}}{'mean ± std':>16}{'to ' + _short(means[0].recipe, 20):>27}"]
    of = {arm.recipe: arm.measures for arm in comparison.arms}
    if not comparison.mixed or metric != comparison.metric:
        of = {}
    return [*found, *(_row(m, differences.get(m.recipe), of.get(m.recipe)) for m in means)]


def _row(mean: Mean, difference: Difference | None, of: str | None) -> str:
    """A recipe; `of`: what its loss is of, where that is not the same for all."""
    own = "" if mean.mean is None else f"{mean.mean:.4f}"
    if mean.spread is not None:
        own += f" ±{mean.spread:.4f}"
    cell, word = "" if of is None else _short(f"of {of}", 24), ""
    if difference is not None:
        estimate, word = difference.estimate, _WORDS.get(difference.finding, "")
        if estimate.value is not None:
            cell = signed(estimate.value)
        if estimate.low is not None and estimate.high is not None:
            cell += f" [{signed(estimate.low)}, {signed(estimate.high)}]"
    return f"  {_short(mean.recipe):<{NAME - 2}}{own:>16}{cell:>25} {word}".rstrip()


def _speedups(comparison: Comparison) -> list[str]:
    found: dict[str, list[Speedup]] = {}
    for speedup in comparison.speedups:
        found.setdefault(speedup.recipe, []).append(speedup)
    if not found:
        return []
    measures = [s.measure for s in next(iter(found.values()))]
    title = "Baseline's loss, x less"
    head = f"{title:<26}" + "".join(f"{measure:>18}" for measure in measures)
    return [
        head,
        *(f"  {_short(n, 23):<24}{''.join(f'{_times(s):>18}' for s in own)}" for n, own in found.items()),
    ]


def _times(speedup: Speedup) -> str:
    """How many times less it needs, or how often it got there."""
    estimate = speedup.estimate
    if estimate.value is None:
        return "not reached" if not speedup.reached else f"{speedup.reached} of {len(speedup.needed)} seeds"
    ends = ""
    if estimate.low is not None and estimate.high is not None:
        ends = f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{ends}"
