"""Every kernel computes the same attention, and each is taken where it is right."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_model
from models.kernels import by_loop, force
from models.test_visibility import SEGMENTS, brute, packing, prefixes
from torch import Tensor, nn

from cloze.errors import ClozeError
from cloze.models import attention as module
from cloze.models.attention import Kernels, attention, choose, kernels_of, varlen_arguments
from cloze.models.visibility import Visibility

OLD = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
# Parameters of varlen_attn in torch 2.10, between 2.10 and 2.11, in 2.11, and from 2.12 on.
SIGNATURES = {
    "2.10": frozenset((*OLD, "is_causal", "return_aux")),
    "2.10+": frozenset((*OLD, "is_causal", "return_aux", "scale")),
    "2.11": frozenset((*OLD, "return_aux", "scale", "window_size")),
    "2.12": frozenset((*OLD, "return_aux", "scale", "window_size", "enable_gqa", "seqused_k", "num_splits")),
}
NEW, FIRST = Kernels(SIGNATURES["2.12"], True), Kernels(SIGNATURES["2.10"], True)
CPU, GPU = {"device": "cpu"}, {"device": "cuda"}
PACKED = {
    "width": 64,
    "length": 1024,
    "dropout": 0.0,
    "dense": False,
    "local": False,
    "causal": False,
    "has": NEW,
}
BF16, FP16, FP32, FP64 = ({"dtype": d} for d in (torch.bfloat16, torch.float16, torch.float32, torch.float64))


@pytest.mark.parametrize(
    ("case", "kernel"),
    [
        (GPU | BF16, "varlen"),
        (GPU | FP16, "varlen"),
        (GPU | BF16 | {"local": True}, "varlen"),
        (GPU | BF16 | {"causal": True}, "varlen"),
        (GPU | BF16 | {"local": True, "causal": True}, "varlen"),
        (GPU | BF16 | {"dense": True, "local": True}, "varlen"),
        (GPU | BF16 | {"dense": True}, "dense"),
        (GPU | BF16 | {"dense": True, "causal": True}, "dense"),
        (GPU | BF16 | {"dense": True, "dropout": 0.1}, "dense"),
        (GPU | FP32, "flex"),
        (GPU | FP32 | {"local": True, "causal": True}, "flex"),
        (GPU | FP64, "masked"),
        (GPU | BF16 | {"dropout": 0.1}, "masked"),
        (GPU | FP32 | {"dropout": 0.1}, "masked"),
        (GPU | BF16 | {"width": 20}, "flex"),  # flash attention wants a multiple of 8
        (GPU | BF16 | {"width": 512}, "flex"),
        (GPU | FP32 | {"width": 8}, "masked"),
        (GPU | BF16 | {"width": 8}, "varlen"),
        (GPU | BF16 | {"has": FIRST}, "varlen"),  # torch 2.10: causal, but no windows
        (GPU | BF16 | {"has": FIRST, "causal": True}, "varlen"),
        (GPU | BF16 | {"has": FIRST, "local": True}, "flex"),
        (GPU | BF16 | {"has": Kernels(frozenset(), True)}, "flex"),  # an old GPU
        (GPU | BF16 | {"has": Kernels()}, "masked"),  # and no Triton
        (GPU | FP32 | {"has": Kernels()}, "masked"),
        (CPU | FP32, "masked"),
        (CPU | BF16, "masked"),
        (CPU | FP32 | {"dense": True}, "dense"),
        (CPU | FP32 | {"dense": True, "local": True}, "masked"),
        (CPU | FP32 | {"length": 512}, "matmul"),
        (CPU | BF16 | {"length": 128, "dense": True, "dropout": 0.1}, "matmul"),
        (GPU | BF16 | {"length": 128}, "varlen"),
        ({"device": "mps"} | FP16, "masked"),
        (GPU | BF16 | {"causal": True, "open": True}, "flex"),  # a visible prefix
        (GPU | FP16 | {"causal": True, "open": True, "local": True}, "flex"),
        (GPU | BF16 | {"causal": True, "open": True, "dense": True}, "flex"),
        (GPU | BF16 | {"causal": True, "open": True, "dropout": 0.1}, "masked"),
        (CPU | FP32 | {"causal": True, "open": True, "dense": True}, "masked"),
        (CPU | FP32 | {"causal": True, "open": True, "length": 128}, "matmul"),
        (GPU | BF16 | {"biased": True}, "flex"),  # ALiBi
        (GPU | BF16 | {"biased": True, "dense": True}, "flex"),
        (GPU | BF16 | {"biased": True, "dropout": 0.1}, "masked"),
        (CPU | FP32 | {"biased": True, "dense": True}, "masked"),
        (CPU | FP32 | {"biased": True, "length": 128}, "matmul"),
    ],
)
def test_the_table_of_choices(case: dict[str, Any], kernel: str) -> None:
    assert choose(**(PACKED | case)) == kernel


@pytest.mark.parametrize(
    ("family", "changes", "dtype", "length", "found"),
    [
        ("bert", {}, torch.bfloat16, 1024, {"global": "masked"}),  # for its dropout of 0.1
        ("bert", {"attention_probs_dropout_prob": 0.0}, torch.bfloat16, 1024, {"global": "varlen"}),
        ("modernbert", {}, torch.bfloat16, 1024, {"global": "varlen", "local": "varlen"}),
        ("modernbert", {}, torch.float32, 1024, {"global": "flex", "local": "flex"}),
        ("eurobert", {}, torch.float16, 1024, {"global": "varlen"}),
        ("mosaicbert", {}, torch.bfloat16, 1024, {"global": "flex"}),
    ],
)
def test_kernels_of_a_model(
    family: str, changes: dict[str, Any], dtype: torch.dtype, length: int, found: dict[str, str]
) -> None:
    config = tiny_model(family, **changes).config
    assert kernels_of(config, "cuda", dtype, length, False, NEW) == found


def test_kernels_where_windows_hide_something() -> None:
    config = tiny_model("modernbert").config  # 32 tokens on each side
    found = [kernels_of(config, "cuda", torch.bfloat16, n, False, FIRST)["local"] for n in (33, 34)]
    assert found == ["varlen", "flex"]
    dense = kernels_of(config, "cuda", torch.bfloat16, 1024, True, NEW)
    assert dense == {"global": "dense", "local": "varlen"}
    assert kernels_of(config, "cpu", torch.float32, 64, False) == {"global": "matmul", "local": "matmul"}


def test_this_machine() -> None:
    found = Kernels.found()
    assert bool(found.varlen or found.flex) <= torch.cuda.is_available()
    assert found.varlen <= frozenset(SIGNATURES["2.12"] | {"block_table", "is_causal"})


@pytest.mark.parametrize("version", SIGNATURES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("reach", [None, 0, 64])
def test_arguments_of_every_version(version: str, reach: int | None, causal: bool) -> None:
    names = SIGNATURES[version]
    if reach is not None and "window_size" not in names:
        assert choose(**(PACKED | GPU | BF16 | {"has": Kernels(names, True), "local": True})) == "flex"
        return
    arguments, factor = varlen_arguments(names, 16, 0.5, reach, causal)
    assert arguments.keys() <= names
    assert factor * arguments.get("scale", 16**-0.5) == 0.5
    side = -1 if reach is None else reach
    if "window_size" in names:
        assert arguments["window_size"] == (side, 0 if causal else side)
    else:
        assert arguments.get("is_causal", False) == causal


def first_version(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    is_causal: bool = False, return_aux: Any = None,
) -> Tensor:  # fmt: skip
    """`varlen_attn` as torch 2.10 has it."""
    window = (-1, 0) if is_causal else (-1, -1)
    return by_loop(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size=window)


def draw(heads: int, groups: int, length: int, rows: int = 2, width: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(rows, n, length, width, generator=generator).requires_grad_()
        for n in (heads, heads // groups, heads // groups)
    ]


def results(visibility: Visibility, inputs: list[Tensor], window: int | None) -> list[Tensor]:
    """Output, and gradients of queries, keys and values."""
    out, weights = attention(
        nn.Module(), *inputs, None, scaling=0.3, sliding_window=window, visibility=visibility
    )
    assert weights is None
    assert out.is_contiguous()
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out, *torch.autograd.grad((out * pull).sum(), inputs)]


def by_hand(visibility: Visibility, inputs: list[Tensor], window: int | None) -> list[Tensor]:
    query, key, value = inputs
    groups = query.shape[1] // key.shape[1]
    reach = None if window is None else window - 1
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * 0.3
    seen = brute(visibility.segments, reach, visibility.causal, visibility.open)[:, None]
    scores = scores.masked_fill(~seen, float("-inf"))
    out = (F.softmax(scores, -1) @ value.repeat_interleave(groups, 1)).transpose(1, 2)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out, *torch.autograd.grad((out * pull).sum(), inputs)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 9])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kernel", ["masked", "matmul", "varlen"])
def test_attention_by_hand(
    kernel: str, groups: int, window: int | None, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, kernel)
    visibility, inputs = Visibility(packing(5, 2, 30), causal, runs=20), draw(4, groups, 30)
    for got, wanted in zip(
        results(visibility, inputs, window), by_hand(visibility, inputs, window), strict=True
    ):
        assert got.isfinite().all()  # padding too
        assert (got - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("window", [None, 3, 9])
@pytest.mark.parametrize("kernel", ["masked", "matmul"])
def test_prefixes_by_hand(kernel: str, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, kernel)
    segments = packing(5, 2, 30)
    visibility, inputs = Visibility(segments, True, open=prefixes(segments)), draw(4, 4, 30)
    found, wanted = results(visibility, inputs, window), by_hand(visibility, inputs, window)
    for got, right in zip(found, wanted, strict=True):
        assert (got - right).abs().max() < 1e-5
    causal = by_hand(Visibility(segments, True), inputs, window)[0]
    assert (wanted[0] - causal).abs().max() > 1e-2  # the control


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("causal", "opened"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("window", [None, 1, 60])
def test_flex_by_hand(
    window: int | None, causal: bool, opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forward pass; on a CPU it has no backward."""
    segments, inputs = packing(6, 2, 150), draw(2, 2, 150)
    visibility = Visibility(segments, causal, open=prefixes(segments) if opened else None)
    wanted = by_hand(visibility, inputs, window)[0]
    force(monkeypatch, "flex")
    query, key, value = (x.detach() for x in inputs)
    out, _ = attention(
        nn.Module(), query, key, value, None, scaling=0.3, sliding_window=window, visibility=visibility
    )
    assert (out - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("causal", [False, True])
def test_dense_rows_by_hand(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    visibility = Visibility(torch.arange(2)[:, None].expand(2, 30), causal, dense=True)
    monkeypatch.setattr(visibility, "mask", None)  # nobody asks for one
    monkeypatch.setattr(module, "MATMUL_LENGTH", 0)
    inputs = draw(4, 2, 30)
    wide = 30  # a window that hides nothing
    for window in (None, wide):
        for got, wanted in zip(
            results(visibility, inputs, window), by_hand(visibility, inputs, window), strict=True
        ):
            assert (got - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("causal", [False, True])
def test_varlen_of_the_first_version_by_hand(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no scale: the queries bring it."""
    force(monkeypatch, "varlen", first_version)
    visibility, inputs = Visibility(packing(5, 2, 30), causal, runs=20), draw(4, 1, 30)
    for got, wanted in zip(results(visibility, inputs, None), by_hand(visibility, inputs, None), strict=True):
        assert (got - wanted).abs().max() < 1e-5


def test_under_autocast_kernels_get_one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotated queries and keys may be float32 beside values in bfloat16."""
    seen: list[torch.dtype] = []

    def note(device: str, dtype: torch.dtype, *_: Any) -> str:
        seen.append(dtype)
        return "varlen"

    force(monkeypatch, "varlen")
    monkeypatch.setattr(module, "choose", note)
    query, key, value = draw(2, 1, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        out, _ = attention(
            nn.Module(), query, key, value.bfloat16(), None, visibility=Visibility(SEGMENTS, runs=6)
        )
    assert out.dtype == torch.bfloat16
    assert seen == [torch.bfloat16]


def test_padding_gives_no_nan() -> None:
    x = torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out, _ = attention(nn.Module(), x, x, x, None, visibility=Visibility(SEGMENTS, causal=True))
    assert out.isfinite().all()
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_misuse_is_an_error() -> None:
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ClozeError, match="without `visibility`"):
        attention(nn.Module(), x, x, x, None)
    with pytest.raises(ClozeError, match="attention_mask"):
        attention(
            nn.Module(), x, x, x, torch.ones(1, 2), visibility=Visibility(torch.zeros(1, 2, dtype=torch.long))
        )
