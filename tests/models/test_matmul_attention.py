"""Attention by plain products, which stands in for the fused kernel in bf16 on CPUs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cloze.models.attention import matmul_attention
from cloze.models.visibility import Visibility


def case(dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(3, 2, 20, 8, generator=generator).to(dtype) for _ in range(4))
    segments = torch.tensor([0] * 7 + [1] * 10 + [-1] * 3).repeat(3, 1)
    mask = Visibility(segments).mask(4)
    assert mask is not None
    return [x.requires_grad_() for x in (q, k, v)], grad, mask


@pytest.mark.parametrize("masked", [True, False])
def test_it_is_the_fused_kernel(masked: bool) -> None:
    inputs, grad, mask = case(torch.float64)
    seen = mask if masked else None
    ours = matmul_attention(*inputs, seen, 0.0, 0.3)
    theirs = F.scaled_dot_product_attention(*inputs, seen, scale=0.3)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_bf16_is_as_near_to_float32_as_the_fused_kernel_is() -> None:
    inputs, _, mask = case(torch.bfloat16)
    exact = F.scaled_dot_product_attention(*(x.float() for x in inputs), mask)
    ours = (matmul_attention(*inputs, mask, 0.0, 8**-0.5).float() - exact).norm()
    theirs = (F.scaled_dot_product_attention(*inputs, mask).float() - exact).norm()
    assert ours < 2 * theirs
    wrong = (matmul_attention(*inputs, None, 0.0, 8**-0.5).float() - exact).norm()
    assert wrong > 10 * theirs


def test_dropout_drops_shares() -> None:
    inputs, _, mask = case(torch.float32)
    torch.manual_seed(0)
    assert not torch.equal(
        matmul_attention(*inputs, mask, 0.5, 8**-0.5), matmul_attention(*inputs, mask, 0.0, 8**-0.5)
    )
