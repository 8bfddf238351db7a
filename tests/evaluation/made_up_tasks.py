"""Made-up tasks that a tiny encoder can learn, and the encoder."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from helpers import CLS, SEP, tiny_model, word_tokenizer
from tokenizers import processors

from cloze.evaluation.finetuning.protocol import Protocol

FAST = Protocol(learning_rates=(1e-3, 3e-3), updates=150, epochs_between=(3, 15), batch=16, length=32)
"""For models of two layers x 32."""

Record = dict[str, Any]


def save_encoder(folder: Path, family: str = "bert", **changes: Any) -> Path:
    """An untrained encoder that knows the words w5 to w95."""
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.save_pretrained(folder)
    tiny_model(family, **({"initializer_range": 0.05} | changes)).save_pretrained(folder)
    return folder


def words(draw: random.Random, size: int) -> list[str]:
    """Words without meaning."""
    return [f"w{draw.randrange(30, 96)}" for _ in range(size)]


def topic(draw: random.Random) -> Record:
    """A text with three words of its class."""
    label = draw.randrange(3)
    text = words(draw, draw.randrange(3, 9)) + [f"w{5 + 5 * label + draw.randrange(5)}" for _ in range(3)]
    draw.shuffle(text)
    return {"text": " ".join(text), "label": "abc"[label]}


def twin(draw: random.Random) -> Record:
    """Two texts, whose number tells how many of their words are special."""
    texts = [words(draw, 6) for _ in range(2)]
    count = draw.randrange(5)
    for i in range(count):
        texts[i % 2][i] = f"w{5 + draw.randrange(3)}"
    return {"sentence1": " ".join(texts[0]), "sentence2": " ".join(texts[1]), "score": count + 0.5}


def same(draw: random.Random) -> Record:
    """Two texts of the same words, or not."""
    label = draw.randrange(2)
    first = words(draw, 6)
    second = draw.sample(first, 6) if label else words(draw, 6)
    return {"sentence1": " ".join(first), "sentence2": " ".join(second), "label": label}


def tagged(draw: random.Random) -> Record:
    """A sentence in which each word has its tag, but for I after B."""
    tokens, tags = [], []
    while len(tokens) < 8:
        if draw.random() < 0.3:
            kind = draw.randrange(2)
            tokens += [f"w{5 + 10 * kind + draw.randrange(5)}", f"w{10 + 10 * kind + draw.randrange(5)}"]
            tags += [f"B-{'XY'[kind]}", f"I-{'XY'[kind]}"]
        else:
            tokens += words(draw, 1)
            tags.append("O")
    return {"tokens": tokens, "tags": tags}


def records(make: Callable[[random.Random], Record], size: int, seed: int) -> list[Record]:
    draw = random.Random(seed)
    return [make(draw) for _ in range(size)]


def shuffled(rows: Sequence[Record], column: str) -> list[Record]:
    """The same records with their labels (or the tags of their words) in random places."""
    nested = [row[column] if isinstance(row[column], list) else [row[column]] for row in rows]
    labels = [label for some in nested for label in some]
    random.Random(1).shuffle(labels)
    drawn = [[labels.pop() for _ in some] for some in nested]
    return [
        row | {column: some if isinstance(row[column], list) else some[0]}
        for row, some in zip(rows, drawn, strict=True)
    ]


def write(folder: Path, name: str, rows: Sequence[Record]) -> Path:
    """Records as a file whose name says its format."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = name.split(".")[1]
    if kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif kind == "conll":
        sentences = (zip(row["tokens"], row["tags"], strict=True) for row in rows)
        text = "-DOCSTART- X O O\n\n"
        text += "\n".join("".join(f"{w} NN O {t}\n" for w, t in sentence) for sentence in sentences)
    else:
        mark = "\t" if kind == "tsv" else ","
        lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
        text = "\n".join(lines) + "\n"
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def write_task(
    folder: Path, make: Callable[[random.Random], Record], kind: str = "jsonl", train: int = 240
) -> Path:
    """A task with train and test files."""
    write(folder, f"train.{kind}", records(make, train, 0))
    write(folder, f"test.{kind}", records(make, 100, 1))
    return folder
