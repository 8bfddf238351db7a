"""Estimates with their intervals, `{value, low, high}`, as cells of tables."""

from collections.abc import Sequence
from html import escape

from cloze.report.markup import NOTHING
from cloze.report.reading import finite


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of numbers; the first cell of a row names it."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(c)}</td>" for c in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<table class="words numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def known(estimate: object, key: str = "value") -> float | None:
    """An end of an estimate, or its value; None: not known."""
    return finite(estimate.get(key)) if isinstance(estimate, dict) else None


def plain(value: float | None, share: bool) -> str:
    """A number, or a share in percent."""
    if value is None:
        return "?"
    if share:
        return f"{round(100 * value):,}%".replace("-", "−")
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", "−")


def only(estimate: object, share: bool = False) -> str:
    """The value alone, or the bound that is known."""
    value, low = known(estimate), known(estimate, "low")
    if value is None:
        return NOTHING if low is None else f"≥ {plain(low, share)}"
    return plain(value, share)


def interval(estimate: object, share: bool) -> str:
    """The interval in brackets; empty where there is no value."""
    if known(estimate) is None:
        return ""
    return f"[{plain(known(estimate, 'low'), share)}, {plain(known(estimate, 'high'), share)}]"


def both(estimate: object, share: bool = False) -> str:
    """The value with its interval."""
    return f"{only(estimate, share)} {interval(estimate, share)}".strip()
