"""Everything that is measured of a subject, in one pass over its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel

from cloze.diagnosis.cost import point
from cloze.diagnosis.losses import Losses, sampled_losses
from cloze.diagnosis.opening import SHORTEST, Subject
from cloze.diagnosis.parameters import HEAD, counted, groups_of, select
from cloze.diagnosis.result import (
    Distance,
    Group,
    LossCost,
    Measurements,
    Point,
    Segments,
    Setting,
)
from cloze.diagnosis.text import shorten, spread
from cloze.diagnosis.tokens import ORDER, TOKENS, proposal_words, token_savings
from cloze.variance import (
    Decomposition,
    Estimate,
    Savings,
    curvature_directions,
    decompose,
    mask_size,
)

RATES = (0.08, 0.15, 0.2, 0.3, 0.4, 0.5)
FRACTIONS = (1.0, 0.5, 0.25)  # of the length
SWEEP_SHARE, SWEEP_MASKS, LEAST = 4, 4, 8  # rates and lengths: every fourth sequence, at least 8, four masks
TOKEN_SEQUENCES = 32  # of which single tokens' gradients are taken
DIRECTIONS = 16  # of curvature
ANY_RATE = 0.15  # of the masks that are drawn for a method that hides nothing, and change nothing
_UNKNOWN = Estimate(None, None, None)
NO_SAVINGS = Savings(_UNKNOWN, _UNKNOWN, {})  # where every token is predicted, none can be chosen

Meter = Callable[[str, int, int], None]  # what is measured, gradients done, gradients in all


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured.

    Attributes:
        masks: of each sequence, even, at least 4. parameters: all, body or a pattern.
        curvature: also weigh the variance by its cost in loss. seed: of the masks.
    """

    masks: int = 8
    parameters: str = "all"
    curvature: bool = False
    seed: int = 0


class _Counter:
    """Adds up gradients for a progress bar."""

    def __init__(self, meter: Meter | None, total: int):
        self.meter, self.total, self.done = meter, total, 0

    def add(self, what: str, gradients: int = 1) -> None:
        self.done += gradients
        if self.meter is not None:
            self.meter(what, min(self.done, self.total), self.total)

    def sequences(self, what: str, masks: int) -> Callable[[int, int], None]:
        """For `decompose`, which tells how many sequences are done."""
        return lambda done, of: self.add(what, masks)


def measure(subject: Subject, options: Options, meter: Meter | None = None) -> Measurements:
    """Measure a subject. Errors: parameters that do not exist."""
    model = subject.encoder.model
    losses = Losses(subject.method, subject.sequences)
    hides = subject.rate > 0.0
    rate, masks, sizes = subject.rate or ANY_RATE, options.masks, losses.sizes
    parameters = select(model, options.parameters)
    setting = _setting(subject, options, model)
    few = Losses(subject.method, [subject.sequences[i] for i in _few(len(sizes))])
    rates = sorted({*RATES, rate}) if hides else [rate]
    lengths = _lengths(setting.length)
    looked = [] if subject.method.everywhere else spread(len(sizes), TOKEN_SEQUENCES)
    passes = [len(sizes) * masks * (2 if options.curvature else 1)]
    passes += [len(few.sizes) * SWEEP_MASKS * (len(rates) + len(lengths) - 1)]
    passes += [min(TOKENS, mask_size(sizes[i], rate)) for i in looked]
    counter = _Counter(meter, sum(passes))

    groups = groups_of(model)
    found = decompose(
        losses,
        sizes,
        rate,
        parameters,
        masks=masks,
        seed=options.seed,
        group=groups.__getitem__,
        progress=counter.sequences("masks", masks),
    )
    if not subject.method.drawn:
        found = _unmasked(found)
    elif not hides:
        found = replace(found, covariance=None, break_even=None, segments=[], hamming=[])
    loss_cost = None
    if options.curvature:
        loss_cost = _loss_cost(subject, losses, parameters, options, counter)
    tokens = NO_SAVINGS
    if looked:
        tokens = token_savings(
            subject, losses, parameters, looked, options.seed, lambda: counter.add("single tokens")
        )
    at_rates = [
        _point(setting, few, r, setting.length, parameters, options, counter, f"rate {r:.0%}") for r in rates
    ]
    at_lengths = [at_rates[rates.index(rate)]]
    for length in lengths[1:]:
        short = Losses(subject.method, [shorten(batch, length) for batch in few.sequences])
        at_lengths.append(
            _point(setting, short, rate, length, parameters, options, counter, f"length {length}")
        )
    return Measurements(
        setting=setting,
        data_term=found.data,
        mask_term=found.mask,
        total=found.total,
        mask_share=found.share,
        groups=_groups(found),
        loss_cost=loss_cost,
        hamming=[Distance(d, covariance, pairs) for d, covariance, pairs in found.hamming],
        segments=[Segments(j, ratio) for j, ratio in found.segments],
        covariance=found.covariance,
        break_even=found.break_even,
        signal=found.signal,
        noise_scale=found.noise_scale,
        cv=tokens.cv,
        oracle_saving=tokens.oracle,
        score_savings={name: tokens.scores[name] for name in ORDER if name in tokens.scores},
        proposal_saving=tokens.scores.get("proposal"),
        proposal_words=proposal_words(subject),
        rates=at_rates,
        lengths=at_lengths,
    )


def _unmasked(found: Decomposition) -> Decomposition:
    """Of a method that draws nothing: all masks gave the same gradient, but for rounding."""
    none = Estimate(0.0, 0.0, 0.0)
    return replace(
        found,
        mask=none,
        share=none,
        covariance=None,
        break_even=None,
        segments=[],
        hamming=[],
        groups={name: (data, none) for name, (data, _) in found.groups.items()},
    )


def _few(count: int) -> list[int]:
    return spread(count, max(LEAST, count // SWEEP_SHARE))


def _lengths(longest: int) -> list[int]:
    return [longest, *(n for f in FRACTIONS[1:] if (n := round(longest * f)) >= SHORTEST)]


def _setting(subject: Subject, options: Options, model: PreTrainedModel) -> Setting:
    body, head = counted(model)
    return Setting(
        model=subject.model,
        data=subject.data,
        sequences=len(subject.sequences),
        masks=options.masks,
        length=max(batch.ids.shape[1] for batch in subject.sequences),
        rate=subject.rate,
        corruption=subject.recipe.corruption.describe(),
        parameters=options.parameters,
        masking=subject.recipe.masking.kind if subject.is_run else None,
        passes=subject.passes,
        body_parameters=body,
        head_parameters=head,
        drawn=subject.method.drawn,
    )


def _point(
    setting: Setting,
    losses: Losses,
    rate: float,
    length: int,
    parameters: Mapping[str, Tensor],
    options: Options,
    counter: _Counter,
    what: str,
) -> Point:
    sizes = losses.sizes
    found = decompose(
        losses,
        sizes,
        rate,
        parameters,
        masks=SWEEP_MASKS,
        seed=options.seed,
        progress=counter.sequences(what, SWEEP_MASKS),
    )
    predicted = sum(mask_size(size, rate) for size in sizes) / len(sizes)
    return point(setting, rate, length, predicted, found)


def _groups(found: Decomposition) -> list[Group]:
    """In the order of the model, the head last."""
    names = sorted(found.groups, key=lambda name: (name == HEAD, name.startswith("layer"), _layer(name)))
    return [Group(name, *found.groups[name], _share(*found.groups[name])) for name in names]


def _layer(name: str) -> int:
    return int(name.removeprefix("layer ")) if name.startswith("layer ") else 0


def _share(data: Estimate, mask: Estimate) -> Estimate:
    """mask / (data + mask), in the widest interval that theirs allow."""

    def share(m: float | None, d: float | None) -> float | None:
        if m is None or d is None:
            return None
        m, d = max(m, 0.0), max(d, 0.0)
        return m / (m + d) if m + d > 0 else None

    return Estimate(share(mask.value, data.value), share(mask.low, data.high), share(mask.high, data.low))


def _loss_cost(
    subject: Subject, losses: Losses, parameters: Mapping[str, Tensor], options: Options, counter: _Counter
) -> LossCost:
    spare, seed = Losses(subject.method, subject.spare), options.seed * DIRECTIONS
    directions = curvature_directions(
        lambda draw: sampled_losses(spare, subject.encoder, subject.rate, seed + draw), parameters, DIRECTIONS
    )
    found = decompose(
        losses,
        losses.sizes,
        subject.rate,
        parameters,
        masks=options.masks,
        seed=options.seed,
        metric=directions,
        progress=counter.sequences("loss cost", options.masks),
    )
    return LossCost(found.data, found.mask, found.share)
