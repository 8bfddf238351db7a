"""The vocabulary loss is cross entropy, its gradients are exact, and logits never pile up."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import widest
from torch import Tensor

from cloze.models.vocabulary_loss import TokenLosses, vocabulary_loss

N, WIDTH, V = 37, 24, 211


def inputs(dtype: torch.dtype = torch.float64, n: int = N, bias: bool = True) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    found = {"hidden": normal(n, WIDTH), "weight": normal(V, WIDTH), "bias": normal(V) if bias else None}
    return found | {
        "labels": torch.randint(0, V, (n,), generator=draw),
        "weights": (torch.rand(n, generator=draw) * 3).to(dtype) * (torch.arange(n) % 5 > 0),
    }


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, weights: Tensor) -> Tensor:
    return (F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="none") * weights).sum()


def gradients(total: Tensor, given: dict[str, Any], scale: float = 1.0) -> list[Tensor]:
    return list(
        torch.autograd.grad(
            total * scale, [given[k] for k in ("hidden", "weight", "bias") if given[k] is not None]
        )
    )


def far(a: Tensor, b: Tensor) -> float:
    """Relative to the largest value."""
    return float(((a - b).abs().max() / b.abs().max()).detach())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("chunk_rows", [1, 5, 1000])
def test_losses_and_gradients_are_those_of_plain_logits(
    bias: bool, dtype: torch.dtype, close: float, chunk_rows: int
) -> None:
    given = inputs(dtype, bias=bias)
    chunk = chunk_rows * V * dtype.itemsize
    out = vocabulary_loss(**given, chunk_bytes=chunk)
    logits = F.linear(given["hidden"], given["weight"], given["bias"])
    wanted = plain(**given)
    assert out.loss.dtype == dtype
    assert far(out.loss, F.cross_entropy(logits, given["labels"], reduction="none")) < close
    assert torch.equal(out.guess, logits.argmax(1))
    assert far(out.total, wanted) < close
    ours, theirs = gradients(out.total, given, 0.37), gradients(wanted, given, 0.37)
    assert len(ours) == 2 + bias
    assert all(far(a, b) < close for a, b in zip(ours, theirs, strict=True))


def test_the_comparison_finds_a_loss_without_weights() -> None:
    given = inputs()
    wanted = gradients(plain(**given), given)
    ours = gradients(vocabulary_loss(**(given | {"weights": None})).total, given)
    assert min(far(a, b) for a, b in zip(ours, wanted, strict=True)) > 1e-2


def test_gradients_by_finite_differences() -> None:
    given = inputs(n=4)

    def total(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return vocabulary_loss(
            hidden, weight, bias, given["labels"], given["weights"], chunk_bytes=2 * V * 8
        ).total

    assert torch.autograd.gradcheck(total, (given["hidden"], given["weight"], given["bias"]), fast_mode=True)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch < 2.13")
def test_equals_torchs_own() -> None:
    given = inputs(torch.float32)
    arguments = given["hidden"], given["weight"], given["labels"]
    loss = F.linear_cross_entropy(*arguments, linear_bias=given["bias"], reduction="none")
    out = vocabulary_loss(**given)
    assert far(out.loss, loss) < 1e-5
    theirs = gradients((loss * given["weights"]).sum(), given)
    assert all(far(a, b) < 1e-5 for a, b in zip(gradients(out.total, given), theirs, strict=True))


def test_norms_are_those_of_the_unweighted_loss() -> None:
    given = inputs()
    out = vocabulary_loss(**given, chunk_bytes=5 * V * 8, norms=True)
    logits = F.linear(given["hidden"], given["weight"], given["bias"])
    residual = logits.softmax(1) - F.one_hot(given["labels"], V)
    assert far(out.residual, residual.norm(dim=1)) < 1e-10
    assert far(out.hidden_gradient, (residual @ given["weight"]).norm(dim=1)) < 1e-10
    assert not out.residual.requires_grad
    assert not out.loss.requires_grad
    assert vocabulary_loss(**inputs()).residual.numel() == 0  # nobody asked


def test_no_tokens_are_a_loss_of_zero_with_gradients_of_zero() -> None:
    given = inputs(n=0)
    out = vocabulary_loss(**given)
    assert out.total.item() == 0.0
    assert all(getattr(out, f).shape == (0,) for f in TokenLosses.__slots__ if f != "total")
    assert out.guess.dtype == torch.int64
    assert all(float(g.abs().sum()) == 0.0 for g in gradients(out.total, given))


def test_weights_default_to_one_and_spare_slots_weigh_nothing() -> None:
    given = inputs()
    ones = vocabulary_loss(**(given | {"weights": torch.ones(N)})).total
    assert vocabulary_loss(**(given | {"weights": None})).total.item() == pytest.approx(ones.item())
    out = vocabulary_loss(**given)
    hidden = gradients(out.total, given)[0]
    assert torch.equal(hidden.abs().sum(1) == 0, given["weights"] == 0)
    assert (out.loss[::5] > 0).all()


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_frozen_inputs_get_no_gradient_and_the_others_the_same(frozen: str) -> None:
    given = inputs()
    names = [k for k in ("hidden", "weight", "bias") if k != frozen]
    wanted = torch.autograd.grad(plain(**given), [given[k] for k in names])
    given[frozen] = given[frozen].detach()
    total = vocabulary_loss(**given).total
    found = torch.autograd.grad(total, [given[k] for k in names])
    assert all(far(a, b) < 1e-10 for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("how", ["no_grad", "nothing requires it"])
def test_without_gradients_none_are_made(how: str) -> None:
    given = inputs()
    if how != "no_grad":
        given = {k: v.detach() if isinstance(v, Tensor) else v for k, v in given.items()}
    with torch.set_grad_enabled(how != "no_grad"):
        out = vocabulary_loss(**given, chunk_bytes=5 * V * 8)
    assert out.residual.shape == out.hidden_gradient.shape == (0,)
    assert not out.total.requires_grad
    logits = F.linear(given["hidden"], given["weight"], given["bias"])
    assert far(out.loss, F.cross_entropy(logits, given["labels"], reduction="none")) < 1e-10


def test_bf16_autocast() -> None:
    given = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = vocabulary_loss(**given, chunk_bytes=8 * V * 4)
    assert out.loss.dtype == out.total.dtype == torch.float32
    assert far(out.total, plain(**given)) < 0.02
    found, wanted = gradients(out.total, given), gradients(plain(**given), given)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert far(a, b) < 0.03
        assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 16])
def test_logits_never_exceed_their_chunk(grad: bool, rows: int) -> None:
    given = inputs(torch.float32)
    with torch.set_grad_enabled(grad), widest(V) as wide:
        out = vocabulary_loss(**given, chunk_bytes=rows * V * 4 + 3)
        if grad:
            out.total.backward()
    assert wide.rows <= rows + WIDTH  # [width, vocabulary] is the transposed weight
    with widest(V) as wide:
        plain(**given)
    assert wide.rows == N


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    out = vocabulary_loss(hidden, weight, None, torch.tensor([0, 0]))
    assert out.loss.tolist() == [0.0, 20_000.0]
    out.total.backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
