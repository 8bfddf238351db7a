"""From finished runs to differences, speed-ups and a verdict.

The held-out metric is one family of comparisons: a recipe each, of those whose held-out loss is of the same
as the first one's. Losses of different things are never subtracted. Each downstream suite is a family of its
own: recipes × tasks. Intervals of a family hold together.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cloze.comparison.arms import differences as changes_of
from cloze.comparison.plan import Plan
from cloze.comparison.result import UNITS, ArmFacts, Comparison, Difference, Mean, Speedup
from cloze.comparison.runs import PROBED, Finished, MetricName
from cloze.comparison.statistics import mean_interval, ratio_interval, reached_at
from cloze.comparison.verdict import finding, sentence
from cloze.evaluation.suites import SUITES
from cloze.variance.estimate import Estimate

MEASURES = ("tokens", "operations", "seconds")
Values = Mapping[str, Mapping[int, float | None]]
"""Of each arm, the value of each seed; None: the run diverged."""


def analyse(
    plan: Plan,
    runs: Sequence[Finished],
    margin: float | None = None,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> Comparison:
    """What the runs of a plan show.

    Args:
        margin: how much worse in the held-out metric still counts as not worse; None: not asked.
    """
    arms = tuple(_facts(plan))
    names = [arm.recipe for arm in arms]
    whole: dict[str, Values] = {plan.metric: held_out(runs, plan.metric)}
    like = [arm for arm in arms if arm.measures == arms[0].measures]
    suites = _suites(runs, {arm.recipe for arm in like})
    summaries, parts = _summaries(suites), [tasks for tasks in suites.values() if len(tasks) > 1]
    main = differences_of([arm.recipe for arm in like], whole, {plan.metric}, margin)
    common = differences_of(names, summaries, _lower(summaries))
    more = [d for family in parts for d in differences_of(names, family, _lower(family))]
    return Comparison(
        metric=plan.metric,
        arms=arms,
        runs=tuple(runs),
        means=(
            *means_of(names, whole | summaries),
            *(mean for tasks in parts for mean in means_of(names, tasks, part=True)),
        ),
        differences=(*main, *common, *more),
        speedups=tuple(speedups_of(like, runs, plan.metric)),
        verdict=tuple(verdict_of(plan, main, common, margin)),
        notes=plan.notes,
        settings=dict(settings or {}),
        environment=dict(environment or {}),
    )


def _facts(plan: Plan) -> Iterable[ArmFacts]:
    for p in plan.arms:
        steps = p.steps
        yield ArmFacts(
            recipe=p.arm.name,
            changes=tuple(changes_of(p.arm, plan.arms[0].arm)),
            steps=steps,
            tokens=steps * p.cost.tokens,
            operations=steps * p.cost.operations,
            seconds_per_step=p.seconds_per_step,
            seconds=p.seconds,
            measures=p.measures,
        )


def held_out(runs: Sequence[Finished], metric: MetricName) -> dict[str, dict[int, float | None]]:
    """The final held-out metric of each arm and seed."""
    found: dict[str, dict[int, float | None]] = {}
    for run in runs:
        found.setdefault(run.recipe, {})[run.seed] = run.value(metric)
    return found


def _suites(runs: Sequence[Finished], like: set[str]) -> dict[str, dict[str, Values]]:
    """For each suite the values of its tasks in their main metric, as {SUITE/TASK/METRIC: values}.

    A suite that measures each model by what it predicts (`Suite.common`) is of the recipes `like` the first.
    """
    found: dict[str, dict[str, dict[str, dict[int, float | None]]]] = {}
    for run in runs:
        for suite, tasks in run.suites.items():
            if run.recipe not in like and not SUITES[suite.removesuffix(PROBED)].common:
                continue
            for task, metrics in tasks.items():
                metric = next(iter(metrics))  # a suite names the main one first
                values = found.setdefault(suite, {}).setdefault(f"{suite}/{task}/{metric}", {})
                values.setdefault(run.recipe, {})[run.seed] = statistics.fmean(metrics[metric])
    for run in (run for run in runs if run.status == "diverged"):
        for values in (values for tasks in found.values() for values in tasks.values()):
            values.setdefault(run.recipe, {})[run.seed] = None
    return {suite: dict(tasks) for suite, tasks in found.items()}


def _summaries(suites: Mapping[str, Mapping[str, Values]]) -> dict[str, Values]:
    """For each suite its one task, or the mean over its tasks: what a table of all suites shows."""
    found: dict[str, Values] = {}
    for suite, tasks in suites.items():
        if len(tasks) == 1:
            found |= tasks
            continue
        metrics = {name.rpartition("/")[2] for name in tasks}
        name = f"{suite}/mean of {len(tasks)} tasks/{metrics.pop() if len(metrics) == 1 else 'main metrics'}"
        first = next(iter(tasks.values()))
        found[name] = {
            recipe: {seed: _mean([task[recipe][seed] for task in tasks.values()]) for seed in seeds}
            for recipe, seeds in first.items()
        }
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _lower(family: Iterable[str]) -> set[str]:
    """Those of the metrics of which less is better."""
    words = ("loss", "perplexity", "bits", "error")
    return {name for name in family if any(word in name.rpartition("/")[2] for word in words)}


def means_of(names: Sequence[str], family: Mapping[str, Values], part: bool = False) -> list[Mean]:
    """Every arm's own values in every metric of a family."""
    found = []
    for metric, values in family.items():
        for name in names:
            own = dict(sorted(values.get(name, {}).items()))
            known = [x for x in own.values() if x is not None]
            mean = statistics.fmean(known) if known else None
            spread = statistics.stdev(known) if len(known) > 1 else None
            found.append(Mean(name, metric, mean, spread, tuple(own.values()), part))
    return found


def differences_of(
    names: Sequence[str], family: Mapping[str, Values], lower: set[str], margin: float | None = None
) -> list[Difference]:
    """Every other arm against the first one, in every metric of a family.

    A pair in which a run diverged is not left out: it makes the whole difference unknown, or an arm would
    gain by its worst runs.
    """
    baseline, *others = names
    comparisons = max(1, len(others) * len(family))
    found = []
    for metric, values in family.items():
        base = values.get(baseline, {})
        for name in others:
            own = values.get(name, {})
            pairs = [(own[s], base[s]) for s in sorted(own.keys() & base.keys())]
            diverged = any(a is None or b is None for a, b in pairs)
            gaps = tuple(a - b for a, b in pairs if a is not None and b is not None)
            estimate = Estimate(None, None, None) if diverged else mean_interval(gaps, comparisons)
            shown = "diverged" if diverged else finding(estimate, metric in lower, margin)
            found.append(Difference(name, baseline, metric, gaps, estimate, comparisons, shown))
    return found


def speedups_of(arms: Sequence[ArmFacts], runs: Sequence[Finished], metric: MetricName) -> list[Speedup]:
    """What each arm needs to come to the baseline's final value, seed by seed."""
    baseline, found = arms[0], []
    by_key = {(run.recipe, run.seed): run for run in runs}
    seeds = [run.seed for run in runs if run.recipe == baseline.recipe and run.value(metric) is not None]
    comparisons = max(1, len(arms) - 1)
    for arm in arms[1:]:
        paired = [s for s in seeds if (arm.recipe, s) in by_key]
        steps = []
        for seed in paired:
            target = by_key[baseline.recipe, seed].value(metric)
            curve = [(float(step), value) for step, _, value in by_key[arm.recipe, seed].points(metric)]
            steps.append(None if target is None else reached_at(curve, target))
        for measure in MEASURES:
            whole = baseline.per_step(measure) * baseline.steps
            needed = tuple(None if s is None else s * arm.per_step(measure) for s in steps)
            ratios = [whole / x for x in needed if x]
            all_reached = len(ratios) == len(needed) > 0
            estimate = ratio_interval(ratios, comparisons) if all_reached else Estimate(None, None, None)
            found.append(Speedup(arm.recipe, baseline.recipe, measure, needed, whole, estimate))
    return found


def verdict_of(
    plan: Plan, main: Sequence[Difference], common: Sequence[Difference], margin: float | None
) -> list[str]:
    """What may be said, in sentences.

    Args:
        main: of the held-out metric. common: of the suites; said of recipes that have no other difference.
    """
    first, seeds, unit = plan.arms[0], len(plan.seeds), UNITS[plan.metric]
    baseline = first.arm.name
    lines = [sentence(d.recipe, baseline, d.finding, d.estimate, unit, margin) for d in main]
    others: dict[str, list[str]] = {}
    for other in (p for p in plan.arms if p.measures != first.measures):
        others.setdefault(other.measures, []).append(other.arm.name)
    for measures, names in others.items():
        whose = "its" if len(names) == 1 else "their"
        lines.append(
            f"{', '.join(names)}: {whose} held-out loss is of {measures}, that of {baseline} of "
            f"{first.measures}: not comparable."
        )
    apart = {name for names in others.values() for name in names}
    for d in (d for d in common if d.recipe in apart and d.finding not in ("missing", "no interval")):
        suite, metric = d.metric.partition("/")[0], d.metric.rpartition("/")[2]
        lines.append(f"{suite}, {sentence(d.recipe, baseline, d.finding, d.estimate, metric, None)}")
    if seeds == 1:
        return [*lines, "One seed tells nothing of how much seeds differ: use --seeds 3 or more."]
    together = f" for all {len(main)} recipes together (Bonferroni)" if len(main) > 1 else ""
    lines.append(
        f"Brackets are 95% intervals over {seeds} seeds{together}; recipes are compared with {baseline}, "
        "not with each other. They hold for this text, model and budget."
    )
    return lines
