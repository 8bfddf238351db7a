"""A run folder as one HTML page that needs nothing else: no script, no network, no other file."""

import os
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path

import cloze
from cloze.report import headline, words
from cloze.report.markup import compact, facts, figure, percent, section
from cloze.report.measured import measured
from cloze.report.noise import noise_table
from cloze.report.plots import SMALL_PLOTS, comparable, loss_svg, small_svg
from cloze.report.reading import Run, finite, read_run
from cloze.report.scores import score_table

NOTES = 100


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder, finished or not, and return its path.

    Raises `ClozeError` if the folder is not a run.
    """
    return write_page(folder / "report.html", render(read_run(folder)))


def write_page(path: Path, source: str) -> Path:
    """Write a page so that a reader sees the old one or the new one; its path."""
    temporary = path.with_name(f"{path.name}.tmp")
    # A tokenizer that cuts inside a character can leave half of a surrogate pair, which UTF-8 cannot hold.
    temporary.write_bytes(source.encode("utf-8", errors="replace"))
    os.replace(temporary, path)
    return path


def render(run: Run) -> str:
    """The whole page."""
    name = str(run.summary.get("recipe", run.name))
    learnt = words.frequency_bands(run.samples), words.word_tables(run.samples)
    body = (
        f"<header>{headline.title(run)}</header>",
        headline.warnings(run),
        f'<section class="top">{headline.tiles(run)}{headline.interpretation(run)}</section>',
        section("Learning curves", (_curves(run),)),
        section("Where the gradient's noise comes from", (_noise(run),)),
        section("Which words are learnt", learnt),
        section("Blanks, filled in", (words.filled_examples(run.samples),)),
        section("Replaced tokens, detected", (words.judgements(run.samples),)),
        section("What the encoder can do", _evaluation(run)),
        section("Beginnings, continued", (words.continuations(run.samples),)),
        section("Spans, written out", (words.answers(run.samples),)),
        section("How it was made", (_method(run), _tables(run), _recipe(run))),
        section("Notes", (_notes(run),)),
        glossary(_terms(run)),
    )
    return document(f"{name} · Cloze run report", body)


def document(title: str, body: Iterable[str]) -> str:
    """A whole page around its parts, with everything it needs inside."""
    footer = f"<footer>Written by cloze {escape(cloze.__version__)}.</footer>"
    style = files("cloze.report").joinpath("style.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n"
        f"<body><main>{''.join(body)}{footer}</main></body></html>\n"
    )


def _curves(run: Run) -> str:
    large = figure(loss_svg(run, "tokens")) + figure(loss_svg(run, "seconds"))
    keys = [key for key in SMALL_PLOTS if key != "rate" or len(set(run.steps["rate"].round(4))) > 1]
    if not comparable(run):
        keys.insert(0, "loss")
    small = "".join(figure(small_svg(run, key)) for key in keys)
    note = headline.training_note(run)
    return (
        (f'<div class="plots">{large}</div>' if large else "")
        + (f'<p class="note">{escape(note)}</p>' if note and large else "")
        + (f'<div class="plots small">{small}</div>' if small else "")
    )


def _terms(run: Run) -> dict[str, str]:
    """The glossary."""
    what = measured(run)
    if run.number("heldout_auc") is not None:
        return {
            "held-out loss": "binary cross entropy of the judgement whether a token was replaced, in nats, "
            "over all tokens of text that is never trained on.",
            "AUC": "The probability that a replaced token is judged more suspicious than an original one. It "
            "does not depend on how many are replaced, as accuracy does.",
        }
    of = "a fixed uniform share of the tokens" if what.masks else "the tokens"
    return {
        "held-out loss": f"−log of the probability the model gives the {what.one}, in nats, averaged over "
        f"{of} of text that is never trained on.",
        "unigram baseline": "The same loss for a guesser that ignores the context and knows only how often "
        "each token occurs in the training text.",
        what.accuracy: "The share of those tokens for which the model's most probable token is the true one.",
    }


def _noise(run: Run) -> str:
    table = noise_table(run)
    if not table:
        return ""
    return table + (
        '<p class="note">Measured on a few rows of training text, 95% intervals. Mask share: how much of '
        "the gradient's variance the choice of masks makes. Data term + covariance: two disjoint masks of a "
        "row in one step pay where it is below 0. <code>cloze diagnose</code> measures more, and says what "
        "to change.</p>"
    )


def _evaluation(run: Run) -> Iterator[str]:
    """What `cloze evaluate` found, with a word where the run has gone on since then."""
    found = run.evaluation
    if found is None:
        return
    for suite in found.suites:
        yield f"<h3>{escape(suite)}</h3>{score_table(found, suite)}"
    steps = run.number("steps")
    if found.step is not None and steps is not None and found.step != steps:
        yield f'<p class="note">Measured after {found.step:,} steps; the run has gone on since then.</p>'


def _method(run: Run) -> str:
    choices = run.part("choices")
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(choice))}</dd></div>"
        for name, choice in choices.items()
    )
    return f'<dl class="choices">{cells}</dl>' if cells else ""


def _tables(run: Run) -> str:
    data = dict(run.part("data"))
    fill = finite(data.get("fill"))
    if fill is not None:
        data["fill"] = f"{percent(fill)} of each row is text"
    settings: dict[str, object] = {}
    for key in ("seed", "budget_steps"):
        value = finite(run.summary.get(key))
        if value is not None:
            settings[key] = f"{value:.0f}" if key == "seed" else f"{value:,.0f}"
    parameters = run.number("parameters")
    if parameters is not None:
        settings["parameters"] = compact(parameters)
    tables = (
        facts("Data", data),
        facts("Model and settings", run.part("model") | settings),
        facts("Environment", run.part("environment")),
    )
    return f'<div class="tables">{"".join(tables)}</div>' if any(tables) else ""


def _recipe(run: Run) -> str:
    if not run.recipe:
        return ""
    return f"<details><summary>Recipe, as run</summary><pre><code>{escape(run.recipe)}</code></pre></details>"


def _notes(run: Run) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{'' if step is None else f'step {step:,}'}</th><td>{escape(message)}</td></tr>"
        for step, message in run.notes[-NOTES:]
    )
    earlier = len(run.notes) - NOTES
    more = f'<p class="note">{earlier:,} earlier notes are left out.</p>' if earlier > 0 else ""
    return f"{more}<table class='notes'>{rows}</table>" if rows else ""


def glossary(terms: Mapping[str, str]) -> str:
    """A section that says what the terms of a page mean."""
    pairs = (f"<div><dt>{escape(term)}</dt><dd>{escape(text)}</dd></div>" for term, text in terms.items())
    return section("Glossary", ("<dl class='glossary'>", *pairs, "</dl>"))
