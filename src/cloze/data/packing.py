"""Packing: samples into rows of a fixed length, as an index on disk.

Runs of training text are cut where a row is full, so rows are nearly full and a row's place in the
corpus is arithmetic. A cut never leaves less than `SHORTEST` tokens on either side (if a row holds twice
as many); what a row cannot use for that reason is padding. Samples that share a row do not see each
other (models/visibility.py).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

SHORTEST = 8  # tokens; a shorter piece of a longer text is not worth a context of its own


@dataclass(frozen=True, slots=True)
class Pieces:
    """Samples in the order of their rows.

    Attributes:
        record: [samples] int64, record of the store.
        start: [samples] int64, first token within the record.
        length: [samples] int64, number of tokens, specials not counted.
        rows: [rows + 1] int64, row r holds the samples rows[r]:rows[r + 1].
    """

    record: np.ndarray
    start: np.ndarray
    length: np.ndarray
    rows: np.ndarray


def runs_of(
    section_starts: np.ndarray,
    held_out: np.ndarray,
    lengths: np.ndarray,
    first_section: np.ndarray,
    wanted: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maximal runs of consecutive sections of one record that are (not) held out.

    Args:
        section_starts: [sections] int64, first token of each section within its record.
        held_out: [sections] bool.
        lengths: [records] int64, tokens of each record.
        first_section: [records + 1] int64, record r has the sections first_section[r]:first_section[r + 1].
        wanted: take held-out sections (True) or the others.

    Returns:
        record, start and stop of each run, int64.
    """
    sections = section_starts.size
    record = np.repeat(np.arange(lengths.size), np.diff(first_section))
    stops = np.empty(sections, np.int64)
    stops[:-1] = section_starts[1:]
    last = first_section[1:][np.diff(first_section) > 0] - 1
    stops[last] = lengths[np.diff(first_section) > 0]
    take = held_out == wanted
    begins = take.copy()
    begins[1:] &= ~take[:-1] | (record[1:] != record[:-1])
    ends = take.copy()
    ends[:-1] &= ~take[1:] | (record[1:] != record[:-1])
    runs = record[begins], section_starts[begins], stops[ends]
    filled = runs[2] > runs[1]
    return runs[0][filled], runs[1][filled], runs[2][filled]


class Packer:
    """Cuts runs into samples and packs them into rows, one run after the other.

    Args:
        length: tokens in a row.
        specials: tokens that every sample needs beyond its text, such as [CLS] and [SEP].
        longest: most tokens in one sample, specials included (the model's maximum).
        alone: one sample a row, for encoders that cannot keep samples apart.
    """

    def __init__(self, length: int, specials: int, longest: int, alone: bool = False):
        self.length, self.specials, self.alone = length, specials, alone
        self.most = min(length, longest) - specials
        if self.most < 1:
            raise ValueError(f"rows of {length} tokens hold no text beside {specials} special tokens")
        self._room = 0
        self._columns = array("q"), array("q"), array("q")  # record, start, length
        self._rows = array("q")

    def add(self, record: int, start: int, stop: int) -> None:
        """Pack the tokens start:stop of a record."""
        while start < stop:
            size = stop - start
            fits = min(self._room - self.specials, self.most)
            least = size if size < 2 * SHORTEST else SHORTEST
            if self.alone or fits < least:
                whole = (size - SHORTEST) // self.most if self.most == self.length - self.specials else 0
                if whole > 1:  # rows of one full sample each, at once
                    self._emit_full(record, start, whole)
                    start += whole * self.most
                    continue
                self._rows.append(len(self._columns[0]))
                self._room = self.length
                fits = self.most
            take = min(size, fits)
            if 0 < size - take < SHORTEST and size >= 2 * SHORTEST:
                take = size - SHORTEST
            for column, value in zip(self._columns, (record, start, take), strict=True):
                column.append(value)
            self._room -= take + self.specials
            start += take

    def _emit_full(self, record: int, start: int, rows: int) -> None:
        first = len(self._columns[0])
        self._rows.frombytes(np.arange(first, first + rows, dtype=np.int64).tobytes())
        starts = start + self.most * np.arange(rows, dtype=np.int64)
        values = np.full(rows, record, np.int64), starts, np.full(rows, self.most, np.int64)
        for column, value in zip(self._columns, values, strict=True):
            column.frombytes(value.tobytes())
        self._room = 0

    def pieces(self) -> Pieces:
        """All rows so far."""
        record, start, length = (np.asarray(column, np.int64) for column in self._columns)  # not a copy
        return Pieces(record, start, length, np.append(np.array(self._rows, np.int64), len(self._columns[0])))
