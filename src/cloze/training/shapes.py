"""Static shapes for compiled code: every micro-batch of a phase gives tensors of the same sizes.

A size is a constant of the settings and the packed text, with room for chance. A batch that needs more gets
the next size: one more graph is compiled, and nothing is dropped.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from cloze.data.loader import Loader
from cloze.methods.base import TokenWork, Work
from cloze.methods.composite import Mixed


class Shapes:
    """Sizes of the work of a run; `loaders`: of its phases."""

    def __init__(self, loaders: list[Loader]):
        self.samples = {loader.layout.length: samples_per_row(loader) for loader in loaders}
        # A few rows may be dense by chance, which would be one more graph: all of a phase, or none.
        self.dense = {
            loader.layout.length: loader.fill > 1 - 1e-9 and self.samples[loader.layout.length][0] < 1 + 1e-9
            for loader in loaders
        }

    def slots(self, tokens: int, density: float) -> int:
        """Usual number of predicted slots for so many tokens, padding counted: a tenth more than expected."""
        return -(-math.ceil(min(1.1 * density, 1.0) * tokens) // 128) * 128

    def runs(self, rows: int, length: int, copies: int) -> int:
        """Usual number of runs of equal segments: samples, four deviations more, and padding in every row."""
        mean, deviation = self.samples[length]
        chance = 4.0 * deviation * math.sqrt(rows * copies)  # the copies of a row have the same samples
        return -(-math.ceil(rows * (mean + 1.0) + chance) // 64) * 64

    def pad(self, work: Work, copies: int) -> Work:
        """The work in its static sizes; each part of a mixture in its own."""
        if isinstance(work, Mixed):
            return replace(work, parts={name: self.pad(part, copies) for name, part in work.parts.items()})
        assert isinstance(work, TokenWork)
        rows, length = work.batch.ids.shape
        needed = max(view.runs or view.segments.numel() for view in work.views)
        return work.padded(
            capacity(work.places.numel(), self.slots(rows * length, work.density)),
            capacity(needed, self.runs(rows, length, copies)),
            self.dense[length],
        )


def samples_per_row(loader: Loader) -> tuple[float, float]:
    """Mean and standard deviation of the samples in a row, sources weighted as they are drawn."""
    total = sum(loader.weights)
    moments = np.zeros(2)
    for source, weight in zip(loader.sources, loader.weights, strict=True):
        counts = np.diff(source.pieces.rows)
        moments += np.array([counts.mean(), np.square(counts, dtype=np.float64).mean()]) * weight / total
    mean, square = moments.tolist()
    return mean, math.sqrt(max(0.0, square - mean**2))


def capacity(needed: int, usual: int) -> int:
    """`usual`, or where that is too little the next of a few larger sizes, an eighth of it apart."""
    step = max(1, usual // 8)
    return usual + max(0, -(-(needed - usual) // step)) * step
