"""Scoring minimal pairs: seconds, ours against one sentence at a time, on the same model.

    python benchmarks/minimal_pairs.py --data FOLDER --json benchmarks/results/minimal_pairs.json

--data is a folder as for `cloze evaluate --suite minimal-pairs`; --pairs of it are taken, evenly. The model
is a BERT or ModernBERT of random weights: what it says does not matter, but every arm must say the same. Each
arm is a process of its own, in turn; seconds are those of tokenising and scoring, the model being loaded:
  ours           `pseudo_log_likelihoods`: the masked copies of all sentences, batched; logits at the masked
                 places only; both scores, PLL and PLL-word-l2r
  one sentence   the usual snippet around `AutoModelForMaskedLM`: the masked copies of one sentence are a
                 batch; logits of all tokens; PLL only
  one mask       the definition: a forward pass for each masked token; logits of all tokens; PLL only
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from common import SETTINGS, alternate, make_tokenizer, paired, run, spread, texts, words, write_json

WAYS = ("ours", "one sentence", "one mask")
SIZES = ("tiny", "mini", "small", "base")


def ours(folder: Path, sentences: list[str]) -> tuple[float, list[float]]:
    """Seconds, and the scores."""
    from cloze.evaluation.pseudo_likelihood import Splitter, pseudo_log_likelihoods
    from cloze.evaluation.subject import Subject
    from cloze.training.precision import quick_products

    subject = Subject(folder)
    encoder, tokenizer = subject.masked_lm, subject.tokenizer
    with quick_products():
        begin = time.perf_counter()
        found = pseudo_log_likelihoods(encoder, tokenizer.mask_token_id, Splitter(tokenizer)(sentences))
        return time.perf_counter() - begin, found.plain.tolist()


def stock(folder: Path, sentences: list[str], at_once: bool) -> tuple[float, list[float]]:
    """The same without cloze: all masked copies of a sentence `at_once`, or one by one."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForMaskedLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )

    @torch.no_grad()
    def score(sentence: str) -> float:
        ids = tokenizer(sentence, return_tensors="pt")["input_ids"][0]
        places = torch.arange(1, ids.numel() - 1)
        copies = ids.repeat(places.numel(), 1)
        copies[torch.arange(places.numel()), places] = tokenizer.mask_token_id
        total = 0.0
        step = len(copies) if at_once else 1
        for part, place in zip(copies.split(step), places.split(step), strict=True):
            log_p = model(input_ids=part).logits.log_softmax(-1)
            total += float(log_p[torch.arange(len(part)), place, ids[place]].sum())
        return total

    begin = time.perf_counter()
    scores = [score(sentence) for sentence in sentences]
    return time.perf_counter() - begin, scores


def one(way: str, folder: Path, file: Path) -> None:
    """An arm in this process; its numbers go to a file."""
    sentences = json.loads((folder / "sentences.json").read_text("utf-8"))
    if way == "ours":
        seconds, scores = ours(folder, sentences)
    else:
        seconds, scores = stock(folder, sentences, at_once=way == "one sentence")
    file.write_text(json.dumps({"seconds": seconds, "scores": scores}), "utf-8")


def start(way: str, folder: Path) -> dict[str, Any]:
    """An arm in a fresh process."""
    file = folder / "result.json"
    run([sys.executable, __file__, "--one", way, folder, file], SETTINGS if way == "ours" else None)
    return json.loads(file.read_text("utf-8"))


def sentences_of(data: str, pairs: int) -> list[str]:
    """The distinct sentences of so many pairs, taken evenly."""
    from cloze.evaluation.suites.minimal_pairs import read

    found = list(read(data))
    chosen = [found[i * len(found) // pairs] for i in range(min(pairs, len(found)))]
    return list(dict.fromkeys(text for pair in chosen for text in (pair.good, pair.bad)))


def make_model(size: str, family: str, vocabulary: int, folder: Path) -> int:
    """A model of random weights with a tokenizer trained on the books of the package; its parameters."""
    from cloze.data.tokenizers import load_tokenizer
    from cloze.models.build import NewModel, build_model, parameters

    tokenizer = load_tokenizer(make_tokenizer(texts("cloze:books"), vocabulary, folder))
    model = build_model(NewModel(family=family, size=size), tokenizer, 0)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    return parameters(model)


def compare(size: str, chosen: argparse.Namespace, sentences: list[str]) -> dict[str, Any]:
    """All arms with a model of one size; leaves if their scores are not the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = make_model(size, chosen.family, chosen.vocabulary, folder)
        (folder / "sentences.json").write_text(json.dumps(sentences), "utf-8")
        arms = {way: partial(start, way, folder) for way in chosen.ways}
        found = alternate(arms, chosen.repeats, lambda r: f"{size}: {r['seconds']:.2f} s")
    scores = {way: runs[0]["scores"] for way, runs in found.items()}
    apart = max(abs(a - b) for own in scores.values() for a, b in zip(own, scores["ours"], strict=True))
    if apart > 1e-2:
        raise SystemExit(f"{size}: scores differ by {apart:g}")
    seconds = {way: [r["seconds"] for r in runs] for way, runs in found.items()}
    result: dict[str, Any] = {"parameters": count, "scores_differ_by": apart, "seconds": {}, "ratios": {}}
    for way, values in seconds.items():
        result["seconds"][way] = spread(values)
        if way != "ours":
            result["ratios"][way] = paired(values, seconds["ours"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of .jsonl files with sentence_good and sentence_bad")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "mini", "small"])
    parser.add_argument("--family", choices=("bert", "modernbert"), default="bert")
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        way, folder, file = chosen.one
        return one(way, Path(folder), Path(file))
    if chosen.data is None:
        parser.error("--data is needed")
    sentences = sentences_of(chosen.data, chosen.pairs)
    result = {size: compare(size, chosen, sentences) for size in chosen.sizes}
    print(f"\n{len(sentences):,} sentences, seconds{'':<12}" + "".join(f"{way:>24}" for way in chosen.ways))
    for size, found in result.items():
        cells = "".join(f"{words(found['seconds'][way], '.2f'):>24}" for way in chosen.ways)
        print(f"{size:<8}{found['parameters']:>14,} parameters  {cells}")
        for way, ratio in found["ratios"].items():
            print(f"{'':<8}ours is {words(ratio, '.1f')} times as fast as {way}")
    settings = {k: v for k, v in vars(chosen).items() if k not in ("json", "data", "one")}
    settings |= {"data": Path(chosen.data).name, "sentences": len(sentences)}
    write_json(chosen.json, {"sizes": result, "settings": settings})


if __name__ == "__main__":
    main()
