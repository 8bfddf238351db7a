"""What the variance of masked-LM gradients is made of, and what would reduce it. Needs torch only."""

from cloze.variance.decomposition import Decomposition, Loss, decompose, population
from cloze.variance.estimate import Estimate, jackknife, t_quantile
from cloze.variance.gradients import curvature_directions, per_token_norms
from cloze.variance.masks import enumerate_masks, family, mask_size
from cloze.variance.savings import Savings, savings

__all__ = [
    "Decomposition",
    "Estimate",
    "Loss",
    "Savings",
    "curvature_directions",
    "decompose",
    "enumerate_masks",
    "family",
    "jackknife",
    "mask_size",
    "per_token_norms",
    "population",
    "savings",
    "t_quantile",
]
