"""A diagnosis as one HTML page that needs nothing else: what to change, and the numbers it rests on."""

from html import escape
from pathlib import Path
from typing import Any

from cloze.report import diagnosis_plots as plots
from cloze.report.estimates import both, interval, only, table
from cloze.report.markup import NOTHING, compact, duration, facts, figure, section, word
from cloze.report.page import document, glossary, write_page
from cloze.report.reading import finite, records

GLOSSARY = {
    "data term": "Variance between sequences of the mean gradient of a sequence. More sequences lower it.",
    "mask term": "Variance between the masks of a sequence, mean over sequences. Other masks lower it.",
    "covariance of disjoint masks": "Below 0, what one mask gets wrong the other makes good. Several "
    "disjoint masks of a sequence in one update beat as many other sequences if and only if it is below "
    "minus the data term.",
    "saving of a score": "Of masks drawn in proportion to the score, and weighted so that the mean gradient "
    "stays the same, against uniform masks, were the score known exactly. A proposal network knows less.",
    "noise scale": "Variance over the squared mean gradient, in sequences: the batch size at which noise and "
    "signal are equal (McCandlish et al. 2018). A bound only where the mean gradient may be 0.",
    "cost": "Counted operations of a sequence in 10⁹: 6 × (body parameters × tokens + head parameters × "
    "predicted tokens). Variance × cost compares settings at equal compute.",
}
NAMES = {
    "oracle": "best possible",
    "hidden_gradient": "hidden gradient",
    "residual": "residual",
    "product": "product of the two",
    "loss": "loss (known to be bad)",
    "inverse": "1 / hidden gradient (control)",
    "proposal": "the run's own proposal",
}


def write_diagnosis(content: dict[str, Any], folder: Path) -> Path:
    """Write `diagnosis.html` from the content of diagnosis.json, and return its path."""
    return write_page(folder / "diagnosis.html", render(content))


def render(content: dict[str, Any]) -> str:
    """The whole page."""
    body = (
        f"<header>{_title(content)}</header>",
        f'<section class="top">{_tiles(content)}<p class="reading">{escape(_reason(content))}</p></section>',
        section("Where the variance is", _where(content)),
        section("Masks that overlap, and masks that do not", _overlap(content)),
        section("Choosing what is masked", _choosing(content)),
        section("Other rates and lengths", _elsewhere(content)),
        section("How it was measured", (_setting(content),)),
        glossary(GLOSSARY),
    )
    return document(f"{content.get('model', 'model')} · Cloze diagnosis", body)


def _title(content: dict[str, Any]) -> str:
    model, data = (escape(str(content.get(key, NOTHING))) for key in ("model", "data"))
    return (
        f'<p class="over">Cloze diagnosis of <span>{model}</span></p>'
        "<h1>Where the gradient’s noise comes from</h1>"
        f'<p class="about">Measured on {data}: {_count(content, "sequences")} sequences of '
        f"{_count(content, 'length')} tokens, {_count(content, 'masks')} masks of "
        f"{_percent_of(content.get('rate'))} each. Brackets are 95% intervals.</p>"
    )


def _reason(content: dict[str, Any]) -> str:
    recommended = content.get("recommended")
    return str(recommended.get("reason", "")) if isinstance(recommended, dict) else ""


def _tiles(content: dict[str, Any]) -> str:
    tiles = (
        ("mask share", "mask_share", True, "of the variance is the choice of masks"),
        ("best possible saving", "oracle_saving", True, "of the mask term, by any proposal"),
        ("data term + covariance", "break_even", False, "only below 0 do disjoint masks in one update pay"),
        ("noise scale", "noise_scale", False, "sequences"),
    )
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{only(content.get(key), share)}</dd>"
        f'<dd class="below">{interval(content.get(key), share)} {note}</dd></div>'
        for name, key, share, note in tiles
    )
    return f'<dl class="tiles main">{cells}</dl>'


def _where(content: dict[str, Any]) -> tuple[str, ...]:
    groups = records(content, "groups")
    rows = [("all", content), *((str(group.get("name")), group) for group in groups)]
    if isinstance(content.get("loss_cost"), dict):
        rows.append(("weighed by cost in loss", content["loss_cost"]))
    cells = [
        (name, *(both(r.get(key), key == "mask_share") for key in ("data_term", "mask_term", "mask_share")))
        for name, r in rows
    ]
    return (
        f'<div class="plots one">{figure(plots.terms_svg(groups))}</div>',
        table(("parameters", "data term", "mask term", "mask share"), cells),
    )


def _overlap(content: dict[str, Any]) -> tuple[str, ...]:
    drawings = (
        figure(
            plots.hamming_svg(records(content, "hamming")),
            "Gradients of two masks of a sequence, by their distance: 0% the same, 100% disjoint.",
        ),
        figure(
            plots.segments_svg(records(content, "segments")),
            "Mask term of the mean over J disjoint masks, as a share of that of J independent ones.",
        ),
    )
    rows = [
        (f"{finite(d.get('distance')) or 0.0:.0%}", both(d.get("covariance")), _count(d, "pairs"))
        for d in records(content, "hamming")
    ]
    return (
        f'<div class="plots">{"".join(drawings)}</div>' if any(drawings) else "",
        table(("distance", "covariance", "pairs"), rows),
    )


def _choosing(content: dict[str, Any]) -> tuple[str, ...]:
    savings = {"oracle": content.get("oracle_saving"), **(content.get("score_savings") or {})}
    if content.get("proposal_saving"):
        savings["proposal"] = content["proposal_saving"]
    named = {NAMES.get(name, name): s for name, s in savings.items() if isinstance(s, dict)}
    note = (
        f'<p class="note">The gradients of single tokens of a sequence have a spread (CV) of '
        f"{both(content.get('cv'))}. The control must be far below 0, or nothing here is to be believed.</p>"
    )
    wanted = "".join(
        f"<li>{word(str(w.get('token', '')))} {_percent_of(w.get('inclusion'))}</li>"
        for w in records(content, "proposal_words")
    )
    return (
        f'<div class="plots one">{figure(plots.savings_svg(named))}</div>',
        note,
        table(("score", "saved of the mask term"), [(n, both(s, True)) for n, s in named.items()]),
        f'<h3>What the proposal wants masked, and how often</h3><ul class="wanted">{wanted}</ul>'
        if wanted
        else "",
    )


def _elsewhere(content: dict[str, Any]) -> tuple[str, ...]:
    rates, lengths = records(content, "rates"), records(content, "lengths")
    rate, length = finite(content.get("rate")) or 0.0, finite(content.get("length")) or 0.0
    drawings = "".join(
        figure(plots.sweep_svg(name, points, now, noise))
        for name, points, now in (("rate", rates, rate), ("length", lengths, length))
        for noise in (False, True)
    )
    note = (
        '<p class="note">Lower is better at equal compute; the present setting has another colour. Another '
        "rate or length is another objective with other gradients: where the noise scale is known it is the "
        "fairer measure, and a short run of each decides.</p>"
    )

    def row(name: str, p: dict[str, Any]) -> tuple[str, ...]:
        return (
            name,
            both(p.get("variance")),
            both(p.get("variance_per_compute")),
            both(p.get("noise_scale")),
            f"{(finite(p.get('cost')) or 0.0) / 1e9:.3g}",
        )

    rows = [row(_percent_of(p.get("rate")), p) for p in rates]
    rows += [row(f"{_count(p, 'length')} tokens", p) for p in lengths[1:]]
    return (
        f'<div class="plots small">{drawings}</div>' if drawings else "",
        note,
        table(("setting", "variance", "variance × cost", "noise scale", "cost"), rows),
    )


def _setting(content: dict[str, Any]) -> str:
    keys = ("model", "data", "masking", "corruption", "parameters", "passes")
    what = {key: content.get(key) for key in keys if content.get(key) is not None}
    for key in ("body_parameters", "head_parameters"):
        count = finite(content.get(key))
        if count is not None:
            what[key] = compact(count)
    seconds = finite(content.get("seconds"))
    if seconds is not None:
        what["time"] = duration(seconds)
    environment = content.get("environment")
    machine = facts("Environment", environment if isinstance(environment, dict) else {})
    return f'<div class="tables">{facts("Setting", what)}{machine}</div>'


def _percent_of(value: object) -> str:
    share = finite(value)
    return NOTHING if share is None else f"{share:.0%}"


def _count(record: dict[str, Any], key: str) -> str:
    value = finite(record.get(key))
    return NOTHING if value is None else f"{value:,.0f}"
