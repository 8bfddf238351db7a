"""The top of the report: the numbers, and in plain words what they do and do not say."""

import math
from html import escape

import numpy as np

from cloze.report.markup import compact, duration, percent, ratio
from cloze.report.measured import measured
from cloze.report.plots import comparable
from cloze.report.reading import Run, finite


def title(run: Run) -> str:
    """Name of the recipe, the sentence about it and its paper."""
    status = str(run.summary.get("status", "unfinished"))
    about, paper = run.summary.get("about"), run.summary.get("paper")
    return (
        f'<p class="over">Cloze run <span>{escape(run.name)}</span> · {escape(status)}</p>'
        f"<h1>{escape(str(run.summary.get('recipe', run.name)))}</h1>"
        + (f'<p class="about">{escape(str(about))}</p>' if about else "")
        + (f'<p class="paper">{escape(str(paper))}</p>' if paper else "")
    )


def warnings(run: Run) -> str:
    """What a reader must know before the numbers: an unfinished run, missing files, a changed objective."""
    lines = []
    status = run.summary.get("status")
    steps, planned = run.number("steps"), run.number("budget_steps")
    if status != "finished":
        state = "was stopped" if status == "stopped" else "has not finished"
        where = f" (step {steps:,.0f} of {planned:,.0f})" if steps is not None and planned else ""
        lines.append(f"This run {state}{where}: the numbers are those of its last evaluation so far.")
    if run.missing:
        lines.append(f"Not in the run folder, so left out here: {', '.join(run.missing)}.")
    if run.summary.get("unbiased") is False:
        lines.append(
            "This recipe changes the objective: what it minimises is not an unbiased estimate of the loss on "
            "uniformly chosen tokens. The held-out numbers do use uniform masks."
        )
    return "".join(f'<p class="warning">{escape(line)}</p>' for line in lines)


def tiles(run: Run) -> str:
    """The headline numbers: first what was learnt, then what it cost."""
    loss, unigram, accuracy = _quality(run)
    what = measured(run)
    tokens, seconds, speed, parameters = (
        run.number(key) for key in ("tokens_seen", "seconds", "tokens_per_second", "parameters")
    )
    learnt, cost = [], []
    if loss is not None:
        learnt.append(_tile("held-out loss", f"{loss:.2f}", "nats", _against_unigram(loss, unigram)))
    if accuracy is not None:
        below = "first guess right" + (f", {what.masks}" if what.masks else "")
        learnt.append(_tile(what.accuracy, percent(accuracy), "", below))
    area, share = run.number("heldout_auc"), run.number("heldout_replaced")
    if area is not None:
        below = "0.5 is chance" + ("" if share is None else f"; {percent(share)} of the tokens are replaced")
        learnt.append(_tile(what.accuracy, f"{area:.3f}", "", below))
    elif loss is not None:
        learnt.append(_tile("perplexity", _exp(loss), "", f"exp(loss), per {what.one}"))
    if tokens is not None:
        passes = finite(run.part("data").get("passes"))
        below = "" if passes is None else f"{passes:.2g} passes over the text"
        cost.append(_tile("tokens seen", compact(tokens), "", below))
    if seconds is not None:
        steps = run.number("steps")
        cost.append(_tile("time", duration(seconds), "", "" if steps is None else f"{steps:,.0f} steps"))
    if speed is not None:
        device = run.part("environment").get("device")
        cost.append(_tile("tokens per second", compact(speed), "", str(device or "")))
    if parameters is not None:
        family = run.part("model").get("family")
        cost.append(_tile("parameters", compact(parameters), "", str(family or "")))
    return f'<dl class="tiles main">{"".join(learnt)}</dl><dl class="tiles">{"".join(cost)}</dl>'


def interpretation(run: Run) -> str:
    """A paragraph that reads the numbers, with their limits."""
    loss, unigram, accuracy = _quality(run)
    if loss is None:
        return "<p>There is no held-out evaluation yet, so there is nothing to interpret.</p>"
    what = measured(run)
    sentences = []
    if unigram is not None and loss < unigram:
        times = ratio(math.exp(min(unigram - loss, 50.0)))
        sentences.append(
            f"On text it was not trained on, the model gives a {what.one} on (geometric) average "
            f"{times} times the probability that the token's frequency alone would give it: "
            f"{unigram - loss:.2f} nats less loss than the unigram baseline."
        )
    elif unigram is not None:
        sentences.append(
            f"The model does not beat the unigram baseline ({unigram:.2f} nats) yet: knowing only how "
            f"often each token occurs would predict a {what.one} at least as well."
        )
    area = run.number("heldout_auc")
    if area is not None:
        sentences.append(
            f"Given a replaced token and an original one of text it was not trained on, it tells which is "
            f"which in {percent(area)} of the cases (the AUC; 50% is chance)."
        )
    if accuracy is not None:
        predicted = finite(run.part("data").get("heldout_tokens_predicted"))
        size = ""
        if predicted:
            error = 1.96 * math.sqrt(max(0.0, accuracy * (1 - accuracy)) / predicted)
            size = f" (±\u00a0{100 * error:.1f} points of sampling error on {compact(predicted)} tokens)"
        sentences.append(
            f"The model's first guess is the true token in {percent(accuracy)} of the cases{size}."
        )
    sentences += _course(run)
    if what.masks:
        sentences.append(f"This is measured with {what.masks}, which are the same at every evaluation.")
    else:
        sentences.append("Nothing of the text is hidden for this measurement.")
    sentences.append(
        "Compare these numbers only with runs on the same held-out text and tokenizer. This is one run with "
        "one seed: a small difference from another may be chance, and no number here says how the encoder "
        "will do once it is fine-tuned."
    )
    return f'<p class="reading">{escape(" ".join(sentences))}</p>'


def training_note(run: Run) -> str:
    """How the training curve may be read beside the held-out one."""
    losses = run.steps["loss"]
    if not len(losses):
        return ""
    rates = run.steps["rate"][np.isfinite(run.steps["rate"])]
    what = measured(run)
    always = f"always measured with {what.masks}" if what.masks else "measured on text with nothing hidden"
    thinned = f" Each of its points is the mean of {run.thinned_by} logged steps."
    low, high = (percent(rates.min()), percent(rates.max())) if len(rates) else ("", "")
    masked = "" if not low else f" (here {low})" if low == high else f" (here {low} to {high})"
    apart = " It is on another scale here, so it has its own plot below."
    return (
        f"Training loss depends on the masking rate{masked} and the recipe's objective, so unless both "
        f"match it cannot be compared with the held-out loss, which is {always}."
        + (thinned if run.thinned_by > 1 else "")
        + ("" if comparable(run) else apart)
    )


def _quality(run: Run) -> tuple[float | None, float | None, float | None]:
    """Held-out loss, unigram loss and accuracy."""
    return run.number("heldout_loss"), run.number("unigram_loss"), run.number("heldout_accuracy")


def _course(run: Run) -> list[str]:
    """Whether held-out loss rose again after its best evaluation."""
    keep = np.isfinite(run.heldout["loss"])
    losses, tokens = run.heldout["loss"][keep], run.heldout["tokens"][keep]
    if len(losses) < 3:
        return []
    best = int(losses.argmin())
    if losses[-1] - losses[best] < 0.02:
        return []
    where = compact(tokens[best]) if np.isfinite(tokens[best]) else "an earlier number of"
    return [f"Held-out loss was lowest, {losses[best]:.2f}, after {where} tokens and has risen since."]


def _against_unigram(loss: float, unigram: float | None) -> str:
    if unigram is None:
        return ""
    side = "below" if loss < unigram else "above"
    return f"{abs(unigram - loss):.2f} {side} unigram ({unigram:.2f})"


def _exp(loss: float) -> str:
    return ratio(math.exp(loss)) if loss < 30 else "> 10¹³"


def _tile(name: str, value: str, unit: str, note: str) -> str:
    small = f"\u2009<small>{escape(unit)}</small>" if unit else ""
    below = f'<dd class="below">{escape(note)}</dd>' if note else ""
    return f"<div><dt>{escape(name)}</dt><dd>{escape(value)}{small}</dd>{below}</div>"
