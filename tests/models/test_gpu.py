"""On a GPU: its kernels agree with the mask, keep samples apart, do not wait, and compile into one graph."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers import make_samples, pack, tiny_model, vocabulary
from models.kernels import force
from models.test_visibility import packing
from torch import Tensor, nn
from torch._dynamo.utils import counters

from cloze.data.batch import Batch
from cloze.methods.build import Choices, build_method
from cloze.methods.token_prediction import TokenPrediction
from cloze.models.attention import Kernels, attention, choose, register
from cloze.models.encoder import differs, isolate, leaks, sparse
from cloze.models.visibility import Visibility

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.filterwarnings("default"),  # torch.compile has its own
]
GPU = "cuda"
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    register()
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def results(visibility: Visibility, inputs: list[Tensor], window: int | None) -> list[Tensor]:
    """Output, and gradients of queries, keys and values, in float32."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out, _ = attention(nn.Module(), *inputs, None, sliding_window=window, visibility=visibility)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [x.detach().float() for x in (out, *torch.autograd.grad(out, inputs, pull))]


def test_what_is_chosen_here() -> None:
    has = Kernels.found()
    new = torch.cuda.get_device_capability() >= (8, 0)
    for local in (False, True):
        assert choose(GPU, BF16, 64, 1024, 0.0, False, local, False, has) == ("varlen" if new else "flex")
        assert choose(GPU, FP32, 64, 1024, 0.0, False, local, False, has) == "flex"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 65])
@pytest.mark.parametrize(
    ("kernel", "dtype", "far"),
    [("varlen", BF16, 2e-2), ("varlen", torch.float16, 4e-3), ("flex", BF16, 2e-2), ("flex", FP32, 1e-5)],
)
def test_kernels_agree_with_the_mask(
    kernel: str, dtype: torch.dtype, far: float, window: int | None, causal: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Packed rows with padding, forward and backward; grouped keys too."""
    segments = packing(3, 4, 384).to(GPU)
    visibility = Visibility(segments, causal, runs=int(segments.max()) + 5)
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(4, n, 384, 64, generator=draw).to(GPU, dtype) for n in (4, 2, 2)]
    with monkeypatch.context() as patch:
        force(patch, "masked", None)
        wanted = results(visibility, [x.float() for x in inputs], window)
    used = force(monkeypatch, kernel, None)
    got = results(visibility, inputs, window)
    assert used == [kernel]
    for a, b in zip(got, wanted, strict=True):
        assert a.isfinite().all()  # padding too
        assert (a - b).abs().max() <= far * b.abs().max()


@pytest.mark.parametrize("causal", [False, True])
def test_dense_rows_agree_with_the_mask(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    visibility = Visibility(torch.arange(2, device=GPU)[:, None].expand(2, 256), causal, dense=True)
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 2, 256, 64, generator=draw).to(GPU) for _ in range(3)]
    got = results(visibility, inputs, None)
    force(monkeypatch, "masked", None)
    for a, b in zip(got, results(visibility, inputs, None), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize(("kernel", "dtype"), [("varlen", BF16), ("flex", FP32), ("masked", FP32)])
def test_nothing_waits_for_the_gpu(kernel: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, kernel, None)
    segments = packing(3, 2, 256).to(GPU)
    inputs = [torch.randn(2, 2, 256, 64, device=GPU, dtype=dtype, requires_grad=True) for _ in range(3)]

    def step() -> None:
        visibility = Visibility(segments, runs=40)
        out, _ = attention(nn.Module(), *inputs, None, sliding_window=33, visibility=visibility)
        out.backward(out.detach())

    step()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def batch(seed: int) -> Batch:
    sizes = [[170, 90, 40], [316], [1, 2, 60 + seed]]
    return pack([make_samples(row, 10 * seed + i) for i, row in enumerate(sizes)], 320).to(GPU)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("family", ["bert", "modernbert", "eurobert", "mosaicbert"])
def test_samples_stay_apart(family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes of the start, on this GPU's own kernels, bit for bit."""
    encoder = isolate(tiny_model(family).to(GPU))
    assert encoder.isolates
    with torch.autocast(GPU, dtype=BF16, enabled=dtype == BF16):
        assert leaks(encoder) == []
        assert dtype == BF16 or not differs(encoder)


def method(family: str) -> TokenPrediction:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if family == "bert" else {}
    encoder = isolate(tiny_model(family, **dropout))
    return build_method(Choices(), encoder, vocabulary()).to(GPU).train()


def step(method: TokenPrediction, run: nn.Module, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Loss (as "") and gradients."""
    method.zero_grad()
    work = method.prepare(batch(seed), 0.0).padded(256, 64, False)
    with torch.autocast(GPU, dtype=BF16, enabled=dtype == BF16), sparse(method):
        total = run(work).sums["mlm"]
    total.backward()
    return {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None} | {
        "": total.detach()
    }


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """‖a − b‖ / ‖b‖ over all gradients."""
    assert a.keys() == b.keys()
    rest = sum((a[n] - b[n]).double().square().sum() for n in a if n)
    return float((rest / sum(b[n].double().square().sum() for n in b if n)).sqrt())


@pytest.mark.parametrize(("dtype", "far"), [(BF16, 5e-2), (FP32, 1e-5)])
@pytest.mark.parametrize("family", ["bert", "modernbert", "mosaicbert"])
def test_a_step_by_each_kernel(
    family: str, dtype: torch.dtype, far: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = method(family)
    own = step(made, made, 0, dtype)
    force(monkeypatch, "masked", None)
    masked = step(made, made, 0, FP32)
    assert distance(own, masked) <= far
    assert float((own[""] - masked[""]).abs() / masked[""]) <= far


@pytest.mark.parametrize(("dtype", "far"), [(BF16, 5e-2), (FP32, 1e-4)])
@pytest.mark.parametrize("family", ["bert", "modernbert", "mosaicbert"])
def test_compiled_into_one_graph(family: str, dtype: torch.dtype, far: float) -> None:
    made = method(family)
    compiled = torch.compile(made, dynamic=False)
    eager = step(made, made, 0, dtype)
    counters.clear()  # of flex_attention, which is compiled by itself there
    got = step(made, compiled, 0, dtype)  # type: ignore[arg-type]
    assert distance(got, eager) <= far
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(1, 11):
            step(made, compiled, seed, dtype)  # type: ignore[arg-type]
