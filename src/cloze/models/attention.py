"""One attention function for every encoder, and the choice of the kernel behind it.

| kernel | what runs | where |
| --- | --- | --- |
| dense | `scaled_dot_product_attention` without a mask | rows of one sample each, layers without a window |
| varlen | `torch.nn.attention.varlen` | the rest on a GPU from compute capability 8.0, in bf16 or fp16 |
| flex | `flex_attention` with a block mask, compiled | the rest on a GPU: fp32, visible prefixes, ALiBi |
| matmul | two batched products, the weights kept for the backward pass | CPU, rows of at most 512 tokens |
| masked | `scaled_dot_product_attention` with a mask | all else: long rows on a CPU, dropout |

docs/speed.md says why.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.utils._triton import has_triton
from transformers import AttentionInterface, AttentionMaskInterface

from cloze.errors import ClozeError
from cloze.models.visibility import Visibility

NAME = "cloze"

MATMUL_LENGTH = 512  # longer rows would keep too many weights

Kernel = Literal["dense", "varlen", "flex", "matmul", "masked"]


@dataclass(frozen=True, slots=True)
class Kernels:
    """What this torch can do on this machine's GPU.

    Attributes:
        varlen: names of the parameters of `varlen_attn`, which differ between versions; empty: unusable.
        flex: `flex_attention` can be compiled.
    """

    varlen: frozenset[str] = frozenset()
    flex: bool = False

    @classmethod
    def found(cls) -> Kernels:
        """Look at this machine."""
        if not torch.cuda.is_available():
            return cls()
        flash = torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0)
        names = inspect.signature(varlen_attn).parameters if flash else ()
        return cls(frozenset(names), has_triton())


def choose(
    device: str,
    dtype: torch.dtype,
    width: int,
    length: int,
    dropout: float,
    dense: bool,
    local: bool,
    causal: bool,
    has: Kernels,
    open: bool = False,
    biased: bool = False,
) -> Kernel:
    """The kernel for one layer.

    Args:
        device: "cuda", "cpu", …; dtype, width: of the queries; width is that of one head. length: of a row.
        dropout: of the attention weights.
        dense: every row is one sample. local: there is a window that hides something.
        causal: nothing sees what comes later. has: what there is.
        open: but for some tokens, which all see. biased: something is added to the scores.
    """
    if device == "cpu" and length <= MATMUL_LENGTH:
        return "matmul"
    plain = not open and not biased
    if dense and not local and plain:
        return "dense"
    if device != "cuda" or dropout > 0.0:
        return "masked"
    half = dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= 256 and plain
    windows = "window_size" in has.varlen  # torch 2.10 has `is_causal` only
    if half and (windows or (has.varlen and not local and (not causal or "is_causal" in has.varlen))):
        return "varlen"
    return "flex" if has.flex and dtype != torch.float64 and width >= 16 else "masked"


def kernels_of(
    config: Any,
    device: str,
    dtype: torch.dtype,
    length: int,
    dense: bool,
    has: Kernels | None = None,
    causal: bool = False,
    open: bool = False,
) -> dict[str, Kernel]:
    """{"global" and, where there are such layers, "local": kernel} of a model that trains on such rows.

    Args:
        config: of a transformers model.
        device, dtype, dense, causal, open: as in `choose`. length: of a row.
        has: None: what was found on this machine.
    """
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    names = ("attention_probs_dropout_prob", "attention_dropout")
    dropout = next((getattr(config, name) for name in names if hasattr(config, name)), 0.0)
    window = getattr(config, "sliding_window", None)
    biased = getattr(config, "position_bias", None) is not None
    found = {"global": False} | ({"local": window < length - 1} if window is not None else {})
    return {
        name: choose(
            device, dtype, width, length, dropout, dense, local, causal, has or _kernels, open, biased
        )
        for name, local in found.items()
    }


def varlen_arguments(
    names: frozenset[str], width: int, scale: float, reach: int | None, causal: bool
) -> tuple[dict[str, Any], float]:
    """Keywords of `varlen_attn` with these parameters, and the factor that the queries must bring.

    Torch 2.10 has `is_causal` and no windows, and perhaps no scale; from 2.11 on, a window (left, right) says
    all, with -1 for no limit. `reach` must be None where there are no windows.
    """
    arguments: dict[str, Any] = {}
    factor = 1.0
    if "scale" in names:
        arguments["scale"] = scale
    else:
        factor = scale * width**0.5
    if "window_size" in names:
        side = -1 if reach is None else reach
        arguments["window_size"] = (side, 0 if causal else side)
    elif causal:
        arguments["is_causal"] = True
    return arguments, factor


_kernels = Kernels()  # set by `register`: compiled code cannot ask the machine


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    visibility: Visibility | None = None,
    slopes: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention for transformers' `AttentionInterface`: [rows, heads, length, width] in and transposed out.

    ModernBERT hands over its half-window + 1 as `sliding_window`, MosaicBERT the [heads] `slopes` of ALiBi.
    """
    if visibility is None:
        raise ClozeError("this model was set up for cloze's attention, but called without `visibility`")
    if attention_mask is not None:
        raise ClozeError("cloze's attention takes no attention_mask: give segments by `visibility` instead")
    visibility = visibility.at(getattr(module, "layer_idx", None))
    if key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    device, (length, width) = query.device.type, query.shape[2:]
    if torch.is_autocast_enabled(device):  # rotations may have made queries and keys float32 again
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = width**-0.5 if scaling is None else scaling
    reach = None if sliding_window is None else sliding_window - 1
    reach = reach if visibility.local(reach) else None
    kernel = choose(
        device,
        query.dtype,
        width,
        length,
        dropout,
        visibility.dense,
        reach is not None,
        visibility.causal,
        _kernels,
        visibility.open is not None,
        slopes is not None,
    )
    if kernel == "varlen":
        return _varlen(query, key, value, scale, reach, visibility), None
    if kernel == "flex":
        # Outside of compiled code it would keep all scores; a CPU, where only tests run it, has no backward.
        alone = query.is_cuda and not torch.compiler.is_compiling()
        run: Any = _compiled_flex() if alone else flex_attention
        change = None if slopes is None else _alibi(slopes)
        out = run(query, key, value, change, block_mask=visibility.blocks(reach), scale=scale)
    elif kernel == "matmul":
        bias = None if slopes is None else visibility.bias(slopes)
        out = matmul_attention(query, key, value, visibility.mask(reach), dropout, scale, bias)
    elif kernel == "dense":
        causal = visibility.causal
        out = F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=causal, scale=scale
        )
    else:
        mask = visibility.mask(reach)
        if slopes is not None:
            bias = visibility.bias(slopes).to(query.dtype)
            mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
        out = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, scale=scale)
    return out.transpose(1, 2).contiguous(), None


def _alibi(slopes: Tensor) -> Callable[..., Tensor]:
    """What `flex_attention` asks of each score."""

    def lowered(score: Tensor, _row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score - slopes[head] * (query - key).abs()

    return lowered


def matmul_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scale: float,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention by two batched products; the mask is True where the query sees the key.

    `bias` [heads, length, length] is added to the scores.

    On CPUs that multiply bf16, the fused kernel takes four times as long in bf16 and twice as long in float32
    (benchmarks/cpu_kernels.py).
    """
    scores = (query * scale) @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, -1, dtype=exact).to(value.dtype)
    return F.dropout(weights, dropout) @ value


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, scale: float, reach: int | None, visibility: Visibility
) -> Tensor:
    """[rows, heads, length, width] in, [rows, length, heads, width] out."""
    rows, _, length, width = query.shape
    arguments, factor = varlen_arguments(_kernels.varlen, width, scale, reach, visibility.causal)
    query = query if factor == 1.0 else query * factor
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    starts = visibility.starts()
    out = cast(Tensor, varlen_attn(q, k, v, starts, starts, length, length, **arguments))
    return out.reshape(rows, length, *out.shape[1:])


@cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def _mask_function(*, attention_mask: Tensor | None = None, **_: Any) -> None:
    """Stock code drops a 2-D mask silently when no mask function is registered; this one speaks."""
    if attention_mask is not None:
        raise ClozeError("cloze's attention takes no attention_mask: give segments by `visibility` instead")


def check_attention(config: Any) -> None:
    """Errors: a model whose attention is another one, which ignores visibility and says nothing.

    So is one that was saved and loaded again without `isolate`: checkpoints hold no name of an attention.
    """
    if config._attn_implementation != NAME:
        raise ClozeError(
            f"this model was set up for cloze's attention and now has {config._attn_implementation!r}, which "
            "would let packed samples see each other: wrap the model anew (isolate)"
        )


def register() -> None:
    """Make the attention known to transformers under `NAME` (harmless when called again)."""
    global _kernels
    _kernels = Kernels.found()
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, _mask_function)
