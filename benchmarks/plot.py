"""The picture of speed in the docs, from the results that are kept.

    python benchmarks/plot.py --out docs/images/speed.png

Left: `results/throughput.json`. Right: the runs of `results/time_to_loss`: each point is a whole run, its
minutes of training and the held-out loss that it reached.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import HERE
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cloze.report.plots import PALETTE

# What the right plot shows: the ends of the chain, not every arm.
SHOWN = {"stock": "stock", "sparse": "our loop, stock's\nmodel and settings", "bf16": "recipe fast"}


def speeds(axes: Axes, found: dict[str, Any]) -> None:
    """A bar for each arm, with the lowest and the highest."""
    arms = {name: arm["tokens_per_second"] for name, arm in reversed(found["arms"].items())}
    middle = [s["median"] for s in arms.values()]
    ends = [[s["median"] - s["low"] for s in arms.values()], [s["high"] - s["median"] for s in arms.values()]]
    colours = [PALETTE["base" if name.startswith("stock") else "model"] for name in arms]
    names = [name if name.startswith("stock") else f"ours: {name}" for name in arms]
    axes.barh(names, middle, xerr=ends, color=colours, height=0.62, ecolor=PALETTE["soft"])
    axes.set_title("tokens per second, float32", loc="left", fontsize=9)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def losses(axes: Axes, runs: list[dict[str, Any]]) -> None:
    """Held-out loss against minutes; lines join the runs of one arm."""
    longest = max(r["settings"]["minutes"] for r in runs if r["arm"] == "stock")
    runs = [r for r in runs if r["arm"] != "stock" or r["settings"]["minutes"] == longest]
    for arm, name in SHOWN.items():
        mine = sorted((r["seconds"] / 60, r["heldout_loss"]) for r in runs if r["arm"] == arm)
        colour = PALETTE["base" if arm == "stock" else "model"]
        axes.plot(*zip(*mine, strict=True), "o-", color=colour, linewidth=1, markersize=4)
        axes.annotate(
            name, mine[-1], (6, 0), textcoords="offset points", fontsize=7, color=colour, va="center"
        )
    axes.axhline(min(r["heldout_loss"] for r in runs if r["arm"] == "stock"), color=PALETTE["rule"], zorder=0)
    axes.set_title("held-out loss against minutes of training", loc="left", fontsize=9)
    axes.set_xlim(0, 1.15 * longest)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the JSON files")
    parser.add_argument("--out", type=Path, required=True, help="PNG")
    chosen = parser.parse_args()
    throughput = json.loads((chosen.results / "throughput.json").read_text("utf-8"))
    files = sorted((chosen.results / "time_to_loss").glob("run-*.json"))
    figure = Figure(figsize=(9.0, 3.4), layout="constrained", facecolor=PALETTE["page"], dpi=160)
    left, right = figure.subplots(1, 2)
    speeds(left, throughput)
    losses(right, [json.loads(file.read_text("utf-8")) for file in files])
    for axes in (left, right):
        axes.tick_params(labelsize=7, colors=PALETTE["soft"], length=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(chosen.out)


if __name__ == "__main__":
    main()
