"""Counter-based random numbers: a number is a pure function of what it is for.

No generator and no hidden state, so a mask does not depend on the order of the batches, the number of
workers or ranks, or on a resume. All arithmetic is in wrapping int64 and float64, which gives the same
bits on a CPU and a GPU. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

_WORD = 1 << 64


class Stream(IntEnum):
    """What a random number is for: numbers of different streams are independent."""

    COUNT = 1  # rounding of how many units a sample hides
    CHOICE = 2  # which units
    SPAN = 3  # where spans end
    ACTION = 4  # what replaces a hidden token: mask, random, itself
    TOKEN = 5  # which random token
    ORDER = 6  # order of the rows
    SOURCE = 7  # order of the sources
    STEP = 8  # seed of torch's own generator at a step
    KEY = 9  # names of samples
    OFFSET = 10  # start of a systematic draw
    STRATUM = 11  # order within a stratum
    PREFIX = 12  # how long a visible prefix is
    HEAD = 13  # first weights of the head that judges tokens
    PAIR = 14  # which spans of text make a pair
    PARTNER = 15  # whether two pairs exchange their second spans
    SAMPLE = 16  # which token a generator writes
    GENERATOR = 17  # its first weights
    CLUSTER = 18  # which cluster a random token is of


def _signed(value: int) -> int:
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def bits(seed: int, stream: Stream, *counters: Tensor) -> Tensor:
    """64 random bits (int64) for each entry of the broadcast `counters` (int64 tensors, at least one)."""
    start = _signed(seed * 0x9E3779B97F4A7C15 + int(stream) * 0xD1342543DE82EF95)
    state = _mix(torch.full((), start, dtype=torch.int64, device=counters[0].device))
    for counter in counters:
        state = _mix(state ^ _mix(counter.to(torch.int64) + _GOLDEN))
    return state


def uniform(seed: int, stream: Stream, *counters: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), float64, one for each entry of the broadcast `counters`."""
    return _shift(bits(seed, stream, *counters), 11).to(torch.float64) * 2.0**-53


def integer(seed: int, stream: Stream, *counters: int) -> int:
    """One 63-bit number from plain integers."""
    drawn = bits(seed, stream, *(torch.tensor(_signed(c), dtype=torch.int64) for c in counters))
    return int(_shift(drawn, 1))
