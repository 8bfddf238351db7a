"""bf16 where the hardware multiplies it; float32 products by oneDNN: inside only, and exact."""

from __future__ import annotations

import pytest
import torch

from cloze.training import precision


@pytest.fixture(autouse=True)
def _fresh() -> None:
    precision._helps.cache_clear()


def test_products_inside_are_exact_and_the_setting_is_given_back() -> None:
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    with precision.quick_products():
        assert precision.is_exact()
    assert setting.fp32_precision == before


def test_the_check_finds_bf16() -> None:
    class Rounded(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.Tensor.matmul and args[0].dtype == torch.float32:
                args = [x.bfloat16().float() for x in args]
            return func(*args, **(kwargs or {}))

    assert precision.is_exact()
    with Rounded():
        assert not precision.is_exact()


@pytest.mark.parametrize(("vendor", "exact", "wanted"), [
    ("AuthenticAMD", True, "bf16"), ("AuthenticAMD", False, None), ("GenuineIntel", True, None),
    ("", True, None),
])  # fmt: skip
def test_where_it_is_switched_on(
    vendor: str, exact: bool, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_vendor", lambda: vendor)
    monkeypatch.setattr(precision, "is_exact", lambda: exact)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    before = torch.backends.mkldnn.matmul.fp32_precision
    with precision.quick_products():
        assert torch.backends.mkldnn.matmul.fp32_precision == (wanted or before)


def test_an_error_inside_gives_the_setting_back() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(RuntimeError), precision.quick_products():
        raise RuntimeError
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize(("asked", "quick", "found"), [
    ("auto", True, "bf16"), ("auto", False, "fp32"), ("fp32", True, "fp32"), ("bf16", False, "bf16"),
])  # fmt: skip
@pytest.mark.parametrize("hardware", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_which_precision(
    asked: str, quick: bool, found: str, hardware: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: quick and name == hardware)
    cpu = torch.device("cpu")
    assert precision.resolve(asked, cpu) == found
    with precision.autocast(cpu, asked)():
        assert torch.is_autocast_enabled("cpu") == (found == "bf16")
