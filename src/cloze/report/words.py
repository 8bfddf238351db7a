"""The part of the report that shows language: which words are learnt, and blanks the model filled in."""

from html import escape
from typing import Any

import numpy as np

from cloze.report.markup import NOTHING, bar, compact, percent, word
from cloze.report.reading import finite, records

TABLE_WORDS = 12
EXAMPLES = 12
GUESSES = 5


def frequency_bands(samples: dict[str, Any]) -> str:
    """Unigram against model loss for each band of word frequency."""
    bands = records(samples, "frequency")
    losses = [finite(band.get(key)) for band in bands for key in ("unigram_loss", "loss")]
    largest = max((loss for loss in losses if loss is not None), default=0.0)
    if largest <= 0:
        return ""
    rows = []
    for band in bands:
        pairs = ((finite(band.get(key)), kind) for key, kind in (("unigram_loss", "base"), ("loss", "model")))
        bars = "".join(f"<div>{bar(loss, largest, kind)}<b>{_nats(loss)}</b></div>" for loss, kind in pairs)
        rows.append(
            f'<tr><th scope="row">{escape(str(band.get("label", NOTHING)))}</th><td class="wide">{bars}</td>'
            f"<td>{_percent(band.get('accuracy'))}</td><td>{_count(band.get('tokens'))}</td></tr>"
        )
    return (
        '<h3>By frequency</h3><p class="note">Loss in nats on predicted tokens, grouped by the rank of the '
        "token in the training text (1 is the most frequent): "
        '<span class="key base"></span>knowing frequencies only (unigram), '
        '<span class="key model"></span>the model. The gap is what it has learnt from context.</p>'
        '<table class="bands"><thead><tr><th>rank</th><th class="wide">loss</th><th>accuracy</th>'
        f"<th>tokens</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def word_tables(samples: dict[str, Any]) -> str:
    """The words that gained most and least over the unigram loss, without those too rare to tell."""
    scored = []
    for entry in records(samples, "words"):
        unigram, loss = finite(entry.get("unigram_loss")), finite(entry.get("loss"))
        if unigram is not None and loss is not None:
            scored.append((unigram - loss, finite(entry.get("count")) or 0.0, entry))
    if not scored:
        return ""
    # The extremes of a ranking are where chance gathers, so rare words stay out if enough others remain.
    counts = np.array([count for _, count, _ in scored])
    least_count = next((n for n in (20, 10, 5, 2) if (counts >= n).sum() >= 2 * TABLE_WORDS), 0)
    kept = sorted((item for item in scored if item[1] >= least_count), key=lambda item: -item[0])
    several = f", over at least {least_count} predicted occurrences of the word" if least_count else ""
    shown = min(TABLE_WORDS, max(1, len(kept) // 2))
    return (
        f'<p class="note">Gain = unigram loss − model loss, in nats{several}; below 0 the model does '
        "worse than knowing frequencies only. "
        '<span class="dim">·</span> marks a space.</p><div class="pair">'
        + _word_table("Most learnt", kept[:shown])
        + (_word_table("Least learnt", kept[::-1][:shown]) if len(kept) > 1 else "")
        + "</div>"
    )


def _word_table(title: str, rows: list[tuple[float, float, dict[str, Any]]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{word(str(entry.get("word", "")))}</th>'
        f"<td><b>{f'{gain:+.2f}'.replace('-', '−')}</b></td>"
        f"<td>{_nats(entry.get('unigram_loss'))} → {_nats(entry.get('loss'))}</td>"
        f"<td>{_percent(entry.get('accuracy'))}</td><td>{compact(count)}</td></tr>"
        for gain, count, entry in rows
    )
    head = "<th>word</th><th>gain</th><th>loss</th><th>accuracy</th><th>tokens</th>"
    table = f'<table class="words"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f"<div><h3>{title}</h3>{table}</div>"


def filled_examples(samples: dict[str, Any]) -> str:
    """Each example as prose with numbered blanks, and below it what the model guessed for each."""
    every = [e for e in records(samples, "examples") if not e.keys() & {"continuation", "judged", "answer"}]
    articles = "".join(_example(example) for example in every[:EXAMPLES])
    if not articles:
        return ""
    rest = f" The first {EXAMPLES} of {len(every)} are shown." if len(every) > EXAMPLES else ""
    return (
        '<p class="note">Held-out text. The marked tokens were hidden: <mark class="hit">solid</mark> where '
        'the first guess was right, <mark class="miss">dashed</mark> where it was not. Below, by number: '
        f"the true token, then the model's first guesses with their probabilities.{rest}</p>{articles}"
    )


def continuations(samples: dict[str, Any]) -> str:
    """Each beginning with the model's continuation, and below it the text's own."""
    articles = ""
    for example in [e for e in records(samples, "examples") if "continuation" in e][:EXAMPLES]:
        given = "".join(str(token.get("text", "")) for token in records(example, "tokens"))
        made, truth = (escape(str(example.get(key, ""))) for key in ("continuation", "truth"))
        articles += (
            f'<article><p class="prose" dir="auto">{escape(given)}<mark class="hit">{made}</mark></p>'
            f'<p class="note" dir="auto">The text goes on: {truth}</p></article>'
        )
    if not articles:
        return ""
    return (
        '<p class="note">Beginnings of held-out text, and <mark class="hit">how the model goes on</mark>: '
        f"always the most probable next token, which repeats itself soon.</p>{articles}"
    )


def judgements(samples: dict[str, Any]) -> str:
    """Each corrupted beginning as prose, with the replaced tokens and the false alarms marked."""
    articles = ""
    for example in [e for e in records(samples, "examples") if "judged" in e][:EXAMPLES]:
        prose = "".join(_judged(token) for token in records(example, "tokens"))
        articles += f'<article><p class="prose" dir="auto">{prose}</p></article>'
    if not articles:
        return ""
    return (
        '<p class="note">Held-out text, some tokens of it replaced. <mark class="hit">Solid</mark>: replaced '
        'and found. <mark class="miss">Dashed</mark>: replaced and not found, or <em>original</em> and taken '
        f"for replaced. Small: what stood there before.</p>{articles}"
    )


def _judged(token: dict[str, Any]) -> str:
    text, original, said = (
        str(token.get("text", "")),
        token.get("original"),
        (finite(token.get("p")) or 0) > 0.5,
    )
    if original is None and not said:
        return escape(text)
    core = text.lstrip()
    space = text[: len(text) - len(core)] if core else ""
    shown = escape(core or "↵")
    if original is None:
        return f'{escape(space)}<mark class="miss"><em>{shown}</em></mark>'
    kind = "hit" if said else "miss"
    return f'{escape(space)}<mark class="{kind}">{shown}<sup>{escape(str(original).strip())}</sup></mark>'


def answers(samples: dict[str, Any]) -> str:
    """Each text with its hidden spans as numbers, what the model wrote for them, and what stood there."""
    articles = ""
    for example in [e for e in records(samples, "examples") if "answer" in e][:EXAMPLES]:
        given = "".join(str(token.get("text", "")) for token in records(example, "tokens"))
        made, truth = (escape(str(example.get(key, ""))) for key in ("answer", "truth"))
        articles += (
            f'<article><p class="prose" dir="auto">{escape(given)}</p>'
            f'<p class="prose" dir="auto"><mark class="hit">{made}</mark></p>'
            f'<p class="note" dir="auto">The text had: {truth}</p></article>'
        )
    if not articles:
        return ""
    return (
        '<p class="note">Held-out text with numbers in the place of its hidden spans, and '
        '<mark class="hit">what the model writes for each</mark>: always the most probable next token.</p>'
        + articles
    )


def _example(example: dict[str, Any]) -> str:
    prose: list[str] = []
    cards: list[str] = []
    for token in records(example, "tokens"):
        text = str(token.get("text", ""))
        if not token.get("masked"):
            prose.append(escape(text))
            continue
        guesses = records(token, "guesses")[:GUESSES]
        hit = bool(guesses) and bool(guesses[0].get("right"))
        kind = "hit" if hit else "miss"
        core = text.lstrip()
        space = text[: len(text) - len(core)] if core else ""
        number = len(cards) + 1
        prose.append(f'{escape(space)}<mark class="{kind}">{escape(core or "↵")}<sup>{number}</sup></mark>')
        cards.append(_card(number, text, kind, guesses))
    if not prose:
        return ""
    blanks = f'<ol class="blanks">{"".join(cards)}</ol>' if cards else ""
    return f'<article><p class="prose" dir="auto">{"".join(prose)}</p>{blanks}</article>'


def _card(number: int, truth: str, kind: str, guesses: list[dict[str, Any]]) -> str:
    rows = ""
    for guess in guesses:
        text, share = str(guess.get("text", "")), finite(guess.get("p"))
        style, colour = ("true", "model") if guess.get("right") else ("other", "train")
        rows += f'<li class="{style}">{word(text)}{bar(share, 1.0, colour)}<b>{_rounded(share)}</b></li>'
    sign = "right" if kind == "hit" else "wrong"
    return (
        f'<li class="{kind}"><p><sup>{number}</sup> {word(truth)}<span class="sign">{sign}</span></p>'
        f"<ul>{rows}</ul></li>"
    )


def _rounded(share: float | None) -> str:
    if share is None:
        return NOTHING
    return "&lt;1%" if share < 0.005 else f"{100 * share:.0f}%"


def _nats(value: object) -> str:
    number = finite(value)
    return NOTHING if number is None else f"{number:.2f}"


def _percent(value: object) -> str:
    number = finite(value)
    return NOTHING if number is None else percent(number)


def _count(value: object) -> str:
    number = finite(value)
    return NOTHING if number is None else compact(number)
