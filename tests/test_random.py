"""Numbers are pure functions of their counters, uniform, and independent between uses."""

import pytest
import torch
from helpers import chi_square
from torch import Tensor

from cloze.random import Stream, bits, integer, uniform

WORD = 2**64
N = 200_000
HUGE = [0, 1, -1, 2**31, -(2**31), 2**63 - 1, -(2**63), 123_456_789_012_345_678]

GOLDEN_BITS = [9216465476378195207, 8498380634212569639, 7617980228819904681]
GOLDEN_PAIR = [2770347141174634105, -2530501037365093559, 2478006075527156044]
GOLDEN_UNIFORM = [0.2906775508365538, 0.175852791820158, 0.08707417557334163]
GOLDEN_INTEGER = 8016639045676890067


def reference(seed: int, stream: int, *counters: int) -> int:
    """The same with Python's integers."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % WORD
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % WORD
        return x ^ (x >> 31)

    state = mix((seed * 0x9E3779B97F4A7C15 + stream * 0xD1342543DE82EF95) % WORD)
    for counter in counters:
        state = mix(state ^ mix((counter + 0x9E3779B97F4A7C15) % WORD))
    return state - WORD if state >= WORD // 2 else state


def test_golden_values_never_change() -> None:
    """Whoever changes these changes every mask of every recorded run."""
    place = torch.arange(3)
    assert bits(0, Stream.CHOICE, place).tolist() == GOLDEN_BITS
    assert bits(42, Stream.TOKEN, place, -place).tolist() == GOLDEN_PAIR
    assert uniform(7, Stream.ACTION, place).tolist() == GOLDEN_UNIFORM
    assert integer(2**70 + 5, Stream.STEP, 3, 2**64 - 1) == GOLDEN_INTEGER


@pytest.mark.parametrize("seed", [0, 1, 20_081_005, 2**63, 2**64 - 1, 2**200 + 3, -5])
def test_equals_the_reference_with_large_seeds_and_negative_counters(seed: int) -> None:
    first, second = torch.tensor(HUGE), torch.tensor(HUGE[::-1])
    want = [reference(seed, int(Stream.SPAN), a, b) for a, b in zip(HUGE, HUGE[::-1], strict=True)]
    assert bits(seed, Stream.SPAN, first, second).tolist() == want
    assert (
        integer(seed, Stream.SPAN, HUGE[5], HUGE[6])
        == (reference(seed, Stream.SPAN, HUGE[5], HUGE[6]) % WORD) >> 1
    )


def test_values_do_not_depend_on_shape_order_or_company() -> None:
    key, place = torch.arange(50) * 977 - 1000, torch.arange(40)
    grid = bits(3, Stream.CHOICE, key[:, None], place)
    assert grid.shape == (50, 40)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    flat = bits(3, Stream.CHOICE, key.repeat_interleave(40)[order], place.repeat(50)[order])
    assert torch.equal(flat, grid.flatten()[order])
    assert bits(3, Stream.CHOICE, key[7], place[9]) == grid[7, 9]
    assert torch.equal(bits(3, Stream.CHOICE, key.int()[:, None], place), grid)
    assert bits(3, Stream.CHOICE, key[:0]).shape == (0,)


def test_torch_seed_and_earlier_calls_do_not_matter() -> None:
    place = torch.arange(100)
    torch.manual_seed(1)
    before = bits(0, Stream.ORDER, place)
    torch.rand(17)
    uniform(0, Stream.ORDER, place)
    assert torch.equal(bits(0, Stream.ORDER, place), before)


def bins(u: Tensor, count: int = 64) -> Tensor:
    return torch.bincount((u * count).long(), minlength=count)


@pytest.mark.parametrize("step", [1, -1, 2**32, 2**45])
def test_uniform_for_any_pattern_of_counters(step: int) -> None:
    u = uniform(11, Stream.CHOICE, torch.arange(N) * step)
    assert u.dtype == torch.float64
    assert u.min() >= 0.0
    assert u.max() < 1.0
    assert abs(chi_square(bins(u))) < 6
    pairs = (u[0::2] * 16).long() * 16 + (u[1::2] * 16).long()
    assert abs(chi_square(torch.bincount(pairs, minlength=256))) < 6
    assert abs(chi_square(bins((u * 2**40) % 1.0))) < 6  # the lower bits too


def test_the_check_of_uniformity_rejects_a_slight_bias() -> None:
    u = uniform(11, Stream.CHOICE, torch.arange(N))
    assert chi_square(bins(u**1.05)) > 6
    assert chi_square(bins(torch.arange(N) / N)) < -5  # too even is not random either


def correlation(a: Tensor, b: Tensor) -> float:
    """In standard deviations."""
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1] * len(a) ** 0.5)


def test_streams_seeds_and_counters_are_independent() -> None:
    place = torch.arange(N)
    mine = uniform(5, Stream.COUNT, place)
    others = {s: uniform(5, s, place) for s in Stream if s is not Stream.COUNT}
    others |= {seed: uniform(seed, Stream.COUNT, place) for seed in (0, 4, 6, 5 + 2**32)}
    others["shift"] = uniform(5, Stream.COUNT, place + 1)
    others["more"] = uniform(5, Stream.COUNT, place, torch.zeros_like(place))
    for name, other in others.items():
        assert abs(correlation(mine, other)) < 5, name
        joint = (mine * 8).long() * 8 + (other * 8).long()
        assert abs(chi_square(torch.bincount(joint, minlength=64))) < 6, name
    weak = mine + 50 * others[Stream.CHOICE]
    assert correlation(mine, weak) > 5  # the control: a correlation of 0.02


def test_every_bit_of_a_counter_matters() -> None:
    place = torch.arange(5000)
    base = bits(9, Stream.KEY, place)
    for bit in range(64):
        flipped = bits(9, Stream.KEY, place ^ torch.tensor(1 << bit if bit < 63 else -(2**63)))
        changed = sum(int(((base ^ flipped) >> i & 1).sum()) for i in range(64)) / place.numel()
        assert abs(changed - 32) < 6 * 4 / place.numel() ** 0.5, bit


def test_order_of_counters_matters() -> None:
    a, b = torch.arange(100), torch.arange(100) + 1000
    assert not (bits(0, Stream.KEY, a, b) == bits(0, Stream.KEY, b, a)).any()


def test_streams_are_named_once() -> None:
    """A number that is used twice would tie two choices together; numbers are part of every mask."""
    names = [
        "COUNT",
        "CHOICE",
        "SPAN",
        "ACTION",
        "TOKEN",
        "ORDER",
        "SOURCE",
        "STEP",
        "KEY",
        "OFFSET",
        "STRATUM",
        "PREFIX",
        "HEAD",
        "PAIR",
        "PARTNER",
        "SAMPLE",
        "GENERATOR",
        "CLUSTER",
    ]
    assert {s.name: int(s) for s in Stream} == {name: i for i, name in enumerate(names, start=1)}
