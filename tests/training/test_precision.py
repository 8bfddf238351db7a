"""float32 products by oneDNN: switched on inside only, and exact."""

from __future__ import annotations

import pytest
import torch

from cloze.training import products


@pytest.fixture(autouse=True)
def _fresh() -> None:
    products._helps.cache_clear()


def test_products_inside_are_exact_and_the_setting_is_given_back() -> None:
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    with products.quick_products():
        assert products.is_exact()
    assert setting.fp32_precision == before


def test_the_check_finds_bf16() -> None:
    class Rounded(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.Tensor.matmul and args[0].dtype == torch.float32:
                args = [x.bfloat16().float() for x in args]
            return func(*args, **(kwargs or {}))

    assert products.is_exact()
    with Rounded():
        assert not products.is_exact()


@pytest.mark.parametrize(("vendor", "exact", "wanted"), [
    ("AuthenticAMD", True, "bf16"), ("AuthenticAMD", False, None), ("GenuineIntel", True, None),
    ("", True, None),
])  # fmt: skip
def test_where_it_is_switched_on(
    vendor: str, exact: bool, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    monkeypatch.setattr(products, "is_exact", lambda: exact)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    before = torch.backends.mkldnn.matmul.fp32_precision
    with products.quick_products():
        assert torch.backends.mkldnn.matmul.fp32_precision == (wanted or before)


def test_an_error_inside_gives_the_setting_back() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(RuntimeError), products.quick_products():
        raise RuntimeError
    assert torch.backends.mkldnn.matmul.fp32_precision == before
