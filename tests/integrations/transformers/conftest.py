"""What the tests of the adapter share: rows of known tokens, arguments of a Trainer, a weighted policy."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers import CLS, FIRST, SEP, SIZE
from transformers import TrainingArguments

from cloze.data.batch import Batch
from cloze.masking import Masking
from cloze.masking.plan import MaskPlan
from cloze.random import Stream, uniform


class Tilted(Masking):
    """A coin for each token, with π = 2·rate for odd ids and rate/2 for even ones; the reference is rate."""

    kind: Literal["tilted"] = "tilted"

    def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
        pi = torch.where(batch.ids % 2 == 1, 2.0 * rate, 0.5 * rate)
        pi, p = (torch.where(batch.maskable, x, 0.0) for x in (pi, torch.full_like(pi, rate)))
        sample = batch.segments.clamp(min=0)
        drawn = uniform(seed, Stream.CHOICE, batch.keys[sample], batch.visits[sample], batch.index) < pi
        return MaskPlan(drawn, drawn, pi, p)


@pytest.fixture
def tilted() -> Tilted:
    """A policy that needs no model and has weights 1/2 and 2."""
    return Tilted(rate=0.3)


def make_rows(sizes: list[int], seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows of so many tokens between CLS and SEP, each token the successor of the one before."""
    draw = random.Random(seed)
    rows = []
    for n in sizes:
        start = draw.randrange(SIZE)
        text = [FIRST + (start + i) % (SIZE - FIRST) for i in range(n)]
        rows.append({"input_ids": [CLS, *text, SEP]})
    return rows


@pytest.fixture
def rows() -> list[dict[str, list[int]]]:
    """16 rows of 8 to 30 tokens."""
    draw = random.Random(1)
    return make_rows([draw.randrange(8, 31) for _ in range(16)])


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TrainingArguments]:
    """`arguments(max_steps=6, …)`: of a Trainer on the CPU that writes nothing it is not asked for."""

    def make(**changes: Any) -> TrainingArguments:
        base = {
            "output_dir": str(tmp_path / "trainer"),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "constant",
            "report_to": [],
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        return TrainingArguments(**(base | changes))

    return make
