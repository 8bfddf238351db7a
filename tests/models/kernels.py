"""What stands for a GPU's kernels in tests on a CPU, and how a kernel is forced."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from cloze.models import attention


def by_loop(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """`varlen_attn`, one sequence after the other: [tokens, heads, width] in and out."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    starts = cu_seq_q.tolist()
    assert starts == cu_seq_k.tolist()
    assert (starts[0], starts[-1]) == (0, query.shape[0])
    left, right = window_size
    parts = []
    for start, stop in pairwise(starts):
        assert 0 <= stop - start <= min(max_q, max_k)
        q, k, v = (x[start:stop] for x in (query, key, value))
        scores = torch.einsum("qhw,khw->hqk", q, k) * (query.shape[2] ** -0.5 if scale is None else scale)
        place = torch.arange(stop - start)
        ahead = place[None] - place[:, None]
        hidden = ((ahead > right) if right >= 0 else False) | ((ahead < -left) if left >= 0 else False)
        weights = scores.masked_fill(torch.as_tensor(hidden), float("-inf")).softmax(-1)
        parts.append(torch.einsum("hqk,khw->qhw", weights, v))
    return torch.cat(parts)


def by_mask(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    *, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    """The same from operations of static shapes, which can be compiled."""
    place = torch.arange(query.shape[0])
    run = torch.bucketize(place, cu_seq_q[1:], right=True)
    ahead, (left, right) = place[None] - place[:, None], window_size
    seen = run[:, None] == run[None]
    if left >= 0:
        seen = seen & (ahead >= -left)
    if right >= 0:
        seen = seen & (ahead <= right)
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=scale)[0].transpose(0, 1)


def force(
    monkeypatch: pytest.MonkeyPatch, kernel: str, varlen: Callable[..., Any] | None = by_loop
) -> list[str]:
    """Let every layer use this kernel; on a CPU `varlen` stands for the GPU's. The layers that did so far."""
    used: list[str] = []

    def choose(*_: Any) -> str:
        used.append(kernel)
        return kernel

    monkeypatch.setattr(attention, "choose", choose)
    if varlen is not None:
        names = frozenset(inspect.signature(varlen).parameters)
        monkeypatch.setattr(attention, "varlen_attn", varlen)
        monkeypatch.setattr(attention, "_kernels", attention.Kernels(names, True))
    return used
