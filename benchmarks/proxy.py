"""How well a short run foretells a long one: do two recipes keep their order until the end?

    python benchmarks/proxy.py benchmarks/results/masking runs/comparison --json FILE

Reads held-out curves of finished runs: folders of `cloze compare` (OUT or OUT/runs) or of masking.py. Within
each set of runs that compare (a comparison; in masking.py's folders a regime, rate and model) every two
recipes are looked at in every seed: which one is ahead at the first evaluation at or after a share of the
tokens, and which one at the end? Prints how often that is the same, by the size of the early gap, which
is what one knows in time, and by the size of the final gap, which is what it costs to be wrong. Then the same
for the means over seeds. The control pairs early curves with the final losses of another seed: what is left
of the agreement there is owed to the recipes, the rest to the seed.

It foretells by truncated curves of one long run each. A proxy with a schedule of its own may do better.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BINS = (0.0, 0.005, 0.02, 0.05, float("inf"))  # nats


@dataclass(frozen=True, slots=True)
class Curve:
    """A run's held-out curve.

    Attributes:
        cell: runs of one cell compare. recipe, seed: which run it is.
        points: (tokens, loss) in their order.
    """

    cell: str
    recipe: str
    seed: int
    points: tuple[tuple[float, float], ...]

    def at(self, share: float) -> tuple[float, float]:
        """Share of the tokens and loss at the first evaluation at or after a share of the tokens."""
        whole = self.points[-1][0]
        tokens, loss = next(p for p in self.points if p[0] >= 0.999 * share * whole)
        return tokens / whole, loss


@dataclass(frozen=True, slots=True)
class Pair:
    """Two recipes in one seed (or in the mean over seeds): loss of the one less that of the other."""

    early: float
    late: float

    @property
    def kept(self) -> bool:
        """Whether the one that was ahead is ahead; one that was not ahead foretells nothing."""
        return self.early * self.late > 0


def read(folder: Path) -> list[Curve]:
    """The curves of a folder's JSON files; a run that diverged has none.

    The cell of a file of masking.py is in it; runs of a comparison are all of one cell.
    """
    found = []
    for file in sorted([*folder.glob("*.json"), *folder.glob("runs/*.json")]):
        content = json.loads(file.read_text("utf-8"))
        if (
            not isinstance(content, dict)
            or len(content.get("curve", [])) < 3
            or content.get("status") == "diverged"
        ):
            continue
        cell = [folder.resolve().name]
        if "arm" in content:  # files of earlier versions do not name what was always so
            content = {"layers": 4, "family": "modernbert"} | content
        for key in ("regime", "rate", "width", "layers", "family"):
            if key in content:
                cell.append(f"{content[key]:.3g}" if isinstance(content[key], float) else str(content[key]))
        recipe = content.get("recipe") or content["arm"]
        points = tuple((p["tokens"], p["loss"]) for p in content["curve"])
        found.append(Curve(" ".join(cell), recipe, content["seed"], points))
    return found


def pairs(curves: Iterable[Curve], share: float, other_seed: bool = False) -> list[Pair]:
    """Every two recipes of a cell in every seed that both have.

    `other_seed`: with the final losses of the next seed, the control.
    """
    runs = {(c.cell, c.recipe, c.seed): c for c in curves}
    found = []
    for (cell, a, seed), (other_cell, b, other) in itertools.combinations(sorted(runs), 2):
        if cell != other_cell or seed != other or a == b:
            continue
        ours, theirs = runs[cell, a, seed], runs[cell, b, seed]
        late_seed = _next_seed(runs, cell, a, b, seed) if other_seed else seed
        if late_seed is None:
            continue
        final = [runs[cell, name, late_seed].points[-1][1] for name in (a, b)]
        found.append(Pair(ours.at(share)[1] - theirs.at(share)[1], final[0] - final[1]))
    return found


def _next_seed(runs: dict[tuple[str, str, int], Curve], cell: str, a: str, b: str, seed: int) -> int | None:
    seeds = sorted(s for c, name, s in runs if (c, name) == (cell, a) and (cell, b, s) in runs)
    return seeds[(seeds.index(seed) + 1) % len(seeds)] if len(seeds) > 1 else None


def mean_pairs(curves: Iterable[Curve], share: float) -> list[Pair]:
    """Every two recipes of a cell, in the mean over the seeds that both have, at least two."""
    cells: dict[tuple[str, str], dict[int, Curve]] = defaultdict(dict)
    for curve in curves:
        cells[curve.cell, curve.recipe][curve.seed] = curve
    found = []
    for (cell, a), (other_cell, b) in itertools.combinations(sorted(cells), 2):
        seeds = cells[cell, a].keys() & cells[other_cell, b].keys()
        if cell != other_cell or len(seeds) < 2:
            continue
        early = [cells[cell, a][s].at(share)[1] - cells[cell, b][s].at(share)[1] for s in seeds]
        late = [cells[cell, a][s].points[-1][1] - cells[cell, b][s].points[-1][1] for s in seeds]
        found.append(Pair(statistics.fmean(early), statistics.fmean(late)))
    return found


def agreement(found: Sequence[Pair]) -> dict[str, Any]:
    """How many pairs keep their order, all and by the size of the early and of the final gap."""
    result: dict[str, Any] = {"all": count(found)}
    for name in ("early", "late"):
        result[name] = {
            (f"{low:g} to {high:g}" if high < BINS[-1] else f"above {low:g}"): count(
                [p for p in found if low <= abs(getattr(p, name)) < high]
            )
            for low, high in itertools.pairwise(BINS)
        }
    return result


def count(found: Sequence[Pair]) -> dict[str, int]:
    """Pairs that keep their order, of how many."""
    return {"kept": sum(p.kept for p in found), "of": len(found)}


def words(number: dict[str, int]) -> str:
    """A count in a few words."""
    return f"{number['kept']:>4} of {number['of']:<4}" + (
        f"{number['kept'] / number['of']:>6.0%}" if number["of"] else ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="of JSON files of finished runs")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.5], help="of the tokens")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    curves = [curve for folder in chosen.folders for curve in read(folder)]
    if not curves:
        parser.error("no finished runs with curves there")
    cells = sorted({c.cell for c in curves})
    runs = f"{len(curves)} runs, {len(cells)} sets: {'; '.join(cells)}"
    print(runs)
    result: dict[str, Any] = {"cells": cells, "runs": len(curves), "shares": {}}
    for share in chosen.shares:
        at = [c.at(share)[0] for c in curves]
        found = {
            "looked at": [min(at), max(at)],
            "seeds": agreement(pairs(curves, share)),
            "means": agreement(mean_pairs(curves, share)),
            "control": count(pairs(curves, share, other_seed=True)),
        }
        result["shares"][f"{share:g}"] = found
        show(share, found)
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def show(share: float, found: dict[str, Any]) -> None:
    """A table for one share of the tokens."""
    low, high = found["looked at"]
    print(f"\nafter {share:.0%} of the tokens (evaluations at {low:.1%} to {high:.1%})")
    print(f"  {'order kept until the end':<34}{'one seed':>18}{'mean over seeds':>20}")
    rows = [("all pairs", [found[kind]["all"] for kind in ("seeds", "means")])]
    for name, title in (("early", "early gap"), ("late", "final gap")):
        for size in found["seeds"][name]:
            rows.append((f"{title} {size} nats", [found[kind][name][size] for kind in ("seeds", "means")]))
    for title, (seeds, means) in rows:
        print(f"  {title:<34}{words(seeds):>18}{words(means):>20}")
    print(f"  {'control: final loss, other seed':<34}{words(found['control']):>18}")


if __name__ == "__main__":
    main()
