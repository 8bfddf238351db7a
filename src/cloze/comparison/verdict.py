"""What a difference allows one to say, in words, and no more than that."""

from __future__ import annotations

from typing import Literal

from cloze.variance.estimate import Estimate

Finding = Literal["better", "worse", "not worse", "open", "no interval", "diverged", "missing"]


def finding(difference: Estimate, lower_is_better: bool, margin: float | None = None) -> Finding:
    """What the interval of a difference to the baseline shows.

    Args:
        difference: ours − baseline's.
        margin: how much worse still counts as not worse (non-inferiority); None: it is not asked.
    """
    if difference.value is None:
        return "missing"
    if difference.low is None or difference.high is None:
        return "no interval"
    best, worst = difference.low, difference.high
    if not lower_is_better:
        best, worst = -worst, -best
    if worst < 0.0:
        return "better"
    if best > 0.0:
        return "worse"
    return "not worse" if margin is not None and worst < margin else "open"


def signed(value: float, digits: int = 3) -> str:
    """A difference: −0.010, +0.031."""
    return f"{value:+.{digits}f}".replace("-", "−")


def with_interval(difference: Estimate, digits: int = 3) -> str:
    """A difference and its interval: −0.010 [−0.050, +0.031]."""
    if difference.value is None:
        return ""
    if difference.low is None or difference.high is None:
        return signed(difference.value, digits)
    ends = f"[{signed(difference.low, digits)}, {signed(difference.high, digits)}]"
    return f"{signed(difference.value, digits)} {ends}"


def sentence(
    recipe: str, baseline: str, found: Finding, difference: Estimate, unit: str, margin: float | None
) -> str:
    """One recipe against the baseline."""
    numbers = f"{with_interval(difference)} {unit}".strip()
    most = f"at most {margin or 0.0:g} {unit} worse"
    said = {
        "better": f"better than {baseline}: {numbers}.",
        "worse": f"worse than {baseline}: {numbers}.",
        "not worse": f"no difference to {baseline} is shown, and {most}: {numbers}.",
        "open": f"no difference to {baseline} is shown: {numbers}.",
        "no interval": f"{numbers} against {baseline}: there is no interval, so nothing is claimed.",
        "diverged": "a run diverged, so no difference is given.",
        "missing": "no run to compare yet.",
    }
    return f"{recipe}: {said[found]}"
