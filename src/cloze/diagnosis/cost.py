"""Variance for the same compute at other rates and lengths.

Operations of one sequence, forward and backward: 6 · (body parameters · tokens + head parameters · predicted
tokens). Two for a multiplication and an addition, three passes of that size. Attention scores are left out:
they add about tokens / (6 · width) of a layer's part.

With a budget of operations a batch has so many sequences fewer as each costs more, so variance × cost
compares settings at equal compute.
"""

from __future__ import annotations

from cloze.diagnosis.result import Point, Setting
from cloze.models.operations import operations as counted
from cloze.variance import Decomposition, Estimate

UNIT = 1e9  # operations


def operations(setting: Setting, tokens: float, predicted: float) -> float:
    """Operations of one sequence in an update."""
    return counted(setting.body_parameters, setting.head_parameters, tokens, predicted)


def point(setting: Setting, rate: float, length: int, predicted: float, found: Decomposition) -> Point:
    """What was measured at one rate and length, with its cost."""
    cost = operations(setting, length, predicted)
    return Point(
        rate,
        length,
        found.total,
        found.noise_scale,
        cost,
        found.total.scaled(cost / UNIT),
        found.noise_scale.scaled(cost / UNIT),
    )


def relative(other: Estimate, base: Estimate) -> Estimate:
    """other / base of two positive estimates, in the widest interval that theirs allow."""

    def quotient(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None or b <= 0 else a / b

    return Estimate(
        quotient(other.value, base.value), quotient(other.low, base.high), quotient(other.high, base.low)
    )
