"""Counted operations of a recipe's step: against torch's own counter on real steps, and what they follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cloze.assembly import Parts, assemble, open_text
from cloze.comparison.cost import MOMENTS, ROWS, cost_of
from cloze.recipes.schema import Recipe
from cloze.run import resolve

Make = Callable[..., tuple[Recipe, Parts]]
WIDE = "model={kind: new, family: FAMILY, layers: 2, width: 128, heads: 2, longest: 64}"


@pytest.fixture(scope="module")
def make(corpus: Path, tiny: tuple[str, ...]) -> Make:
    def parts(*overrides: str) -> tuple[Recipe, Parts]:
        recipe, _ = resolve("mlm", corpus, overrides=[*tiny, *overrides])
        return recipe, assemble(recipe, open_text(recipe, [], None), torch.device("cpu"))

    return parts


def _addmm(_out: Any, a: Any, b: Any, **_: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_operations_are_those_of_real_steps(make: Make, family: str, rate: float) -> None:
    """The counter multiplies whole rows in the attention, so the model sees samples as long as rows."""
    recipe, parts = make(WIDE.replace("FAMILY", family), f"masking.rate={rate}")
    counted = tokens = 0
    for place, moment in enumerate(MOMENTS):
        work = parts.method.prepare(parts.loaders[0].batch(place * ROWS, ROWS), moment)
        tokens += int((work.batch.segments >= 0).sum())
        with (
            FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm}) as counter,
            sdpa_kernel(SDPBackend.MATH),
        ):
            parts.method(work).sums["mlm"].backward()
        counted += counter.get_total_flops()
    cost = cost_of(recipe, parts)
    assert cost.operations / cost.tokens == pytest.approx(counted / tokens, rel=0.05)
    assert cost.predicted / cost.tokens == pytest.approx(rate, rel=0.1)


def test_methods_have_the_mean_of_their_costs(make: Make) -> None:
    """One after the other by their shares of the steps, mixed by their shares of the rows."""
    causal = "{masking: {kind: none}, visibility: {kind: causal}, objective: {kind: next_token}}"
    alone = cost_of(*make())
    other = cost_of(
        *make("masking={kind: none}", "visibility={kind: causal}", "objective={kind: next_token}")
    )
    assert other.predicted > 2 * alone.predicted
    assert other.operations > 1.1 * alone.operations
    for stages in ("[{share: 0.25, use: causal}, {share: 0.75}]", "[{use: {causal: 1, main: 3}}]"):
        cost = cost_of(*make(f"variants={{causal: {causal}}}", f"stages={stages}"))
        for name in ("tokens", "predicted", "operations"):
            mean = 0.25 * getattr(other, name) + 0.75 * getattr(alone, name)
            assert getattr(cost, name) == pytest.approx(mean, rel=0.03)


def test_a_step_has_the_tokens_that_the_run_counts_with(make: Make) -> None:
    recipe, parts = make()
    assert cost_of(recipe, parts).tokens == pytest.approx(8 * 64 * parts.loaders[0].fill)


def test_phases_and_rates_that_move_have_their_mean(make: Make) -> None:
    phases = "training.phases=[{share: 0.25, length: 32, rows: 8}, {share: 0.75, length: 64, rows: 4}]"
    whole = cost_of(*make(phases))
    halves = [
        cost_of(*make(f"training.phases=[{{share: 1.0, length: {n}, rows: {r}}}]"))
        for n, r in ((32, 8), (64, 4))
    ]
    assert whole.operations == pytest.approx(0.25 * halves[0].operations + 0.75 * halves[1].operations)
    moving, fixed = cost_of(*make("masking.rate={start: 0.5, end: 0.1}")), cost_of(*make("masking.rate=0.3"))
    assert moving.predicted == pytest.approx(fixed.predicted, rel=0.02)


def test_copies_of_a_row_are_tokens_too(make: Make) -> None:
    once, twice = (
        cost_of(*make(f"masking={{kind: fully_explored, rate: 0.15, same_step: {n}}}")) for n in (1, 2)
    )
    assert twice.tokens == pytest.approx(once.tokens)
    assert twice.operations == pytest.approx(once.operations, rel=0.05)
