"""An encoder with new tokens for a domain and without them, before and after training on its text.

    python benchmarks/vocabulary.py --model ENCODER --data TEXT --json FILE

Three arms: the encoder as it is; with new tokens that start from the mean of their pieces; the control, with
the same tokens and random rows. A tenth of the sections of TEXT is held out. Of each arm: tokens a word, and
bits per character of the held-out text by `cloze evaluate --suite heldout`, before and after the training.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

from common import pretrain, texts, write_json, write_texts

METRICS = ("bits_per_character", "pseudo_bits_per_character_word_l2r")


def make_arms(model: str, train: list[str], size: int, folder: Path) -> dict[str, Path]:
    """A model folder of each arm, made from the encoder `model`."""
    import torch

    from cloze.data.tokenizers import ids_of, load_tokenizer
    from cloze.data.vocabulary_extension import count_words, extend_tokenizer
    from cloze.models.build import PretrainedModelChoice, build_model, load_masked_lm

    own = load_tokenizer(model)
    extend_tokenizer(own, count_words(own, train), size, folder / "tokenizer")
    extended = load_tokenizer(folder / "tokenizer")
    arms = {name: folder / name for name in ("as it is", "pieces", "random")}
    load_masked_lm(model).save_pretrained(arms["as it is"])
    grown = build_model(PretrainedModelChoice(path=model), extended, seed=0)
    grown.save_pretrained(arms["pieces"])
    rows, first = grown.get_input_embeddings().weight, ids_of(own)
    with torch.no_grad():
        rows[first:] = torch.randn_like(rows[first:]) * grown.config.initializer_range
        if (bias := grown.get_output_embeddings().bias) is not None:
            bias[first:] = 0.0
    grown.save_pretrained(arms["random"])
    for name, arm in arms.items():
        (own if name == "as it is" else extended).save_pretrained(arm)
    return arms


def measure(model: Path, valid: Path) -> dict[str, float]:
    """Tokens a word of the held-out text, and its bits per character."""
    from cloze.data.tokenizers import load_tokenizer
    from cloze.evaluation.run import evaluate

    tokenizer = load_tokenizer(model)
    held_out = list(texts(str(valid)))
    count = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in held_out)
    (scores,) = evaluate(model, "heldout", valid).scores()["heldout"].values()
    found = {metric: scores[metric]["mean"] for metric in METRICS}
    return {"tokens_a_word": count / sum(len(text.split()) for text in held_out)} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, help="an encoder with its masked-LM head: folder or hub id")
    parser.add_argument("--data", required=True, help="text of the domain")
    parser.add_argument("--new", type=int, default=1000, help="new tokens")
    parser.add_argument("--budget", default="1Mtok", help="of the training on the domain")
    parser.add_argument("--seeds", type=int, default=3, help="of that training")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from cloze.data.sections import split_sections

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sections = list(chain.from_iterable(map(split_sections, texts(options.data))))
        valid = write_texts(folder / "valid.jsonl", sections[::10])
        train = [text for number, text in enumerate(sections) if number % 10]
        data = write_texts(folder / "train.jsonl", train)
        arms = make_arms(options.model, train, options.new, folder)
        result: dict[str, Any] = {}
        for arm, model in arms.items():
            result[arm] = {"before": measure(model, valid)}
            show(arm, "before", [result[arm]["before"]])
        for seed in range(options.seeds):
            for arm, model in arms.items():
                sets = [f"model.path={model}", f"seed={seed}", f"data.heldout.path={valid}"]
                out = folder / "run"
                pretrain("adapt", str(data), options.budget, sets, out)
                result[arm].setdefault("after", []).append(measure(out / "model", valid))
                shutil.rmtree(out)
        for arm in arms:
            show(arm, f"after {options.budget}", result[arm]["after"])
    settings = {k: str(v) for k, v in vars(options).items() if k != "json"}
    write_json(options.json, {"settings": settings, "arms": result})


def show(arm: str, when: str, found: list[dict[str, float]]) -> None:
    """A line: means over seeds, and the lowest and highest."""
    cells = []
    for metric in found[0]:
        values = [f[metric] for f in found]
        cells.append(f"{metric} {statistics.fmean(values):.3f} [{min(values):.3f}, {max(values):.3f}]")
    print(f"{arm:<10}{when:<14}{'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
