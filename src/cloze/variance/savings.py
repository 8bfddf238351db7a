"""What choosing tokens by a score would save, were the score known exactly.

A token that is drawn with probability proportional to its score s, and weighted by 1/s, makes a gradient with
second moment E[t²/s] · E[s], where t is the norm of its gradient; uniform drawing has E[t²]. The best s is t
itself (Alain et al. 2015). Since a sequence has a fixed number of masked tokens, only differences within it
can be used: the moments are taken per sequence and then added up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cloze.errors import ClozeError
from cloze.variance.estimate import Estimate, jackknife

_FLOOR = 1e-6  # of a sequence's mean score: a token with score 0 would need an infinite weight


@dataclass(frozen=True)
class Savings:
    """Shares of the second moment of the tokens' gradients, within sequences; 0.1 is 10% less than uniform.

    The squared length of the mean gradient and the drawing without replacement are left out: these are the
    savings of a proposal for one token. The mask term of a whole mask shrinks by about as much.

    Attributes:
        cv: coefficient of variation of the norms t within sequences.
        oracle: 1 − (E t)² / E t² = 1 − 1/(1 + CV²): the saving of the best proposal.
        scores: {name: 1 − E[t²/s] · E[s] / E[t²]}. Negative: the score raises the variance.
    """

    cv: Estimate
    oracle: Estimate
    scores: dict[str, Estimate]


def savings(
    norms: Tensor, scores: Mapping[str, Tensor], sequence: Tensor, weights: Tensor | None = None
) -> Savings:
    """The savings of scores, from measured tokens; intervals from leaving out one sequence at a time.

    Products of two expectations are means over pairs of different tokens, which have no bias from the small
    number of tokens of a sequence. Sequences with one token say nothing and are left out.

    Args:
        norms: [N] norm t of each token's gradient (`per_token_norms`).
        scores: {name: [N] s, none negative}; their scale does not matter, not even from sequence to sequence.
            A score below a millionth of its sequence's mean counts as that.
        sequence: [N] int64, the sequence of each token.
        weights: [N] weight of each token in the expectations, if tokens were not measured alike; None: 1.

    Raises:
        ClozeError: a norm or a score is negative or not finite, or no sequence has two tokens.
    """
    of = sequence.cpu().unique(return_inverse=True)[1]
    t = _checked("norms", norms)
    w = torch.ones_like(t) if weights is None else _checked("weights", weights)

    def sums(values: Tensor) -> Tensor:
        return torch.zeros(int(of.max()) + 1, dtype=torch.float64).index_add(0, of, values)

    kept = sums((w > 0).double()) > 1
    if not kept.any():
        raise ClozeError("savings: no sequence has two measured tokens; measure more tokens of each")
    mass = (sums(w) ** 2 - sums(w * w))[kept]

    def pairs(a: Tensor, b: Tensor) -> Tensor:
        """Weighted mean of a_i · b_j over the pairs i ≠ j of each kept sequence."""
        return (sums(w * a) * sums(w * b) - sums(w * w * a * b))[kept] / mass

    second = pairs(t * t, torch.ones_like(t))
    best = pairs(t, t)
    found = {}
    for name, score in scores.items():
        s = _checked(f"score {name!r}", score)
        s = s.clamp(min=(_FLOOR * sums(s) / sums(torch.ones_like(s)))[of])
        s = torch.where(s > 0, s, 1.0)  # all scores of the sequence are 0
        found[name] = _jackknife(pairs(t * t / s, s), second, lambda ratio: 1.0 - ratio)
    return Savings(
        cv=_jackknife(second, best, lambda ratio: max(ratio - 1.0, 0.0) ** 0.5),
        oracle=_jackknife(best, second, lambda ratio: 1.0 - ratio),
        scores=found,
    )


def _jackknife(above: Tensor, below: Tensor, statistic: Callable[[float], float]) -> Estimate:
    """A statistic of Σ above / Σ below, both [sequences]."""
    left_out = (above.sum() - above) / (below.sum() - below)
    return jackknife(statistic(float(above.sum() / below.sum())), [statistic(x) for x in left_out.tolist()])


def _checked(name: str, values: Tensor) -> Tensor:
    values = values.detach().cpu().double()
    if not bool((values.isfinite() & (values >= 0)).all()):
        raise ClozeError(f"savings: {name}: a value is negative or not finite; give lengths")
    return values
