"""The plan's arithmetic by hand, against counted models, and the page has what the script prints."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

ROOT = Path(__file__).parent.parent


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module("plan")
    sys.modules.pop("plan", None)


@pytest.mark.parametrize("name", ["base", "large", "1B"])
def test_parameters_are_those_of_the_model(name: str, plan: Any) -> None:
    """But for norms and biases, fewer than one in a thousand."""
    shape = plan.MODELS[name]
    with torch.device("meta"):
        model = ModernBertForMaskedLM(
            ModernBertConfig(
                hidden_size=shape.width,
                num_hidden_layers=shape.layers,
                intermediate_size=shape.inner,
                num_attention_heads=shape.width // 64,
                vocab_size=shape.vocabulary,
            )
        )
    count = sum(p.numel() for p in model.parameters())
    assert shape.parameters == pytest.approx(count, rel=1e-3)
    assert shape.parameters <= count


def test_operations_by_hand(plan: Any) -> None:
    """Two layers × 8, 16 inside, vocabulary 100; the first sees 4 tokens, the second one on each side."""
    shape = plan.Shape(2, 8, 16, 100, 1)
    assert shape.body == 2 * (4 * 64 + 3 * 8 * 16) == 1280
    assert shape.head == 64 + 800
    pairs = 4 * 4 + (4 + 2 * 3)  # of a sample of four tokens
    assert shape.operations(4, 0.25) == 6 * (1280 + 0.25 * 864 + 2 * 8 * pairs / 4)


def test_hours_memory_and_checkpoints_by_hand(plan: Any) -> None:
    assert plan.hours(3.6e12, 1e9, 10, 1e14, 0.5) == pytest.approx(3.6e21 / 5e14 / 3600)
    assert plan.store_bytes(1e9, 65_536) == 3e9
    assert plan.store_bytes(1e9, 65_537) == 5e9
    assert plan.memory(1e9, 1, 10, 100, 1000) == 18e9 + 34 * 100 * 10 * 1000
    assert plan.memory(1e9, 8, 10, 100, 1000) == 2e9 + 2e9 + 34e6
    assert plan.memory(1e9, 1, 10, 100, 1000, kept=False) == 18e9 + (2 * 100 * 10 + 3400) * 1000
    assert plan.checkpoint_bytes(1e9) == (16e9, 20e9)
    assert plan.exchange(1e9, 2, 4e9) == pytest.approx(1.0)
    assert plan.wasted(3.0, 2.0) == 1.5


def test_a_checkpoint_is_as_large_as_said(plan: Any, trained: Any) -> None:
    """Of a model of which nothing else is left: weights, two moments, and a model folder."""
    newest = max((trained.folder / "checkpoints").iterdir())
    size = sum(file.stat().st_size for file in newest.rglob("*.safetensors"))
    count = sum(p.numel() for p in trained.model.parameters())
    assert plan.checkpoint_bytes(count)[0] == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.042, "0.042"),
        (0.9, "0.90"),
        (3.14, "3.1"),
        (14.4, "14"),
        (99.6, "100"),
        (1234.5, "1,234"),
    ],
)
def test_two_digits(value: float, text: str, plan: Any) -> None:
    assert plan.number(value) == text


def test_the_page_has_what_the_script_prints(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "plan-100B.md").read_text("utf-8")
    made = plan.tables(plan.options().parse_args([]))
    assert len(made) == page.count("\n### ") == 8
    for title, content in made.items():
        assert f"### {title}\n\n{content}\n" in page
    other = plan.tables(plan.options().parse_args(["--utilisation", "0.3"]))
    assert any(content not in page for content in other.values())  # the control


def test_measured_inputs_are_those_of_the_results(plan: Any) -> None:
    defaults = plan.options().parse_args([])
    results = ROOT / "benchmarks" / "results"
    found = json.loads((results / "prepare.json").read_text("utf-8"))
    seconds = min(found["seconds"]["prepare"])
    assert defaults.prepare == pytest.approx(found["characters"] / seconds / found["workers"], rel=0.05)
    loader = json.loads((results / "loader.json").read_text("utf-8"))["tokens_per_core_second"]
    assert defaults.loader == pytest.approx(loader, rel=0.15)
    scale = json.loads((results / "diagnosis.json").read_text("utf-8"))
    assert defaults.noise[0] == pytest.approx(scale["noise_scale"]["value"] * scale["length"], rel=0.01)
