"""Does hiding tokens before teach a decoder to look things up? `meap` against `causal` at equal tokens.

    python benchmarks/retrieval.py --json benchmarks/results/retrieval.json

A document is a list of pairs, a key and its value, and then each key again, in another order, with its value:
"k3 v17 k20 v4 … k20 v4 k3 v17 …". Keys and values are drawn at random, so nothing can be predicted but the
values of the second half, and those only by looking up the key in the first. Both recipes get the same
documents, each once, with the same seed; what is scored is the share of right values in the second halves of
documents that nobody trained on, with nothing hidden.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_json
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import cloze
from cloze.comparison.statistics import mean_interval

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FRESH = 1_000_000  # seeds of documents that are scored begin here


def tokenizer_of(keys: int, folder: Path) -> Path:
    """A tokenizer of so many keys and values, one token each."""
    names = [*SPECIALS, *(f"k{i}" for i in range(keys)), *(f"v{i}" for i in range(keys))]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokens = {f"{name[1:-1].lower()}_token": name for name in SPECIALS}
    PreTrainedTokenizerFast(tokenizer_object=inner, **tokens).save_pretrained(folder)
    return folder


def documents(count: int, pairs: int, keys: int, seed: int) -> list[str]:
    """So many documents."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        own, values = draw.permutation(keys)[:pairs], draw.integers(0, keys, pairs)
        order = np.concatenate([np.arange(pairs), draw.permutation(pairs)])
        found.append(" ".join(f"k{own[i]} v{values[i]}" for i in order))
    return found


@torch.no_grad()
def accuracy(run: Path, texts: list[str], pairs: int) -> float:
    """Share of the values of the second halves that the model finds most probable."""
    reader = cloze.load(run)
    right = total = 0
    for text in texts:
        ids = torch.tensor(reader.tokenizer(text)["input_ids"])
        places = 1 + 2 * pairs + 2 * torch.arange(pairs) + 1  # [CLS], the first half, key and value
        guesses = reader.logits(ids, "causal")[places - 1].argmax(1)
        right += int((guesses == ids[places]).sum())
        total += pairs
    return right / total


def one(recipe: str, seed: int, chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A run and its scores."""
    length = 4 * chosen.pairs + 2
    data = folder / f"train-{seed}.jsonl"
    if not data.is_file():
        texts = documents(int(1.05 * chosen.tokens / length), chosen.pairs, chosen.keys, seed)
        data.write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf-8")
    shape = {"kind": "new", "layers": chosen.layers, "width": chosen.width, "heads": 4, "longest": length}
    run = cloze.pretrain(
        recipe,
        str(data),
        folder / f"{recipe}-{seed}",
        f"{chosen.tokens}tok",
        overrides=[
            f"tokenizer={json.dumps({'kind': 'load', 'path': str(folder / 'tokenizer')})}",
            f"model={json.dumps(shape)}",
            f"training.phases={json.dumps([{'share': 1.0, 'length': 4 * length, 'rows': chosen.rows}])}",
            "data.heldout={share: 0.01, minimum: 2000}",
            "evaluation.variance=false",
            f"seed={seed}",
            *chosen.set,
        ],
    )
    texts = documents(chosen.documents, chosen.pairs, chosen.keys, FRESH + seed)
    scores = {"accuracy": accuracy(run.folder, texts, chosen.pairs), "loss": run.summary["heldout_loss"]}
    print(f"{recipe:<8} seed {seed}: {scores['accuracy']:.3f} right, loss {scores['loss']:.4f}", flush=True)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=3_000_000)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--keys", type=int, default=32)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], help="a setting of all runs")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {"causal": [], "meap": []}
    with tempfile.TemporaryDirectory() as name:
        tokenizer_of(chosen.keys, Path(name) / "tokenizer")
        for seed in range(chosen.seeds):
            for recipe, scores in found.items():
                scores.append(one(recipe, seed, chosen, Path(name)))
    gaps = {
        metric: [m[metric] - c[metric] for m, c in zip(found["meap"], found["causal"], strict=True)]
        for metric in ("accuracy", "loss")
    }
    differences = {metric: mean_interval(values).as_dict() for metric, values in gaps.items()}
    for metric, e in differences.items():
        print(f"meap - causal, {metric}: {e['value']:+.4f} [{e['low']}, {e['high']}]")
    settings = {name: value for name, value in vars(chosen).items() if name != "json"}
    write_json(chosen.json, {"settings": settings, "runs": found, "meap_minus_causal": differences})


if __name__ == "__main__":
    main()
