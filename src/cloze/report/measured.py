"""What a run's held-out loss is of, in the words that the report needs."""

from __future__ import annotations

from dataclasses import dataclass

from cloze.report.reading import Run


@dataclass(frozen=True, slots=True)
class Measured:
    """What is predicted on held-out text.

    Attributes:
        one: a token that is predicted, such as "hidden token". accuracy: name of the share that is right.
        masks: how tokens are hidden, such as "uniform 15% masks"; empty: none are.
    """

    one: str
    accuracy: str
    masks: str


def measured(run: Run) -> Measured:
    """Of a run; one that does not say so measures masked tokens."""
    masks = f"uniform {run.number('heldout_rate') or 0.15:.0%} masks"
    of = run.summary.get("heldout_of", "masked tokens")
    if of == "masked tokens":
        return Measured("hidden token", "masked accuracy", masks)
    if of == "replaced tokens":
        return Measured("replaced token", "accuracy", masks)
    if str(of).startswith("replaced or not"):
        return Measured("judgement", "AUC", f"replacements at {masks.removesuffix(' masks')} of the tokens")
    hidden = "fixed spans hidden" if of == "tokens of hidden spans" else ""
    return Measured(str(of).replace("tokens", "token"), "accuracy", hidden)
