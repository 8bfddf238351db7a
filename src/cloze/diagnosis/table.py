"""A diagnosis as lines of text that fit 80 columns."""

from __future__ import annotations

from textwrap import wrap

from cloze.diagnosis.advice import interval, percent
from cloze.diagnosis.result import Diagnosis, Measurements, Point

WIDTH = 80
_NAME, _COLUMN = 14, 22


def lines(diagnosis: Diagnosis) -> list[str]:
    """The tables, then the recommendation; a line that does not start with a space is a heading."""
    found = diagnosis.measurements
    parts = [_heading(found), _terms(found), _distances(found), _segments(found), _scores(found)]
    parts += [_sweep("Masking rate", found.rates, found), _sweep("Tokens", found.lengths, found)]
    parts.append(["What to do", *_text(diagnosis.recommended.reason)])
    return [line for part in parts if part for line in [*part, ""]][:-1]


def _text(text: str) -> list[str]:
    return [f"  {line}" for line in wrap(text, WIDTH - 2)]


def _four(*cells: str) -> str:
    return f"{cells[0]:<{_NAME}}{''.join(f'{cell:>{_COLUMN}}' for cell in cells[1:])}"


def _two(name: str, value: str) -> str:
    return f"{name:<{WIDTH // 2}}{value:>{WIDTH // 2}}"


def _heading(found: Measurements) -> list[str]:
    s = found.setting
    drawn = {
        "masks": f"{s.masks} masks of {s.rate:.0%} each",
        "prefixes": f"{s.masks} visible prefixes each, whose length makes what is called mask term here",
    }.get(s.drawn, "nothing drawn, so that the mask term is 0")
    text = (
        f"{s.sequences} sequences of {s.length} tokens, {drawn}, parameters: {s.parameters}. Variances are "
        "of the gradient of one sequence with one mask; brackets are 95% intervals."
    )
    return [f"{s.model} on {s.data}", *_text(text)]


def _terms(found: Measurements) -> list[str]:
    rows = [("all", found.data_term, found.mask_term, found.mask_share)]
    if len(found.groups) > 1:
        rows += [(g.name, g.data_term, g.mask_term, g.mask_share) for g in found.groups]
    if found.loss_cost is not None:
        cost = found.loss_cost
        rows.append(("loss cost", cost.data_term, cost.mask_term, cost.mask_share))
    return [
        _four("Variance", "data term", "mask term", "mask share"),
        *(_four(f"  {name}", interval(d), interval(m), percent(share)) for name, d, m, share in rows),
    ]


def _distances(found: Measurements) -> list[str]:
    if not found.hamming:
        return []
    names = {0.0: "0% (the same mask)", 1.0: "100% (disjoint)"}
    rows = [(names.get(d.distance, f"{d.distance:.0%}"), d.covariance, f"{d.pairs:,}") for d in found.hamming]
    if found.break_even is not None:
        rows.append(("data term + that of disjoint masks", found.break_even, ""))
    head = f"{'Distance of two masks of a sequence':<36}{'covariance':>{_COLUMN}}{'pairs':>{_COLUMN}}"
    return [head, *(f"  {n:<34}{interval(c):>{_COLUMN}}{p:>{_COLUMN}}".rstrip() for n, c, p in rows)]


def _segments(found: Measurements) -> list[str]:
    several = [s for s in found.segments if s.segments > 1]
    if not several:
        return []
    rows = several if len(several) == 1 else [several[0], several[-1]]
    head = _two("Disjoint masks of a sequence", "mask term left of independent ones'")
    return [head, *(_two(f"  {s.segments}", percent(s.ratio)) for s in rows)]


def _scores(found: Measurements) -> list[str]:
    if found.oracle_saving.value is None and not found.score_savings:
        return []
    names = {"loss": "loss (known to be bad)", "inverse": "1 / hidden_gradient (must be bad)"}
    scores = {"the gradient's norm (best possible)": found.oracle_saving}
    scores |= {names.get(name, name): saving for name, saving in found.score_savings.items()}
    if found.proposal_saving is not None:
        scores["the run's own proposal"] = found.proposal_saving
    rows = [_two("Masking by a score, if it were known", "saved of the mask term")]
    rows += [_two(f"  {name}", percent(saving)) for name, saving in scores.items()]
    rows.append(_two("  spread (CV) of the norms", interval(found.cv)))
    if found.proposal_words:
        words = " ".join(repr(w.token) for w in found.proposal_words[:12])
        rows += _text(f"the proposal wants masked most: {words}")
    return rows


def _sweep(title: str, points: list[Point], found: Measurements) -> list[str]:
    if len(points) < 2:
        return []
    rows = [_four(title, "variance", "variance × cost", "noise scale")]
    for p in points:
        now = " (now)" if (p.rate, p.length) == (found.setting.rate, found.setting.length) else ""
        name = f"  {p.rate:.0%}{now}" if title == "Masking rate" else f"  {p.length}{now}"
        cells = (p.variance, p.variance_per_compute, p.noise_scale)
        rows.append(_four(name, *(interval(cell) for cell in cells)))
    return rows
