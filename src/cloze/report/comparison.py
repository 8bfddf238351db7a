"""A comparison as one HTML page that needs nothing else: the verdict, and the numbers it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from cloze.comparison.curves import bands, gaps
from cloze.comparison.result import UNITS, Comparison, Difference, Mean, Speedup
from cloze.comparison.verdict import with_interval
from cloze.report import comparison_plots as plots
from cloze.report.markup import NOTHING, compact, duration, facts, figure, section
from cloze.report.page import document, glossary, write_page

GLOSSARY = {
    "held-out loss": "−log of the probability that the model gives what it predicts (a masked token, the "
    "next one, …) in text that is never trained on, in nats: on fixed masks, the same tokens for all runs "
    "that predict the same. Losses of different things do not compare.",
    "bits per character": "The same in bits, spread over the characters of a token, so that tokenizers "
    "compare roughly: what a token is also decides how much of the text around it is masked.",
    "difference": "Of two runs with the same seed, which share initial weights, order of text and masks; "
    "mean over seeds. Below 0 the recipe has the lower loss.",
    "interval": "95%, Student's t over seeds, with Bonferroni's correction: all intervals of one table hold "
    "at the same time in 95% of such comparisons.",
    "operations": "Counted: 6 for each parameter and each token that it works on, and those of attention. "
    "Norms, activations, the optimiser and a policy's own network are not counted; they are in the time.",
    "time": "Steps times the median time of a step, taken in turn with the other recipes on this machine. "
    "Evaluations, saving and starting are not in it.",
    "× less": "The baseline's whole budget over what the recipe needs to come to the baseline's final value, "
    "geometric mean over seeds. Its learning rate was still that of its whole run, so it is a lower bound.",
}
WORDS = {
    "better": "better",
    "worse": "worse",
    "not worse": "not worse",
    "open": "no difference shown",
    "no interval": "no interval, no claim",
    "diverged": "a run diverged",
    "missing": "",
}


def write_comparison(found: Comparison, folder: Path) -> Path:
    """Write `report.html`, and return its path."""
    return write_page(folder / "report.html", render(found))


def render(found: Comparison) -> str:
    """The whole page."""
    body = (
        f"<header>{_title(found)}</header>",
        f'<section class="top">{_verdict(found)}</section>',
        section("Held-out text", (_heldout(found),)),
        section("To the same loss", (_speedups(found),)),
        section("Along the way", (_curves(found),)),
        section("Downstream", _suites(found)),
        section("The recipes", (_recipes(found),)),
        section("Every run", (_runs(found),)),
        section("How it was made", (_made(found),)),
        glossary(GLOSSARY),
    )
    return document(f"{found.arms[0].recipe} and others · Cloze comparison", body)


def _title(found: Comparison) -> str:
    names, seeds = [arm.recipe for arm in found.arms], len(found.settings.get("seeds", ()))
    about = (
        f"{len(names)} recipes, {seeds} {'seed' if seeds == 1 else 'seeds'} each, "
        f"{found.settings.get('budget', '')} a run. Every recipe is compared with the first, "
        f"{escape(names[0])}."
    )
    return (
        f'<p class="over">Cloze comparison of <span>{escape(", ".join(names))}</span></p>'
        f'<h1>Which recipe is better?</h1><p class="about">{about}</p>'
    )


def _verdict(found: Comparison) -> str:
    said = "".join(f"<li>{escape(line)}</li>" for line in found.verdict[:-1])
    notes = "".join(f'<p class="warning">{escape(note)}</p>' for note in found.notes)
    return f'<ul class="reading verdict">{said}</ul><p class="note">{escape(found.verdict[-1])}</p>{notes}'


def _heldout(found: Comparison) -> str:
    means = [m for m in found.means if m.metric == found.metric]
    differences = {d.recipe: d for d in found.differences if d.metric == found.metric}
    estimates = {name: d.estimate for name, d in differences.items()}
    unit = UNITS[found.metric]
    drawing = figure(
        plots.intervals_svg(
            estimates,
            f"difference to {plots.plain(found.arms[0].recipe)}, {unit}",
            [arm.recipe for arm in found.arms],
        ),
        "Dots are means over seeds, bars 95% intervals that hold together. Left is better.",
    )
    note, of = "", None
    if found.mixed:
        of = {arm.recipe: arm.measures for arm in found.arms}
        note = (
            '<p class="note">Recipes predict different things. A difference stands only where the loss is of '
            f"the same as for {escape(found.arms[0].recipe)}, {escape(found.arms[0].measures)}; what "
            "compares all of them is Downstream.</p>"
        )
    return (
        note
        + _scores(means, differences, [arm.recipe for arm in found.arms], unit, of)
        + f'<div class="plots one">{drawing}</div>'
    )


def _scores(
    means: Sequence[Mean],
    differences: dict[str, Difference],
    names: list[str],
    unit: str,
    of: Mapping[str, str] | None = None,
) -> str:
    """A row for each recipe; `of`: what its loss is of, where that is not the same for all."""
    rows = []
    for mean in means:
        d = differences.get(mean.recipe)
        own = NOTHING if mean.mean is None else f"{mean.mean:.4f}"
        own += f' <span class="dim">± {mean.spread:.4f}</span>' if mean.spread is not None else ""
        gap = NOTHING if d is None else with_interval(d.estimate) or NOTHING
        word = WORDS[d.finding] if d else "baseline" if mean.recipe == names[0] else "not comparable"
        rows.append(
            (
                _key(mean.recipe, names),
                *([] if of is None else [escape(of[mean.recipe])]),
                own,
                escape(gap),
                f"<b>{word}</b>" if d and d.finding == "better" else word,
            )
        )
    kind = [] if of is None else ["held-out loss of"]
    return _table(("recipe", *kind, f"{unit}, mean ± std", "difference [95%]", ""), rows)


def _key(name: str, names: list[str]) -> str:
    colour = plots.COLOURS[names.index(name) % len(plots.COLOURS)]
    return f'<span class="key" style="background:var(--{colour})"></span>{escape(name)}'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{c}</td>" for c in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<table class="words numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _speedups(found: Comparison) -> str:
    names = [arm.recipe for arm in found.arms]
    measures = list(dict.fromkeys(s.measure for s in found.speedups))
    cells = {(s.recipe, s.measure): s for s in found.speedups}
    compared = list(dict.fromkeys(s.recipe for s in found.speedups))
    if not compared:
        return ""
    rows = [(_key(n, names), *(_times(cells[n, m]) for m in measures)) for n in compared]
    note = (
        f'<p class="note">How many times less each recipe needs to come to the final value that '
        f"{escape(names[0])} has with the same seed. Below, what it needs in each seed.</p>"
    )
    return note + _table(("recipe", *(f"{m}, × less" for m in measures)), rows)


def _times(speedup: Speedup) -> str:
    e = speedup.estimate
    if e.value is None:
        text = (
            "not reached" if not speedup.reached else f"reached in {speedup.reached} of {len(speedup.needed)}"
        )
    else:
        text = f"{e.value:.2f}" + (
            f" [{e.low:.2f}, {e.high:.2f}]" if e.low is not None and e.high is not None else ""
        )
    write = duration if speedup.measure == "seconds" else _short
    each = ", ".join(NOTHING if x is None else write(x) for x in speedup.needed)
    return f'{text}<br><span class="dim">{escape(each)}</span>'


def _short(value: float) -> str:
    return f"{value:.2e}" if value >= 1e12 else compact(value)


def _curves(found: Comparison) -> str:
    unit = UNITS[found.metric]
    drawings = [
        figure(plots.curves_svg(bands(found, measure), measure, unit, legend=measure == "tokens"))
        for measure in ("tokens", "seconds", "operations")
    ]
    drawings.append(
        figure(
            plots.gaps_svg(
                gaps(found), "tokens", f"difference to {plots.plain(found.arms[0].recipe)}, {unit}"
            )
        )
    )
    note = (
        '<p class="note">Held-out evaluations: lines are means over seeds, bands go from the lowest to the '
        "highest seed. The last plot shows differences within seeds, which vary less than seeds do; its "
        "bands are 95% intervals, of each point by itself.</p>"
    )
    return f'<div class="plots">{"".join(drawings)}</div>{note}' if any(drawings) else ""


def _suites(found: Comparison) -> tuple[str, ...]:
    """A table for each suite; its tasks, where it has several, can be unfolded."""
    names = [arm.recipe for arm in found.arms]
    tables: dict[str, list[str]] = {}
    tasks: dict[str, list[str]] = {}
    for metric in dict.fromkeys(m.metric for m in found.means if m.metric != found.metric):
        means = [m for m in found.means if m.metric == metric]
        differences = {d.recipe: d for d in found.differences if d.metric == metric}
        place, _, name = metric.rpartition("/")
        suite, _, task = place.partition("/")
        table = _scores(means, differences, names, name)
        if means[0].part:
            tasks.setdefault(suite, []).append(f"<h3>{escape(task)}</h3>{table}")
        else:
            tables[suite] = [f"<h3>{escape(suite)}: {escape(task)}</h3>{table}"]
    for suite, own in tasks.items():
        tables[suite].append(f"<details><summary>{len(own)} tasks</summary>{''.join(own)}</details>")
    return tuple(part for own in tables.values() for part in own)


def _recipes(found: Comparison) -> str:
    names = [arm.recipe for arm in found.arms]
    rows = [
        (
            _key(arm.recipe, names),
            "".join(f'<div class="change">{escape(c)}</div>' for c in arm.changes) or "baseline",
            f"{arm.steps:,}",
            compact(arm.tokens),
            f"{arm.operations:.2e}",
            f"{1e3 * arm.seconds:,.0f} ms",
        )
        for arm in found.arms
    ]
    return _table(
        ("recipe", "what is other than in the baseline", "steps", "tokens", "operations", "a step"), rows
    )


def _runs(found: Comparison) -> str:
    names = [arm.recipe for arm in found.arms]
    of = {arm.recipe: arm.measures for arm in found.arms}
    rows = [
        (
            _key(run.recipe, names),
            str(run.seed),
            compact(run.tokens),
            duration(run.seconds),
            *([escape(of[run.recipe])] if found.mixed else []),
            NOTHING if run.heldout_loss is None else f"{run.heldout_loss:.4f}",
            NOTHING if run.heldout_accuracy is None else f"{run.heldout_accuracy:.1%}",
            NOTHING if run.bits_per_character is None else f"{run.bits_per_character:.4f}",
        )
        for run in found.runs
    ]
    kind = ["held-out loss of"] if found.mixed else []
    heads = ("run", "seed", "tokens", "took", *kind, "held-out loss", "accuracy", "bits per character")
    return _table(heads, rows)


def _made(found: Comparison) -> str:
    tables = facts("Settings", found.settings) + facts("Environment", found.environment)
    return f'<div class="tables">{tables}</div>'
