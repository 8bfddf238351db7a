"""Vectors from neighbours: tokens that are used alike lie beside each other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from helpers import FIRST, SIZE, Sample, pack

from cloze.corruption.neighbours import neighbour_vectors


class Text:
    """Rows in which a token of the first kind is always followed by one of the second."""

    layout = SimpleNamespace(length=42)
    sources = (range(60),)

    def batch(self, at: int, rows: int) -> Any:
        draw = torch.Generator().manual_seed(at)
        first = torch.randint(FIRST, FIRST + 8, (rows, 20), generator=draw)
        second = torch.randint(FIRST + 8, FIRST + 16, (rows, 20), generator=draw)
        ids = torch.stack([first, second], 2).flatten(1)
        samples = [Sample(i, tuple(row.tolist()), tuple(range(40))) for i, row in enumerate(ids)]
        return pack([[sample] for sample in samples], 42)


def test_tokens_of_one_kind_are_nearer_than_those_of_two() -> None:
    vectors = neighbour_vectors(Text(), SIZE, seed=0)  # type: ignore[arg-type]
    unit = torch.nn.functional.normalize(vectors[FIRST : FIRST + 16].double(), dim=1)
    near = unit @ unit.T
    kind = torch.arange(16) // 8
    same = kind[:, None] == kind[None]
    other = ~torch.eye(16, dtype=torch.bool)
    assert near[same & other].mean() > near[~same].mean() + 0.5
    assert (vectors[FIRST + 16 :].abs() < 1e-4).all()  # what does not occur
    assert torch.equal(vectors, neighbour_vectors(Text(), SIZE, seed=0))  # type: ignore[arg-type]
