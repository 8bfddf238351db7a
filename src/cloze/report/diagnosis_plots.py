"""The plots of a diagnosis, in the colours of the page; every estimate with its 95% interval."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cloze.report.plots import PALETTE, finish, svg
from cloze.report.reading import finite

Estimate = dict[str, Any]  # {value, low, high}, each a number or None
WORST = -0.6  # savings below are cut off: a bad control may be at -5000%


def terms_svg(groups: Sequence[dict[str, Any]]) -> str | None:
    """Data and mask term of each group of parameters, side by side in one bar."""
    known = [g for g in groups if _value(g["data_term"]) is not None and _value(g["mask_term"]) is not None]
    if not known:
        return None
    figure, axes = _figure(4.5, 0.9 + 0.26 * len(known))
    places = range(len(known))
    data, mask = ([_value(g[key]) or 0.0 for g in known] for key in ("data_term", "mask_term"))
    axes.barh(places, mask, color=PALETTE["model"], height=0.6, label="mask term")
    axes.barh(places, data, left=mask, color=PALETTE["base"], height=0.6, label="data term")
    _names(axes, [str(g["name"]) for g in known])
    axes.legend(loc="lower right", fontsize=8, labelcolor=PALETTE["soft"], frameon=False)
    finish(axes, "variance of one sequence's gradient", "x")
    return svg(figure, "terms", "Data and mask term of the gradient's variance by group of parameters")


def hamming_svg(distances: Sequence[dict[str, Any]]) -> str | None:
    """Covariance of the gradients of two masks of a sequence against their distance."""
    points = [(d["distance"], d["covariance"]) for d in distances]
    return _curve("hamming", points, "distance of the masks", "covariance", level=0.0, share=True)


def segments_svg(segments: Sequence[dict[str, Any]]) -> str | None:
    """What J disjoint masks leave of the mask term of J independent ones."""
    points = [(s["segments"], s["ratio"]) for s in segments]
    return _curve("segments", points, "disjoint masks of a sequence", "of independent masks", level=1.0)


def savings_svg(savings: dict[str, Estimate]) -> str | None:
    """What each score would save of the mask term; below 0 it makes it larger."""
    known = {name: s for name, s in savings.items() if _value(s) is not None}
    if not known:
        return None
    figure, axes = _figure(4.5, 0.9 + 0.28 * len(known))
    for place, (name, estimate) in enumerate(known.items()):
        value = _value(estimate) or 0.0
        colour = PALETTE["base"] if value < 0 else PALETTE["model"]
        colour = PALETTE["train"] if name.startswith("best") else colour
        axes.barh(place, max(value, WORST), color=colour, height=0.6)
        if value < WORST:
            axes.text(WORST, place, f" {value:,.0%}", fontsize=8, va="center", color=PALETTE["page"])
        else:
            _whisker(axes, place, estimate, WORST, across=True)
    _names(axes, list(known))
    axes.axvline(0.0, color=PALETTE["soft"], linewidth=0.8)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    finish(axes, "saved of the mask term", "x")
    return svg(figure, "savings", "What each score would save of the mask term")


def sweep_svg(key: str, points: Sequence[dict[str, Any]], now: float, noise: bool) -> str | None:
    """Variance or noise scale at equal compute, at other rates or lengths (`key`); the present one marked."""
    measure = "noise_per_compute" if noise else "variance_per_compute"
    known = [(p[key], p[measure]) for p in points if finite(p.get(key)) is not None]
    label = f"{'noise scale' if noise else 'variance'} × cost"
    x = "masking rate" if key == "rate" else "tokens of a sequence"
    return _curve(f"{key}-{measure}", known, x, label, share=key == "rate", now=now)


def _curve(
    name: str,
    points: Sequence[tuple[float, Estimate]],
    x: str,
    y: str,
    level: float | None = None,
    share: bool = False,
    now: float | None = None,
) -> str | None:
    known = sorted((at, e) for at, e in points if _value(e) is not None) if _distinct(points) else []
    if len(known) < 2:
        return None
    figure, axes = _figure(3.1, 2.3)
    if level is not None:
        axes.axhline(level, color=PALETTE["base"], linewidth=1.1, linestyle=(0, (5, 3)))
    places = [at for at, _ in known]
    axes.plot(places, [_value(e) or 0.0 for _, e in known], color=PALETTE["train"], linewidth=1.1)
    for at, estimate in known:
        colour = PALETTE["base"] if at == now else PALETTE["model"]
        axes.plot([at], [_value(estimate) or 0.0], "o", color=colour, markersize=4)
        _whisker(axes, at, estimate, colour=colour)
    lowest = min([_value(e) or 0.0 for _, e in known] + [_end(e, "low") for _, e in known])
    if level is None or lowest >= 0:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if share:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.set_xticks(places)
    axes.set_title(y, loc="left", fontsize=8, color=PALETTE["soft"])
    finish(axes, x)
    return svg(figure, name, f"{y} against {x}")


def _distinct(points: Sequence[tuple[float, Estimate]]) -> bool:
    return len({at for at, _ in points}) == len(points)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    return figure, axes


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()


def _whisker(
    axes: Axes,
    place: float,
    estimate: Estimate,
    least: float | None = None,
    across: bool = False,
    colour: str = PALETTE["soft"],
) -> None:
    low, high = finite(estimate.get("low")), finite(estimate.get("high"))
    if low is None or high is None:
        return
    ends = [low if least is None else max(low, least), high]
    style: dict[str, Any] = {"color": colour, "linewidth": 1.2, "solid_capstyle": "butt"}
    axes.plot(*((ends, [place, place]) if across else ([place, place], ends)), **style)


def _value(estimate: object) -> float | None:
    return finite(estimate.get("value")) if isinstance(estimate, dict) else None


def _end(estimate: Estimate, key: str) -> float:
    end = finite(estimate.get(key))
    return (_value(estimate) or 0.0) if end is None else end
