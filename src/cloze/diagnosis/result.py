"""What a diagnosis found: plain frozen records whose `asdict` is the content of diagnosis.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cloze.variance import Estimate


@dataclass(frozen=True, slots=True)
class Setting:
    """What was measured, and on what.

    Attributes:
        model, data: as the user named them.
        sequences, masks: how many, and masks of each. length: tokens of the longest, specials included.
        rate: share of the tokens that is masked. corruption: what stands in their place, such as "80/10/10".
        parameters: which were asked for (all, body or a pattern).
        masking: kind of the run's policy; None: no run. passes: how often the run saw its text; None: not
            known.
        body_parameters, head_parameters: what the counted operations come from (`cost.py`).
        drawn: what the mask term is of: masks, prefixes, or nothing (`Method.drawn`).
    """

    model: str
    data: str
    sequences: int
    masks: int
    length: int
    rate: float
    corruption: str
    parameters: str
    masking: str | None
    passes: float | None
    body_parameters: int
    head_parameters: int
    drawn: str = "masks"


@dataclass(frozen=True, slots=True)
class Group:
    """Terms of one group of parameters: "embeddings", "layer 0", …, "head"."""

    name: str
    data_term: Estimate
    mask_term: Estimate
    mask_share: Estimate


@dataclass(frozen=True, slots=True)
class LossCost:
    """The terms with ‖g‖² replaced by gᵀHg, H the Gauss-Newton matrix: what the noise costs in loss."""

    data_term: Estimate
    mask_term: Estimate
    mask_share: Estimate


@dataclass(frozen=True, slots=True)
class Distance:
    """Covariance of the gradients of two masks of a sequence at a Hamming distance: 0 equal, 1 disjoint."""

    distance: float
    covariance: Estimate
    pairs: int


@dataclass(frozen=True, slots=True)
class Segments:
    """r_J: mask term of the mean over J disjoint masks, relative to J independent ones."""

    segments: int
    ratio: Estimate


@dataclass(frozen=True, slots=True)
class Point:
    """The variance at another rate or length.

    Attributes:
        rate, length: share of tokens that is masked; tokens of a sequence, specials included.
        variance: of the gradient of one sequence. noise_scale: variance / ‖E g‖², in sequences.
        cost: operations of one sequence, forward and backward.
        variance_per_compute, noise_per_compute: the two times the cost in 10⁹ operations; lower is better.
            The second does not depend on how large gradients are at this rate.
    """

    rate: float
    length: int
    variance: Estimate
    noise_scale: Estimate
    cost: float
    variance_per_compute: Estimate
    noise_per_compute: Estimate


@dataclass(frozen=True, slots=True)
class ProposalWord:
    """A token, and how often the proposal alone would mask it."""

    token: str
    inclusion: float


@dataclass(frozen=True, slots=True)
class Measurements:
    """All that was measured; variances are of the gradient of one sequence with one mask.

    Attributes:
        data_term, mask_term, total, mask_share: the decomposition. groups: the same by group of parameters.
        loss_cost: the same weighted by curvature, if asked for.
        hamming, segments: of disjoint and overlapping masks. covariance: C, of two disjoint ones.
        break_even: D + C; below 0 same-step disjoint masks win. Both None at rates above 1/2.
        signal: ‖E g‖². noise_scale: in sequences; only a lower bound if the signal cannot be told from 0.
        cv: spread of per-token gradient norms within sequences. oracle_saving: the best of any proposal. Not
            known where every token is predicted.
        score_savings: what each cheap score would save of the mask term, were it known exactly.
        proposal_saving: what the run's own proposal saves. proposal_words: what it wants masked most.
        rates, lengths: the variance elsewhere.
    """

    setting: Setting
    data_term: Estimate
    mask_term: Estimate
    total: Estimate
    mask_share: Estimate
    groups: list[Group]
    loss_cost: LossCost | None
    hamming: list[Distance]
    segments: list[Segments]
    covariance: Estimate | None
    break_even: Estimate | None
    signal: Estimate
    noise_scale: Estimate
    cv: Estimate
    oracle_saving: Estimate
    score_savings: dict[str, Estimate]
    proposal_saving: Estimate | None
    proposal_words: list[ProposalWord]
    rates: list[Point]
    lengths: list[Point]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to change. Attributes: masking: kind of a policy. rate. reason: a paragraph in plain words."""

    masking: str
    rate: float
    reason: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Measurements, what follows from them, and what they were made with."""

    measurements: Measurements
    recommended: Recommendation
    seconds: float
    environment: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The content of diagnosis.json: one flat object, every estimate {value, low, high}."""
        content = asdict(self.measurements)
        setting = content.pop("setting")
        rest = {"seconds": round(self.seconds, 1), "environment": self.environment}
        return setting | content | {"recommended": asdict(self.recommended)} | rest
