"""Trust: savings are those of a direct computation, old ones are forgotten, small ones not believed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import make_samples, pack
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking import trust
from cloze.masking.base import Seen
from cloze.masking.draw import spread
from cloze.masking.plan import MaskPlan
from cloze.masking.trust import DECAY, MARGIN, POWERS, WARM, Trust
from cloze.masking.unequal import proposal_draw
from cloze.masking.units import tokens

EPSILON = 0.2


def batch() -> Batch:
    """Samples of 5 and 9 tokens in one row, one of 3 in the next."""
    return pack([make_samples([5, 9]), make_samples([3], seed=1)], 20)


def score() -> Tensor:
    """[rows, length] predictions, in some unit of their own."""
    return 7.0 * torch.rand(2, 20, generator=torch.Generator().manual_seed(4)).double() + 0.1


def everything(b: Batch) -> Seen:
    """All maskable tokens predicted with certainty."""
    units = tokens(b)
    ones = torch.ones(units.sample.numel())
    plan = spread(units, ones.bool(), ones)
    places = plan.predicted.flatten().nonzero().squeeze(1)
    return Seen(b, plan, places, plan.weights(places), {})


def direct(b: Batch, q: Tensor, square: Tensor) -> list[float]:
    """Second moment with q relative to uniform, for each exponent: token by token."""
    found = []
    for power in POWERS:
        above, below = 0.0, 0.0
        for sample in range(b.samples):
            mine = (b.segments == sample) & b.maskable
            proposal = q[mine] ** power
            proposal = EPSILON + (1 - EPSILON) * proposal / proposal.mean()
            above += float((square[mine] / proposal).sum())
            below += float(square[mine].sum())
        found.append(1 - above / below)
    return found


def test_savings_are_those_of_a_direct_computation() -> None:
    b, q = batch(), score()
    square = q**2 * (1 + torch.rand(2, 20, generator=torch.Generator().manual_seed(5)).double())
    t, s = Trust(EPSILON), everything(b)
    assert t.savings().tolist() == [0.0] * len(POWERS)  # before any step
    t.update([s], [q], [square.flatten()[s.places]])
    assert t.savings().tolist() == pytest.approx(direct(b, q, square))
    assert 0.0 == t.savings()[0] < t.savings()[1] < t.savings()[4]
    # A square that is flat, and one that is large where little is predicted.
    for other in (torch.ones(2, 20).double(), 1 / q**2):
        u = Trust(EPSILON)
        u.update([s], [q], [other.flatten()[s.places]])
        assert u.savings().tolist() == pytest.approx(direct(b, q, other))
        assert u.savings()[4] < 0.0


def test_micro_batches_and_their_order_do_not_matter() -> None:
    b, q = batch(), score()
    other = replace(b, ids=b.ids.flip(1))
    seen, squares = [everything(b), everything(other)], [torch.rand(17).double() for _ in range(2)]
    one, two = Trust(EPSILON), Trust(EPSILON)
    one.update(seen, [q, 2 * q], squares)
    two.update(seen[::-1], [2 * q, q], squares[::-1])
    assert torch.allclose(one.moments, two.moments, rtol=1e-12)
    assert int(one.steps) == 1


@pytest.mark.parametrize("kind", ["uniform", "proposal"])
def test_weights_make_it_the_same_from_any_draw(kind: str) -> None:
    """From a few tokens that were drawn, in expectation what all tokens give."""
    rows = 3000
    (sample,) = make_samples([12])
    b = pack([[replace(sample, visit=v)] for v in range(rows)], 14)
    q = (1.0 + torch.arange(14).double() % 4).expand(rows, 14)
    square = (0.3 + 2.0 * torch.rand(14, generator=torch.Generator().manual_seed(5)).double()).expand(
        rows, 14
    )
    units = tokens(b)
    drawn_by = q[b.maskable] if kind == "proposal" else torch.ones(units.sample.numel()).double()
    plan: MaskPlan = proposal_draw(b, units, drawn_by, 0.25, 1, EPSILON)
    places = plan.predicted.flatten().nonzero().squeeze(1)
    seen, t = Seen(b, plan, places, plan.weights(places), {}), Trust(EPSILON)
    t.update([seen], [q], [square.flatten()[places]])
    wanted = direct(pack([[sample]], 14), q[:1], square[:1])
    assert t.savings().tolist() == pytest.approx(wanted, abs=0.01)
    if kind == "proposal":  # the control: without the weights it is another number
        bare, u = replace(seen, weights=torch.ones_like(seen.weights)), Trust(EPSILON)
        u.update([bare], [q], [square.flatten()[places]])
        assert abs(float(u.savings()[4]) - wanted[4]) > 0.05


def follow(t: Trust, square: Tensor, q: Tensor, steps: int) -> list[float]:
    """The exponent after each of so many equal steps."""
    seen, powers = everything(batch()), []
    for _ in range(steps):
        t.update([seen], [q], [square.flatten()[seen.places]])
        powers.append(t.power())
    return powers


def test_it_waits_lets_in_and_falls_back() -> None:
    t, q = Trust(EPSILON), score()
    powers = follow(t, q**2, q, WARM + 10)
    assert powers == [0.0] * (WARM - 1) + [1.0] * 11
    powers = follow(t, torch.ones(2, 20).double() * float((q**2).mean()), q, 200)
    assert powers[0] == 1.0  # one step says little
    assert powers[-1] == 0.0
    assert sorted(powers, reverse=True) == powers  # it goes down by the exponents
    assert {0.25, 0.5, 0.75} & set(powers)
    assert max(follow(t, 1 / q**2, q, 50)) == 0.0


def test_half_of_the_signal_is_drawn_with_half_of_the_power() -> None:
    """Where the true norm is the root of what is predicted, the exponent 1/2 saves most."""
    t, q = Trust(0.0), score()
    assert follow(t, q, q, WARM)[-1] == 0.5


def test_a_small_saving_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    t = Trust(EPSILON)
    q = 1.0 + 0.03 * score()
    assert follow(t, q**2, q, WARM + 5)[-1] == 0.0
    assert 0.0 < float(t.savings().max()) < MARGIN
    monkeypatch.setattr(trust, "MARGIN", 0.0)
    assert t.power() == 1.0


def test_the_past_counts_by_its_decay() -> None:
    t, q = Trust(EPSILON), score()
    follow(t, q**2, q, 1)
    first = t.moments.clone()
    follow(t, torch.ones(2, 20).double(), q, 2)
    flat = Trust(EPSILON)
    follow(flat, torch.ones(2, 20).double(), q, 1)
    assert torch.allclose(t.moments, DECAY**2 * first + (1 + DECAY) * flat.moments)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_left_out(value: float) -> None:
    t, q = Trust(EPSILON), score()
    follow(t, q**2, q, 3)
    before = t.moments.clone()
    follow(t, torch.full((2, 20), value).double(), q, 2)
    assert torch.equal(t.moments, before)
    assert int(t.steps) == 3
