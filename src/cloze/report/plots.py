"""The curves of a run: SVG that follows the page's colours, and a PNG for a README.

Figures are drawn in the colours of `PALETTE`; in SVG each of them becomes the CSS variable of that name, so
one drawing is legible on a light page, a dark one and on paper.
"""

import io
import os
import re
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from cloze.report.reading import Run, read_run

PALETTE = {
    "page": "#ffffff",
    "soft": "#5b6470",
    "rule": "#d9dcdf",
    "model": "#0b6a88",
    "train": "#93b7c4",
    "base": "#b25a21",
    # Of further lines in a plot of several recipes.
    "line-2": "#4f7d2f",
    "line-3": "#7b4f9e",
    "line-4": "#b03052",
    "line-5": "#8d751a",
    "line-6": "#1c8a7d",
    "line-7": "#7a6253",
}
SMALL_PLOTS = {
    "tokens_per_second": "tokens per second",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "rate": "masking rate",
}
TIME_UNITS = ((172_800, 86_400, "days"), (5_400, 3_600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))

XAxis = Literal["tokens", "seconds"]


def loss_svg(run: Run, x: XAxis) -> str | None:
    """Held-out and training loss against tokens or time; None if there is nothing to draw."""
    if not has_points(run, x):
        return None
    figure = Figure(figsize=(4.5, 3.0), layout="constrained", facecolor="none")
    _draw_loss(figure.add_subplot(), run, x)
    return svg(figure, f"loss-{x}", f"Held-out loss against {'tokens' if x == 'tokens' else 'time'}")


def small_svg(run: Run, key: str) -> str | None:
    """A small plot against tokens of one column of the step lines; None if it has fewer than two values."""
    tokens, values = _known(run.steps["tokens"], run.steps[key])
    if len(values) < 2:
        return None
    label = SMALL_PLOTS.get(key, "training loss")
    figure = Figure(figsize=(3.1, 1.75), layout="constrained", facecolor="none")
    axes = figure.add_subplot()
    axes.plot(tokens, values, color=PALETTE["model"], linewidth=1.1)
    axes.set_ylim(0, max(1e-12, 1.1 * float(values.max())))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if key == "tokens_per_second":
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    elif key == "learning_rate":
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    _finish(axes, "tokens", float(tokens.max()), "tokens")
    axes.set_title(label, loc="left", fontsize=8, color=PALETTE["soft"])
    return svg(figure, f"small-{key}", f"{label} against tokens")


def save_loss_plot(folder: Path, out: Path) -> None:
    """Write the loss curves of a run folder, against tokens and against time, as a PNG on white."""
    run = read_run(folder)
    figure = Figure(figsize=(9.0, 3.4), layout="constrained", facecolor=PALETTE["page"], dpi=160)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_loss(left, run, "tokens")
    _draw_loss(right, run, "seconds")
    right.set_ylabel("")
    temporary = out.with_name(out.name + ".tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, out)


def has_points(run: Run, x: XAxis) -> bool:
    """Whether a loss plot would show anything beyond the start of the run."""
    return any(_known(lines[x], lines["loss"])[0].max(initial=0.0) > 0 for lines in (run.heldout, run.steps))


def comparable(run: Run) -> bool:
    """Whether the training loss is of the held-out loss's size, so that one axis shows both well."""
    training = run.steps["loss"][np.isfinite(run.steps["loss"])]
    heldout = run.heldout["loss"][np.isfinite(run.heldout["loss"])]
    if not len(training) or not len(heldout):
        return True
    typical = float(np.median(training[len(training) // 2 :]))
    return bool(0.5 * heldout[-1] <= typical <= 2.0 * heldout[-1])


def _draw_loss(axes: Axes, run: Run, x: XAxis) -> None:
    training, loss = _known(run.steps[x], run.steps["loss"])
    evaluations, heldout_loss = _known(run.heldout[x], run.heldout["loss"])
    last = float(np.concatenate([np.zeros(1), training, evaluations]).max())
    unit, label = _unit(x, last)
    heights = [*heldout_loss]
    if comparable(run) and len(loss):
        # A few spikes in training must not flatten what the plot is about.
        heights += [loss.min(), np.percentile(loss, 99.5)]
        axes.plot(training / unit, loss, color=PALETTE["train"], linewidth=0.8, label="training")
    unigram = run.number("unigram_loss")
    if unigram is not None:
        heights.append(unigram)
        dashes = (0, (5, 3))
        style: dict[str, Any] = {"color": PALETTE["base"], "linewidth": 1.1, "linestyle": dashes}
        axes.axhline(unigram, label="unigram baseline", **style)
    if len(heldout_loss):
        marker = "o" if len(heldout_loss) <= 60 else ""
        style = {"color": PALETTE["model"], "linewidth": 1.6, "marker": marker, "markersize": 3}
        axes.plot(evaluations / unit, heldout_loss, label="held-out", clip_on=False, **style)
    if heights:
        margin = 0.05 * (max(heights) - min(heights)) or 0.5
        axes.set_ylim(min(heights) - margin, max(heights) + margin)
        legend = axes.legend(loc="upper right", fontsize=8, labelcolor=PALETTE["soft"], reverse=True)
        legend.get_frame().set(facecolor=PALETTE["page"], edgecolor="none", alpha=1.0)
    axes.set_ylabel("loss (nats)", fontsize=8, color=PALETTE["soft"])
    _finish(axes, x, last / unit, label)


def _unit(x: XAxis, last: float) -> tuple[float, str]:
    if x == "tokens":
        return 1, "tokens"
    return next((unit, name) for start, unit, name in TIME_UNITS if last >= start)


def _finish(axes: Axes, x: XAxis, last: float, label: str) -> None:
    if x == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlim(0, 1.02 * max(last, 1.0))
    finish(axes, label)


def finish(axes: Axes, label: str, grid: Literal["x", "y"] = "y") -> None:
    """The look of all plots: a label below, soft lines along one axis, no frame."""
    axes.set_xlabel(label, fontsize=8, color=PALETTE["soft"])
    axes.set_facecolor("none")
    axes.grid(axis=grid, color=PALETTE["rule"], linewidth=0.6)
    axes.tick_params(labelsize=8, length=0, labelcolor=PALETTE["soft"])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(PALETTE["rule"])


def _known(across: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keep = np.isfinite(across) & np.isfinite(values)
    return across[keep], values[keep]


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an inline `<svg>`: real text, ids of its own, the page's colours, no fixed size."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    view = re.search(r'viewBox="([^"]*)"', svg)
    body = svg[svg.index(">") + 1 :]
    # A style sheet inside an inline drawing would apply to the whole page.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body).replace("xlink:href", "href")
    for colour, value in PALETTE.items():
        body = body.replace(value, f"var(--{colour})")
    return f'<svg role="img" aria-label="{description}" viewBox="{view[1] if view else ""}">{body.strip()}'
