"""What going on with pretraining brings on tasks with labels, compared with the encoder it began with.

    cloze evaluate MODEL --suite classify --data TASKS --out before
    cloze compare adapt --model MODEL --sweep ... --suite classify --suite-data TASKS --out adapted
    python benchmarks/adapted.py before/evaluation.json adapted/runs --json FILE

The second argument is a folder of folders NAME-SEED, each with an evaluation.json. For each task and name:
mean and standard deviation over seeds, and the difference to the encoder before and to the first name
(paired by seed), with 95% intervals that hold together over the tasks (Bonferroni). If the encoder before
has several values, of fine-tuning with several seeds, that interval is Welch's.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

from cloze.comparison.statistics import ALPHA, mean_interval
from cloze.variance.estimate import Estimate, t_quantile

Values = dict[str, dict[int, dict[str, float]]]  # {name: {seed: {task: value}}}


def collect(runs: Path, suite: str, metric: str) -> Values:
    """What the evaluation of each run says."""
    found: Values = {}
    for file in sorted(runs.glob("*/evaluation.json")):
        match = re.fullmatch(r"(.+)-(\d+)", file.parent.name)
        content = json.loads(file.read_text("utf-8"))
        tasks = next((content[key] for key in content if key.split()[0] == suite), None)
        if match and tasks:
            values = {task: metrics[metric]["mean"] for task, metrics in tasks.items()}
            found.setdefault(match[1], {})[int(match[2])] = values
    if not found:
        raise SystemExit(f"{runs}: no folder NAME-SEED with an evaluation.json that has the suite {suite}")
    return found


def to_before(values: list[float], before: list[float], comparisons: int) -> Estimate:
    """Difference of the means; `before` is a number that is known, or a sample as well (Welch's interval)."""
    if len(before) < 2 or statistics.stdev(before) == 0.0:
        return mean_interval([value - before[0] for value in values], comparisons)
    a, b = (statistics.variance(x) / len(x) for x in (values, before))
    freedom = (a + b) ** 2 / (a**2 / (len(values) - 1) + b**2 / (len(before) - 1))
    half = t_quantile(max(1, int(freedom)), 1.0 - ALPHA / comparisons) * math.sqrt(a + b)
    mean = statistics.fmean(values) - statistics.fmean(before)
    return Estimate(mean, mean - half, mean + half)


def table(found: Values, before: dict[str, list[float]], first: str) -> tuple[list[str], dict[str, Any]]:
    """Lines in Markdown, and the same as JSON."""
    names = [first, *(name for name in found if name != first)]
    lines = ["| task | before | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    result: dict[str, Any] = {}
    for task, start in before.items():
        cells = [f"{statistics.fmean(start):.3f}"]
        result[task] = {"before": start}
        for name in names:
            seeds = [seed for seed in found[name] if task in found[name][seed]]
            values = [found[name][seed][task] for seed in seeds]
            difference = to_before(values, start, len(before))
            spread = f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"
            cell = f"{spread}, to before {_words(difference)}"
            entry = {"values": values, "to_before": difference.as_dict()}
            if name != first:
                both = [seed for seed in seeds if seed in found[first]]
                paired = mean_interval(
                    [found[name][seed][task] - found[first][seed][task] for seed in both],
                    len(before) * (len(names) - 1),
                )
                cell += f", to {first} {_words(paired)}"
                entry[f"to_{first}"] = paired.as_dict()
            cells.append(cell)
            result[task][name] = entry
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return lines, result


def _words(estimate: Estimate) -> str:
    value, low, high = estimate.as_dict().values()
    assert value is not None
    return f"{value:+.3f}" + ("" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="evaluation.json of the encoder that was not continued")
    parser.add_argument("runs", type=Path, help="folder of NAME-SEED folders")
    parser.add_argument("--suite", default="classify")
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--first", help="the name that others are compared with; default: the first")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = collect(args.runs, args.suite, args.metric)
    tasks = json.loads(args.before.read_text("utf-8"))[args.suite]
    before = {task: metrics[args.metric]["values"] for task, metrics in tasks.items()}
    lines, result = table(found, before, args.first or next(iter(found)))
    print("\n".join(lines))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
