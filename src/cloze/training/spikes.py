"""A loss that jumps: told when it happens, with what helps, for a run may be left alone for days.

A line of metrics.jsonl is a spike if its loss is above the median of the lines before it by more than
`RISE` of the median and by more than `DEVIATIONS` robust standard deviations (1.4826 · median absolute
deviation). Losses of different phases and methods are not compared.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

LINES, LEAST = 12, 5  # lines that are looked back at
RISE, DEVIATIONS = 0.15, 6.0


class Spikes:
    """Watches the losses of a run, one line after the other.

    Args:
        changes: steps at which another phase or method begins.
    """

    def __init__(self, changes: Sequence[int]):
        self.changes = sorted(changes)
        self._part = -1
        self._last: deque[float] = deque(maxlen=LINES)
        self._high = False

    def see(self, step: int, loss: float) -> float | None:
        """The loss that was usual before this line, if a spike begins with it; None: no spike, or one still.

        Args:
            step: steps done at the line; its loss is that of steps before.
        """
        part = bisect_right(self.changes, step - 1)
        if part != self._part:
            self._part, self._high = part, False
            self._last.clear()
        usual, before = None, self._high
        if len(self._last) >= LEAST:
            usual = statistics.median(self._last)
            spread = 1.4826 * statistics.median(abs(x - usual) for x in self._last)
            self._high = loss - usual > max(RISE * abs(usual), DEVIATIONS * spread)
        self._last.append(loss)
        return usual if self._high and not before else None
