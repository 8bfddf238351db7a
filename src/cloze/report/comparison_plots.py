"""The plots of a comparison: a line for each recipe, with a band over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from cloze.comparison.curves import Line
from cloze.report.plots import PALETTE, TIME_UNITS, finish, svg
from cloze.variance.estimate import Estimate

COLOURS = ("base", "model", "line-2", "line-3", "line-4", "line-5", "line-6", "line-7")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))


def style_of(number: int) -> dict[str, Any]:
    """Colour and dashes of the recipe of that number; 0 is the baseline."""
    return {
        "color": PALETTE[COLOURS[number % len(COLOURS)]],
        "linestyle": _DASHES[number // len(COLOURS) % len(_DASHES)],
    }


def plain(name: str) -> str:
    """A name that is drawn as it is: dollars would begin a formula."""
    return name.replace("$", r"\$")


def curves_svg(lines: Sequence[Line], measure: str, unit: str, legend: bool) -> str | None:
    """The held-out metric against tokens, operations or seconds; the start of training is cut off.

    Args:
        lines: the baseline first.
    """
    known = [line for line in lines if len(line.at) > 1]
    if not known:
        return None
    figure, axes = _figure(4.5, 3.1)
    scale, label = _scale(measure, max(line.at[-1] for line in known))
    for number, line in enumerate(lines):
        _draw(axes, line, number, scale)
    axes.set_ylim(*_limits(known))
    axes.set_title(unit, loc="left", fontsize=8, color=PALETTE["soft"])
    _finish(axes, measure, label)
    if legend:
        _legend(axes)
    return svg(figure, f"curves-{measure}", f"Held-out loss against {measure}")


def gaps_svg(lines: Sequence[Line], measure: str, unit: str) -> str | None:
    """The paired difference to the baseline against tokens, with its interval at each point.

    Args:
        lines: of all recipes but the baseline; those of one seed have no band.
    """
    known = [line for line in lines if len(line.at) > 1]
    if not known:
        return None
    figure, axes = _figure(4.5, 3.1)
    scale, label = _scale(measure, max(line.at[-1] for line in known))
    axes.axhline(0.0, color=PALETTE["base"], linewidth=1.6)
    for number, line in enumerate(lines, start=1):
        _draw(axes, line, number, scale)
    middles = np.concatenate([np.asarray(line.middle)[len(line.middle) // 4 :] for line in known])
    ends = np.concatenate([np.asarray(b)[len(b) // 2 :] for line in known for b in (line.low, line.high)])
    reach = 1.15 * max(
        float(np.abs(middles).max()), min(float(np.abs(ends).max()), 6 * float(np.abs(middles).max()))
    )
    axes.set_ylim(-reach or -1.0, reach or 1.0)
    axes.set_title(unit, loc="left", fontsize=8, color=PALETTE["soft"])
    _finish(axes, measure, label)
    return svg(figure, f"gaps-{measure}", f"Difference to the baseline against {measure}")


def intervals_svg(estimates: Mapping[str, Estimate], unit: str, names: Sequence[str]) -> str | None:
    """The final difference of recipes to the baseline, with its interval.

    Args:
        names: of all recipes, the baseline first; a recipe has the same colour in all plots.
    """
    if all(e.value is None for e in estimates.values()):
        return None
    figure, axes = _figure(4.5, 0.75 + 0.3 * len(estimates))
    axes.axvline(0.0, color=PALETTE["base"], linewidth=1.6)
    for number, (name, e) in enumerate(estimates.items(), start=1):
        colour = style_of(names.index(name))["color"]
        if e.low is not None and e.high is not None:
            axes.plot([e.low, e.high], [number, number], color=colour, linewidth=2.2, solid_capstyle="butt")
        if e.value is not None:
            axes.plot([e.value], [number], "o", color=colour, markersize=6)
    axes.set_yticks(range(1, len(estimates) + 1), [plain(name) for name in estimates])
    axes.set_ylim(len(estimates) + 0.6, 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    finish(axes, unit, "x")
    return svg(figure, "intervals", "Difference of each recipe to the baseline, with its interval")


def _draw(axes: Axes, line: Line, number: int, scale: float) -> None:
    if len(line.at) < 2:
        return
    style = style_of(number)
    at = np.asarray(line.at) / scale
    axes.fill_between(at, line.low, line.high, color=style["color"], alpha=0.16, linewidth=0)
    axes.plot(at, line.middle, linewidth=1.5, label=plain(line.name), **style)


def _limits(lines: Sequence[Line]) -> tuple[float, float]:
    """From the lowest value to a little above where the slowest line is after a fifth of its way."""
    low = min(float(np.min(line.low)) for line in lines)
    heights = [float(np.interp(0.2 * line.at[-1], line.at, line.middle)) for line in lines]
    high = max(*heights, low + 1e-6) if len(heights) > 1 else max(heights[0], low + 1e-6)
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _scale(measure: str, last: float) -> tuple[float, str]:
    if measure != "seconds":
        return 1.0, measure
    return next((unit, name) for start, unit, name in TIME_UNITS if last >= start)


def _finish(axes: Axes, measure: str, label: str) -> None:
    if measure != "seconds":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlim(left=0)
    finish(axes, label)


def _legend(axes: Axes) -> None:
    legend = axes.legend(loc="upper right", fontsize=8, labelcolor=PALETTE["soft"])
    legend.get_frame().set(facecolor=PALETTE["page"], edgecolor="none", alpha=1.0)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    return figure, axes
