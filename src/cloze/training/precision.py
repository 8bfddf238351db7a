"""How numbers are multiplied: bf16 where the hardware does it, and float32 on AMD CPUs by oneDNN."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch


def resolve(precision: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision of forward passes: what was asked for, or with `auto` bf16 where that is faster."""
    if precision == "bf16" or (precision == "auto" and _multiplies_bf16(device)):
        return "bf16"
    return "fp32"


def _multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware has instructions for it; elsewhere bf16 is made of float32, and slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[Any]]:
    """The context of forward passes in this precision."""
    if resolve(precision, device) == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def quick_products() -> Iterator[None]:
    """Inside, float32 products of this process go to oneDNN where that is faster and loses nothing.

    PyTorch multiplies float32 matrices by MKL, which uses half the width of an AMD CPU's vectors. Allowed
    to use bf16, it calls oneDNN instead, which stays with float32 where the CPU has no matrix unit for bf16;
    that it does is looked up, by multiplying. Elsewhere nothing is changed.
    """
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    if _helps():
        setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@functools.cache
def _helps() -> bool:
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    if not (wide and _vendor() == "AuthenticAMD" and torch.backends.mkldnn.is_available()):
        return False
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        return is_exact()
    finally:
        setting.fp32_precision = before


def is_exact() -> bool:
    """Whether a float32 product is a float32 product: an error below 2^-18, where bf16's is above 2^-9."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(64, 512, generator=generator), torch.randn(512, 256, generator=generator)
    exact = a.double() @ b.double()
    return bool(((a @ b).double() - exact).abs().max() < 2**-18 * exact.abs().max())


def _vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")
