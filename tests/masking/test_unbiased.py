"""The mean over all masks of the weighted loss is the reference loss, found by enumeration."""

from itertools import combinations
from math import comb

import torch
from helpers import chi_square, make_samples, pack, tile
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking.plan import MaskPlan
from cloze.masking.uniform import Uniform

VISITS = 40_000
N = 6


def losses(hidden: Tensor) -> Tensor:
    """A stand-in for a model, [visits, N]: the loss of each token depends on what else is hidden."""
    own = torch.tensor([0.3, 2.0, 0.7, 1.5, 4.0, 0.1], dtype=torch.float64)
    place = torch.arange(N, dtype=torch.float64)
    near = (-(place[:, None] - place).abs()).exp()  # hidden neighbours make it harder
    h = hidden.double()
    return own * (1 + 0.5 * h.sum(1, keepdim=True)) + h @ near


def reference(rate: float) -> float:
    """E Σ losses of hidden tokens / E count, over all subsets under the scheme, by enumeration."""
    low = int(N * rate)
    share = N * rate - low
    total = 0.0
    for count, probability in ((low, 1 - share), (low + 1, share)):
        for chosen in combinations(range(N), count):
            mask = torch.zeros(1, N, dtype=torch.bool)
            mask[0, list(chosen)] = True
            total += probability / comb(N, count) * float(losses(mask)[mask].sum())
    return total / (N * rate)


def drawn(rate: float) -> tuple[Batch, MaskPlan, Tensor]:
    batch = tile(pack([make_samples([N])], length=N + 2), VISITS)
    plan = Uniform().plan(batch, rate, seed=11)
    return batch, plan, plan.predicted[:, 1 : 1 + N]


def off(values: Tensor, wanted: float) -> float:
    """In standard deviations of the mean."""
    return abs(float(values.mean()) - wanted) / float(values.std() / len(values) ** 0.5)


def estimates(plan: MaskPlan, masks: Tensor) -> Tensor:
    """Σ weight · loss / Σp of each visit."""
    places = plan.predicted.flatten().nonzero().squeeze(1)
    weights = torch.zeros(plan.predicted.numel(), dtype=torch.float64)
    weights[places] = plan.weights(places).double()
    weighted = weights.view_as(plan.predicted)[:, 1 : 1 + N] * losses(masks)
    return weighted.sum(1) / (plan.mass() / VISITS)


def test_the_mean_over_visits_is_the_reference() -> None:
    for rate in (0.5, 0.4, 0.25):  # 3, 2.4 and 1.5 tokens
        _, plan, masks = drawn(rate)
        assert off(estimates(plan, masks), reference(rate)) < 5


def test_dividing_by_the_number_of_drawn_tokens_is_biased() -> None:
    """The control for the denominator: the mean over predicted tokens, as collators and models do it."""
    _, plan, masks = drawn(0.25)
    by_count = estimates(plan, masks) * (plan.mass() / VISITS) / masks.sum(1)
    assert off(by_count, reference(0.25)) > 5


def test_a_contiguous_choice_with_the_same_pi_is_found() -> None:
    """The control for the draw: every token as often as it should be, but always with its neighbours."""
    _, plan, _ = drawn(0.5)
    start = torch.arange(VISITS)[:, None] % N
    masks = ((torch.arange(N) - start) % N) < 3
    assert ((masks.double().mean(0) - 0.5).abs() < 1e-3).all()
    estimate = (masks * losses(masks)).sum(1) / (plan.mass() / VISITS)
    assert off(estimate, reference(0.5)) > 5


def test_every_subset_is_as_likely() -> None:
    _, _, masks = drawn(0.5)
    names = (masks.long() * 2 ** torch.arange(N)).sum(1)
    counts = torch.stack([(names == sum(2**i for i in c)).sum() for c in combinations(range(N), 3)])
    assert int(counts.sum()) == VISITS
    assert abs(chi_square(counts)) < 6
    biased = counts.clone()
    biased[0] += biased[1] // 5
    biased[1] -= biased[1] // 5
    assert chi_square(biased) > 6


def test_weights_undo_an_uneven_choice() -> None:
    """One of four tokens is drawn with probability π and stands for all by p/π: exact, no sampling."""
    pi = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    p = torch.full((1, 4), 0.25)
    loss = torch.tensor([3.0, 1.0, 0.5, 2.0], dtype=torch.float64)
    estimate, by_weights = 0.0, 0.0
    for i in range(4):
        one = torch.zeros(1, 4, dtype=torch.bool)
        one[0, i] = True
        plan = MaskPlan(hidden=one, predicted=one, inclusion=pi, reference=p)
        weight = float(plan.weights(torch.tensor([i])))
        estimate += float(pi[0, i]) * weight * float(loss[i]) / float(plan.mass())
        by_weights += float(pi[0, i]) * float(loss[i])  # divided by the drawn weight instead
    wanted = float(loss.mean())
    assert abs(estimate - wanted) < 1e-6
    assert abs(by_weights - wanted) > 0.1
