"""The watch over the loss on finished runs: false alarms, and how small a jump it sees.

    python benchmarks/spikes.py FOLDER --json FILE

Reads metrics.jsonl and recipe.yaml of every run below FOLDER that has at least 12 lines of losses, and shows
the losses to `Spikes` as a run does. An alarm there is counted as false. Then, for each of JUMPS, the losses
from a random line on (of the second half, seeded) are multiplied by it: the share of runs in which that line,
or the next, is an alarm.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import yaml

from cloze.diagnosis import online
from cloze.progress import stretches
from cloze.training.spikes import Spikes

JUMPS = (1.1, 1.2, 1.3, 1.5, 2.0)
Line = tuple[int, float]


def read(folder: Path) -> tuple[list[int], list[Line]]:
    """(steps at which losses may jump, (step, loss) of each line) of a run."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    lines = [(r["step"], r["loss"]) for r in records if r["kind"] == "step"]
    steps = lines[-1][0] if lines else 0
    shares = [part.get("share", 1.0) for part in recipe["training"]["phases"]]
    stages = [part.get("share", 1.0) for part in recipe.get("stages", [{}])]
    begins = [round(start * steps) for start, _ in stretches(shares, stages)]
    decided = online.points(steps) if steps and recipe["masking"]["kind"] == "auto" else ()
    return [*decided, *begins], lines


def alarms(changes: list[int], lines: list[Line]) -> list[int]:
    """Steps of the lines at which a spike begins."""
    spikes = Spikes(changes)
    return [step for step, loss in lines if spikes.see(step, loss) is not None]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    dice, runs = random.Random(args.seed), []
    for file in sorted(args.folder.rglob("metrics.jsonl")):
        if (file.parent / "recipe.yaml").exists():
            found = read(file.parent)
            if len(found[1]) >= 12:
                runs.append((file.parent.name, *found))
    if not runs:
        raise SystemExit(f"{args.folder}: no finished runs")
    false = {name: steps for name, changes, lines in runs if (steps := alarms(changes, lines))}
    seen = dict.fromkeys(map(str, JUMPS), 0)
    for _, changes, lines in runs:
        at = dice.randrange(len(lines) // 2, len(lines) - 1)
        for jump in JUMPS:
            raised = [(step, loss * (jump if i >= at else 1.0)) for i, (step, loss) in enumerate(lines)]
            seen[str(jump)] += bool({lines[at][0], lines[at + 1][0]} & set(alarms(changes, raised)))
    total = sum(len(lines) for _, _, lines in runs)
    print(f"{len(runs)} runs, {total:,} lines: {sum(map(len, false.values()))} false alarms {false or ''}")
    for jump, count in seen.items():
        print(f"loss × {jump}: seen in {count} of {len(runs)}")
    if args.json:
        content = {"runs": len(runs), "lines": total, "false": false, "seen": seen, "seed": args.seed}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
