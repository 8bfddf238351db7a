"""Where the variance of the masked-LM gradient comes from: the text, or the masks.

For the gradient g of one sequence x under one mask m, tr Var(g) = D + M. The data term D = tr Var_x(E_m g)
would be there even if every mask of a sequence were tried; the mask term M = E_x tr Var_m(g) is what better
masks can reduce (MAPNet, 2008.05333). All terms are sums of mean inner products of gradients, each over the
pairs whose expectation it is, so that nothing has to be corrected for bias (docs/variance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cloze.errors import ClozeError
from cloze.variance.estimate import Estimate, jackknife
from cloze.variance.gradients import Layout
from cloze.variance.masks import family, mask_size
from cloze.variance.products import BINS, DISJOINT, Products

Loss = Callable[[int, Tensor, int], Tensor]
"""`loss(sequence, mask, draw)`: the loss of one sequence under one mask, a differentiable scalar.

`mask` is [n] bool over the sequence's maskable tokens (on the CPU), with k true: the loss is the mean over
these k tokens. `draw` (0 .. masks − 1) tells the masks of a sequence apart, for whatever else is random, such
as which masked tokens are replaced by a random one.
"""


@dataclass(frozen=True)
class Decomposition:
    """Terms of the gradient's variance, for ONE sequence with ONE mask, in squared units of the gradient.

    Attributes:
        data: D = tr Var over sequences of E_m g, the mean gradient of a sequence.
        mask: M = mean over sequences of tr Var over masks of g.
        total: D + M = tr Var(g).
        share: M / (D + M).
        covariance: C, mean covariance of the gradients of two disjoint masks of one sequence; None where two
            do not fit (a rate above 1/2).
        break_even: D + C. At equal compute, disjoint masks in one step beat more sequences iff it is below 0.
        segments: (J, r_J) for J = 1 .. 1/rate: r_J = 1 + (J − 1) C/M, the mask term of the mean over J
            disjoint masks relative to J independent ones.
        hamming: (distance, covariance, pairs): covariance of the gradients of two masks of one sequence by
            their Hamming distance as a share of the largest, 2k; from 0, where it is M, to 1, where it is C.
        signal: ‖E g‖².
        noise_scale: tr Var(g) / ‖E g‖², in sequences (McCandlish et al. 2018). If the signal cannot be told
            from 0, only `low` is known.
        groups: {label: (data, mask)}; they add up to the whole. Empty with a metric: there they would not.
    """

    data: Estimate
    mask: Estimate
    total: Estimate
    share: Estimate
    covariance: Estimate | None
    break_even: Estimate | None
    segments: list[tuple[int, Estimate]]
    hamming: list[tuple[float, Estimate, int]]
    signal: Estimate
    noise_scale: Estimate
    groups: dict[str, tuple[Estimate, Estimate]]


def decompose(
    loss: Loss,
    sizes: Sequence[int],
    rate: float,
    parameters: Mapping[str, Tensor],
    *,
    masks: int = 8,
    seed: int = 0,
    group: Callable[[str], str] | None = None,
    metric: Sequence[Sequence[Tensor]] | None = None,
    memory: int = 4 * 2**30,
    progress: Callable[[int, int], None] | None = None,
) -> Decomposition:
    """Measure the terms with `masks` gradients of each sequence.

    Args:
        loss: see `Loss`; a function of its arguments only (no dropout).
        sizes: maskable tokens of each sequence; at least 2 sequences, independent of each other.
        rate: share of them that is masked: k = max(1, round(rate · n)).
        parameters: {name: leaf that requires a gradient}.
        masks: masks of each sequence, even, at least 4: two independent families of `masks.family`.
        seed: of the masks.
        group: label of a parameter's name ("embeddings", "layer 0", ...); None: one group, "all".
        metric: K directions s_k, each a list of tensors like `parameters` (`curvature_directions`). ‖g‖² is
            then 1/K Σ (s_k·g)² everywhere: half of it is the loss that noise of that size costs. The
            intervals hold for these directions.
        memory: bytes for the mean gradients of sequences. If they need more they are added up in blocks of
            sequences, at least 8: the same values, with somewhat wider intervals. On top of it come the
            `masks` gradients of one sequence, and the directions.
        progress: called with (sequences done, sequences).

    Raises:
        ClozeError: these arguments cannot give the terms, or a gradient is not finite.
    """
    _check(sizes, rate, parameters, masks)
    layout = Layout.of(parameters, None if metric is not None else group)
    rows = layout.rows(masks)
    directions = None if metric is None else _directions(metric, layout)
    width = rows.shape[1] if directions is None else len(directions)
    fit = max(8, memory // (width * rows.element_size()))
    means = rows.new_zeros(min(len(sizes), fit), width)
    products = Products(means, layout.columns if directions is None else {"all": (0, width)})
    for i, n in enumerate(sizes):
        k = mask_size(n, rate)
        drawn = [family(n, k, masks // 2, seed=seed, sequence=i, number=half) for half in (0, 1)]
        chosen = torch.cat(drawn)
        for draw, mask in enumerate(chosen):
            layout.differentiate(loss(i, mask, draw), rows[draw])
        features = rows if directions is None else rows @ directions.T
        products.add(i * len(means) // len(sizes), features, chosen)
        if progress is not None:
            progress(i + 1, len(sizes))
    return _summary(products, rate, masks, grouped=directions is None)


def population(gradients: Tensor) -> tuple[float, float, float]:
    """(D, M, D + M) of a finite population, exactly, each from its own definition.

    Args:
        gradients: [sequences, masks, P], every mask of every sequence (`enumerate_masks`), all as likely.
    """
    g = gradients.double()
    of_sequence, of_all = g.mean(1, keepdim=True), g.mean((0, 1), keepdim=True)
    terms = (of_sequence - of_all, g - of_sequence, g - of_all)
    data, mask, total = (float((x * x).sum(2).mean()) for x in terms)
    return data, mask, total


def _check(sizes: Sequence[int], rate: float, parameters: Mapping[str, Tensor], masks: int) -> None:
    if len(sizes) < 2:
        raise ClozeError(f"{len(sizes)} sequence(s): give at least 2, the data term compares sequences")
    if min(sizes) < 1:
        raise ClozeError(f"sequence {list(sizes).index(min(sizes))} has no maskable token: leave it out")
    if not 0.0 < rate <= 1.0:
        raise ClozeError(f"rate {rate}: give a share of the tokens, above 0 and at most 1")
    if masks < 4 or masks % 2:
        raise ClozeError(f"masks {masks}: give an even number of masks for each sequence, at least 4")
    frozen = [name for name, leaf in parameters.items() if not leaf.requires_grad]
    if frozen or not parameters:
        named = f"parameter {frozen[0]!r} requires no gradient" if frozen else "no parameters"
        raise ClozeError(f"{named}: give those to measure, with requires_grad")


def _directions(metric: Sequence[Sequence[Tensor]], layout: Layout) -> Tensor:
    """[K, P], divided by √K, so that squared lengths are means over the directions."""
    if not metric:
        raise ClozeError("metric: give at least one direction")
    stacked = layout.rows(len(metric))
    for row, direction in zip(stacked, metric, strict=True):
        layout.write(row, direction)
    return stacked / len(metric) ** 0.5


def _summary(products: Products, rate: float, masks: int, grouped: bool) -> Decomposition:
    values, left_out = products.statistics()
    sizes = products.count.int().tolist()
    terms = {name: jackknife(value, [x[name] for x in left_out], sizes) for name, value in values.items()}
    seen = products.pairs > 0
    disjoint = bool(seen[DISJOINT])
    ratio = terms["C / M"]
    most = int(1.0 / rate + 1e-9) if disjoint else 1
    hamming = [(0.0, terms["mask"], masks * int(products.count.sum()))]
    for i in range(BINS):
        if seen[i]:
            pairs = int(products.pairs[i])
            hamming.append((float(products.distances[i]) / pairs, terms[f"distance {i}"], pairs))
    return Decomposition(
        data=terms["data"],
        mask=terms["mask"],
        total=terms["total"],
        share=terms["share"],
        covariance=terms[f"distance {DISJOINT}"] if disjoint else None,
        break_even=terms["break even"] if disjoint else None,
        segments=[(1, Estimate(1.0, 1.0, 1.0))]
        + [(j, ratio.scaled(j - 1.0, 1.0)) for j in range(2, most + 1)],
        hamming=hamming,
        signal=terms["signal"],
        noise_scale=_noise_scale(terms["signal / total"]),
        groups={g: (terms[f"data: {g}"], terms[f"mask: {g}"]) for g in products.columns} if grouped else {},
    )


def _noise_scale(inverse: Estimate) -> Estimate:
    """The interval of signal / total turned over: where it reaches 0, the noise scale has no upper bound."""
    value, low, high = inverse.value, inverse.low, inverse.high
    least = 1.0 / high if high is not None and high > 0.0 else None
    if value is None or value <= 0.0 or (low is not None and low <= 0.0):
        return Estimate(None, least, None)
    return Estimate(1.0 / value, least, None if low is None else 1.0 / low)
