"""A model folder that `cloze evaluate` opens, and tables for it."""

from pathlib import Path
from typing import Any

import numpy as np
from helpers import FIRST, PAD, SIZE, tiny_model, word_tokenizer


def save(folder: Path, family: str = "bert", **changes: Any) -> Path:
    """An untrained model of words w5 to w95 as a plain folder."""
    tiny_model(family, **{"pad_token_id": PAD} | changes).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def sentence(draw: np.random.Generator, size: int) -> list[str]:
    return [f"w{i}" for i in draw.integers(FIRST, SIZE, size)]


def overlapping(count: int, seed: int = 0) -> list[tuple[str, str, int]]:
    """Pairs of sentences that share 0 to 8 words of 8, and how many."""
    draw = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        shared = int(draw.integers(0, 9))
        common = sentence(draw, shared)
        both = (" ".join([*common, *sentence(draw, 8 - shared)]) for _ in range(2))
        pairs.append((*both, shared))
    return pairs


def tsv(path: Path, header: str, rows: list[tuple[object, ...]]) -> Path:
    """A tab-separated file; `header` has commas."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header.split(","), *rows]
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    return path
