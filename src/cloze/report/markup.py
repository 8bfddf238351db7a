"""Small pieces of HTML and the one way to write a number; every piece escapes the text it is given."""

from collections.abc import Iterable, Mapping
from html import escape

from cloze.report.reading import finite

NOTHING = "–"


def compact(value: float) -> str:
    """A count for people: 950, 12,345, 4.4 M, 1.2 B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= 0.9995 * size:  # what three digits round up to it
            return f"{value / size:.3g}\u00a0{letter}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Seconds in the largest fitting unit: 43 s, 12 min, 3 h 20 min, 2.3 days."""
    if seconds < 90:
        return f"{seconds:.0f}\u00a0s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes}\u00a0min"
    if minutes < 48 * 60:
        return f"{minutes // 60}\u00a0h {minutes % 60}\u00a0min"
    return f"{minutes / 1440:.1f}\u00a0days"


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f}%"


def ratio(value: float) -> str:
    """A factor with two digits where small, whole where large."""
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def value_text(value: object) -> str:
    """Any JSON value as plain text (not escaped)."""
    number = finite(value)
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if number is not None:
        return f"{number:,.0f}" if number.is_integer() else f"{number:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {value_text(item)}" for key, item in value.items()) or NOTHING
    if isinstance(value, (list, tuple)):
        return ", ".join(value_text(item) for item in value) or NOTHING
    return str(value)


def word(text: str) -> str:
    """A token as an isolated word; a dim dot stands for a space at its edges, an arrow for a line break."""
    shown = text.replace("\n", "↵").replace("\t", "⇥")
    core = shown.strip(" ")
    before = len(shown) - len(shown.lstrip(" "))
    dot = '<span class="dim">·</span>'
    after = len(shown) - len(core) - before if core else 0
    if not text:
        return '<span class="dim">(empty)</span>'
    return f'<bdi class="word">{dot * before}{escape(core)}{dot * after}</bdi>'


def bar(value: float | None, largest: float, kind: str) -> str:
    """A horizontal bar of `value` on a scale from 0 to `largest`; decoration beside a printed number."""
    share = 0.0 if value is None or largest <= 0 else min(1.0, max(0.0, value / largest))
    filled = f'<i class="{kind}" style="width:{100 * share:.1f}%"></i>'
    return f'<span class="bar" aria-hidden="true">{filled}</span>'


def facts(title: str, pairs: Mapping[str, object]) -> str:
    """A titled two-column table of names and values; empty if there are none."""
    rows = "".join(
        f'<tr><th scope="row">{escape(_label(key))}</th><td>{escape(value_text(value))}</td></tr>'
        for key, value in pairs.items()
    )
    return f'<div class="facts"><h3>{escape(title)}</h3><table>{rows}</table></div>' if rows else ""


def _label(key: str) -> str:
    return key.replace("_", " ").replace("heldout", "held-out")


def figure(drawing: str | None, caption: str = "") -> str:
    """A drawing with its caption; empty if there is no drawing."""
    if drawing is None:
        return ""
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{drawing}{text}</figure>"


def section(title: str, parts: Iterable[str]) -> str:
    """A section with a heading; empty if all its parts are."""
    body = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""
