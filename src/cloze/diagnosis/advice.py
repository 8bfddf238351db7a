"""What to change in the recipe, in one paragraph that claims no more than the intervals allow.

Three questions about the masks (Fully-Explored, 2010.06040; MAPNet, 2008.05333) and one about the rate. An
answer other than "leave it" needs the interval, not the value, on its side.
"""

from __future__ import annotations

import math

from cloze.diagnosis.cost import relative
from cloze.diagnosis.result import Measurements, Point, Recommendation
from cloze.variance import Estimate

LEAST_SAVING = 0.02  # of the mask term; less is not worth a proposal's cost
USABLE = ("hidden_gradient", "residual", "product")  # what a proposal may learn; the rest are controls
SWEEPING = ("fully_explored", "stratified", "balanced", "auto")  # have disjoint masks already, or may
REPEATED = 2.0  # passes over the text from which disjoint visits can matter
NEAR_BEST = 1.2  # the smallest rate within this factor of the best one is taken: less of another objective


def advise(found: Measurements) -> Recommendation:
    """The recommendation that follows from measurements."""
    now = found.setting.masking or "uniform"
    if found.setting.drawn == "prefixes":
        return Recommendation(
            now,
            0.0,
            "Nothing is hidden, so masks have no part in the gradient's variance; how long the prefix is "
            f"makes {percent(found.mask_share)} of it. {noise(found.noise_scale)}",
        )
    if found.setting.rate == 0.0:
        return Recommendation(
            now,
            0.0,
            "Nothing is hidden, so no part of the gradient's variance comes from masks, and no masks can "
            f"lower it. {noise(found.noise_scale)}",
        )
    masking, masks = _masking(found, now)
    rate, rates = _rate(found)
    name = "uniform masking" if masking == "uniform" else f"masking.kind={masking}"
    changes = [name] if masking != now else []
    changes += [f"masking.rate={rate:g}"] if rate != found.setting.rate else []
    if changes:
        verdict = f"Try {' and '.join(changes)}"
    else:
        verdict = "Uniform masking is fine here" if masking == "uniform" else f"Keep {name}"
    share = f"The choice of masks makes {percent(found.mask_share)} of the gradient's variance."
    return Recommendation(
        masking, rate, " ".join([f"{verdict}.", share, *masks, *rates, noise(found.noise_scale)])
    )


def _masking(found: Measurements, now: str) -> tuple[str, list[str]]:
    """Kind of the policy, and why."""
    (pairs, first), (visits, second), (saving, third) = same_step(found), sweeps(found), proposals(found)
    said = [text for text in (first, second, third) if text]
    if pairs or (visits and (found.setting.passes or 0.0) >= REPEATED):
        return now if now in SWEEPING else "fully_explored", said
    if saving:
        return now if found.proposal_saving is not None else "mapnet", said
    return "uniform" if now == "mapnet" else now, said


def same_step(found: Measurements) -> tuple[bool, str]:
    """Whether disjoint masks of a sequence in one update beat more sequences: D + C surely below 0."""
    point, total = found.break_even, found.total
    if point is None or point.value is None:
        return False, "At this rate no two masks of a sequence are disjoint."
    terms = f"data term plus covariance of disjoint masks is {interval(point)}"
    if point.high is not None and point.high < 0.0 and total.value and total.high:
        return True, (
            "Disjoint masks of a sequence in one update (same_step=2) beat as many other sequences at equal "
            f"compute: {terms}, below 0; variance falls by about {-point.value / total.value:.1%}, at least "
            f"{-point.high / total.high:.1%}."
        )
    if point.low is not None and point.low >= 0.0:
        return False, f"Several masks of a sequence in one update do not pay: {terms}, above 0."
    return False, f"Whether several masks of a sequence in one update pay is open: {terms}, around 0."


def sweeps(found: Measurements) -> tuple[bool, str]:
    """Whether disjoint masks over the visits of a text lower the mask term: r_J surely below 1."""
    last = found.segments[-1] if found.segments else None
    if last is None or last.segments < 2 or not _surely_below(last.ratio, 1.0):
        return False, ""
    text = (
        "Where text is seen several times, disjoint masks over its visits (fully_explored) cost nothing: of "
        f"the mask term they leave {percent(last.ratio)} in the mean over {last.segments} visits, as far as "
        "the model stays the same between them"
    )
    passes = found.setting.passes
    if passes is None:
        return True, f"{text}."
    few = "" if passes >= REPEATED else ", too few for that"
    return True, f"{text}; this run sees its text {passes:.2g} times{few}."


def proposals(found: Measurements) -> tuple[bool, str]:
    """Whether drawing masks by a score surely saves more than `LEAST_SAVING` of the mask term."""
    share, least = found.mask_share.value, f"not surely more than {LEAST_SAVING:.0%}"
    own = found.proposal_saving
    if own is not None:
        sure = _surely_above(own, LEAST_SAVING)
        verdict = f"worth keeping{_gain(own, share)}" if sure else least
        return sure, f"The run's own proposal saves {percent(own)} of the mask term: {verdict}."
    known = {name: s for name, s in found.score_savings.items() if name in USABLE and s.value is not None}
    if not known:
        return False, ""
    best = max(known, key=lambda name: -1e300 if known[name].low is None else known[name].low or 0.0)
    number = f"the score {best}, known exactly, would save {percent(known[best])} of the mask term"
    if not _surely_above(known[best], LEAST_SAVING):
        if all(s.high is not None and s.high <= LEAST_SAVING for s in known.values()):
            return False, f"A proposal does not pay: {number}, surely no more than {LEAST_SAVING:.0%}."
        return False, f"Whether a proposal pays is open: {number}, {least}."
    return True, (
        f"A proposal (mapnet, score={best}) can lower the variance: {number}{_gain(known[best], share)}. It "
        "will save less, for it must choose before the text is masked."
    )


def _gain(saving: Estimate, share: float | None) -> str:
    if share is None or saving.value is None:
        return ""
    return f", about {share * saving.value:.0%} of the whole variance"


def _rate(found: Measurements) -> tuple[float, list[str]]:
    """The rate with the lowest noise for its compute, and why; the present one if none is surely better."""
    now = found.setting.rate
    base = next((p for p in found.rates if p.rate == now), None)
    if base is None:
        return now, []
    by_noise = all(p.noise_per_compute.value is not None for p in found.rates)

    def score(p: Point) -> Estimate:
        return p.noise_per_compute if by_noise else p.variance_per_compute

    what = "noise scale" if by_noise else "variance"
    least = score(base).low
    better = [
        p for p in found.rates if p.rate != now and least is not None and _surely_below(score(p), least)
    ]
    if not better:
        return now, [f"No other masking rate has a surely lower {what} for its compute."]
    lowest = min(score(p).value or 0.0 for p in better)
    chosen = min((p for p in better if (score(p).value or 0.0) <= NEAR_BEST * lowest), key=lambda p: p.rate)
    part = relative(score(chosen), score(base))
    return chosen.rate, [
        f"At a rate of {chosen.rate:.0%} the {what} at equal compute is {percent(part)} of the present one; "
        "but another rate is another objective, poorer in context the higher it is: compare short runs."
    ]


def noise(scale: Estimate) -> str:
    """The noise scale in a sentence."""
    meaning = "far below it a batch is mostly noise, far above it more sequences bring little"
    if scale.value is not None:
        return f"The gradient noise scale is {interval(scale)} sequences: {meaning}."
    if scale.low is not None:
        least = number(scale.low)
        return f"The gradient noise scale is at least {least} sequences: smaller batches are mostly noise."
    return "The gradient noise scale cannot be told from so few sequences."


def number(value: float) -> str:
    """Three significant digits, thousands with commas."""
    if abs(value) >= 1000.0:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def interval(estimate: Estimate | None) -> str:
    """Such as "41.9 [38.1, 45.7]"; an end that is not known is a question mark, nothing at all a dash.

    Two or three digits of the largest of the three, with a common power of ten where that is needed.
    """
    if estimate is None or (estimate.value is None and estimate.low is None):
        return "–"
    if estimate.value is None:
        return f"≥ {number(estimate.low or 0.0)}"
    known = (estimate.value, estimate.low, estimate.high)
    top = max(abs(x) for x in known if x is not None)
    power = math.floor(math.log10(top)) if top > 0.0 else 0
    shift, suffix = (0, "") if -2 < power < 4 else (power, f"e{power:+03d}")
    digits = min(2, max(0, 2 - power)) if not shift else 1
    value, low, high = ("?" if x is None else f"{x / 10.0**shift + 0.0:.{digits}f}" for x in known)
    return f"{value} [{low}, {high}]{suffix}"


def percent(estimate: Estimate) -> str:
    """A share such as "87% [84, 90]"."""
    if estimate.value is None:
        return "–"
    if estimate.value < -10.0:
        return "below -1,000%"
    ends = ("?" if x is None else f"{round(100.0 * x):,}" for x in (estimate.low, estimate.high))
    return f"{round(100.0 * estimate.value):,}% [{', '.join(ends)}]"


def _surely_below(estimate: Estimate, limit: float) -> bool:
    return estimate.high is not None and estimate.high < limit


def _surely_above(estimate: Estimate, limit: float) -> bool:
    return estimate.low is not None and estimate.low > limit
