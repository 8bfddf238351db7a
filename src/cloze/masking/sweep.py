"""Sweeps: the visits of a sample, in groups that hide each of its units once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking.units import UnitKind, Units, cut, fewest_units


@dataclass(frozen=True, slots=True)
class Sweep:
    """Where the samples of a batch are in their sweeps.

    Attributes:
        turns: [samples] int64, J, visits of a sweep: 1/rate, or the sample's units if they are fewer.
        number: [samples] int64, which sweep this visit belongs to. turn: [samples] int64, in [0, J).
        units: cut once for the whole sweep.
    """

    turns: Tensor
    number: Tensor
    turn: Tensor
    units: Units


def segments(rate: float) -> int:
    """J, how many segments a sample is cut into at this rate."""
    return round(1.0 / rate)


def sweep(batch: Batch, kind: UnitKind, rate: float, seed: int) -> Sweep:
    """The sweeps of J = 1/rate visits each; a sample of fewer units has shorter ones, of one unit a visit."""
    turns = fewest_units(batch, kind).clamp(min=1, max=segments(rate))
    number, turn = batch.visits // turns, batch.visits % turns
    return Sweep(turns, number, turn, cut(replace(batch, visits=number), kind, seed))
