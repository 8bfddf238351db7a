"""A made-up run whose files look like those of a real one."""

import json
import math
import random
from pathlib import Path
from typing import Any

SUMMARY: dict[str, Any] = {
    "recipe": "mlm-low-variance",
    "about": "BERT's masked language modelling with disjoint masks & no wasted <pad>, for a small encoder.",
    "paper": "Devlin et al. 2019, arXiv:1810.04805",
    "unbiased": True,
    "status": "finished",
    "parameters": 4_416_698,
    "tokens_seen": 24_576_000,
    "steps": 3000,
    "budget_steps": 3000,
    "seed": 17,
    "seconds": 2731.4,
    "tokens_per_second": 8998.0,
    "heldout_loss_initial": 9.04,
    "heldout_loss": 4.213,
    "heldout_accuracy": 0.312,
    "unigram_loss": 6.512,
    "choices": {
        "masking": "disjoint segments, 30%",
        "corruption": "80/10/10",
        "visibility": "all, within a document",
        "objective": "the hidden tokens",
    },
    "environment": {
        "python": "3.13.1",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "cloze": "0.1.0",
        "hardware": "AMD EPYC 9R14",
        "cores": 2,
        "device": "cpu",
        "precision": "float32",
        "threads": 2,
    },
    "data": {
        "documents": 41_204,
        "tokens_train": 11_730_112,
        "tokens_heldout": 120_332,
        "heldout_tokens_predicted": 18_050,
        "vocabulary": 8192,
        "fill": 0.994,
        "sources": ["books/*.txt", "minutes & letters.jsonl"],
        "passes": 2.1,
    },
    "model": {
        "class": "ModernBertForMaskedLM",
        "family": "modernbert",
        "layers": 4,
        "width": 256,
        "heads": 4,
    },
}
RECIPE = (
    "# The baseline <of> them all\nextends: mlm\nmasking: {kind: disjoint, rate: 0.3}\nbudget: 24M tokens\n"
)
PROSE = (
    "The river rose again in the night, and by morning the lower road was under water as far as the mill. "
    "Nobody had expected it so early in the year; the old ferryman said only that he had seen worse, and "
    "went on mending his nets while the children carried the flour up to the church."
)
HEBREW = "הנהר עלה שוב בלילה, ובבוקר היתה הדרך <תחת> המים & הטחנה."
WORDS = (
    *(
        "the",
        ",",
        ".",
        "of",
        "and",
        "to",
        "in",
        "was",
        "he",
        "that",
        "his",
        "her",
        "with",
        "as",
        "had",
        "for",
    ),
    *(
        "she",
        "not",
        "at",
        "but",
        "is",
        "on",
        "be",
        "it",
        "by",
        "all",
        "which",
        "have",
        "from",
        "this",
        "said",
    ),
    *("who", "one", "were", "they", "would", "there", "been", "him", "when", "so", "my", "what", "up", "if"),
    *("out", "more", "into", "river", "morning", "church", "ing", "ed", "ly", "Napoleon", "Marmeladov"),
)
ALTERNATIVES = (" house", " man", ",", " in", " old", " sea", " first", " king", "ing")


def write_fake_run(folder: Path, steps: int = 3000, every: int = 10) -> Path:
    """Fill a folder with the files of a plausible run."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(5)
    lines: list[dict[str, Any]] = []
    for step in range(0, steps + 1, every):
        share = step / steps
        place = {"step": step, "tokens": int(24_576_000 * share), "seconds": round(2731.4 * share, 1)}
        loss = 4.1 + 4.9 * math.exp(-share * 9) + 0.4 * (1 - share)
        if step:
            rate = {"loss": loss + 0.25 + chance.gauss(0, 0.08), "rate": 0.3, "predicted": 2457}
            size = {"gradient_norm": 0.6 + 2 * math.exp(-share * 20) + chance.random() * 0.2}
            speed = {"tokens_per_second": 9000 - (2500 if chance.random() < 0.03 else 300 * chance.random())}
            schedule = {"learning_rate": 1e-3 * min(share / 0.05, (1 - share) / 0.95)}
            lines.append({"kind": "step", **place, **rate, **size, **speed, **schedule, "unheard_of": [1]})
        if step % (steps // 15 // every * every) == 0:
            accuracy = 0.312 * (1 - math.exp(-share * 4))
            lines.append(
                {"kind": "heldout", **place, "loss": loss, "accuracy": accuracy, "predicted": 18_050}
            )
    lines.append({"kind": "note", "step": 120, "message": "gradient norm 4.1 clipped to 1"})
    lines.append({"kind": "note", "step": 1500, "message": "resumed from checkpoint-1500 <host 'a'>"})
    lines.append({"kind": "from the future", "step": 3000})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    (folder / "samples.json").write_text(json.dumps(_samples(chance)))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def _samples(chance: random.Random) -> dict[str, Any]:
    words = []
    for rank, text in enumerate(WORDS):
        unigram = 3 + 0.9 * math.log(1 + rank)
        loss = max(0.2, unigram - chance.gauss(1.8, 1.2))
        word = {
            "word": " " + text if text.isalpha() else text,
            "count": int(900 / (1 + rank) + 8),
            "loss_initial": 9.0,
        }
        words.append(word | {"unigram_loss": unigram, "loss": loss, "accuracy": math.exp(-loss)})
    words[7]["word"] = "<script>alert(1)</script>"
    words[11]["word"] = ' "כן" & 🙂'
    labels = ("1–10", "11–100", "101–1,000", "1,001–10,000", "> 10,000")
    bands = [
        {
            "label": label,
            "tokens": 900 * 2**i,
            "unigram_loss": 13.5 - 2 * i,
            "loss": 11 - 2 * i,
            "accuracy": 0.02 + 0.11 * i,
        }
        for i, label in enumerate(labels)
    ]
    return {
        "words": words,
        "frequency": bands,
        "examples": [_example(PROSE, chance), _example(HEBREW, chance)],
    }


def _example(prose: str, chance: random.Random) -> dict[str, Any]:
    tokens: list[dict[str, Any]] = []
    for index, text in enumerate(prose.replace(",", "|,").replace(" ", "| ").split("|")):
        token: dict[str, Any] = {"text": text}
        if chance.random() < 0.17 and index:
            texts = [*chance.sample(ALTERNATIVES, 4)]
            if chance.random() < 0.7:
                texts.insert(chance.choice((0, 0, 2)), text)
            masses = [chance.random() / (1 + i) ** 1.5 for i in range(len(texts))]
            guesses = zip(texts, sorted((m / sum(masses) * 0.9 for m in masses), reverse=True), strict=True)
            token |= {
                "masked": True,
                "guesses": [{"text": g, "p": p, "right": g == text} for g, p in guesses],
            }
        tokens.append(token)
    return {"tokens": tokens}
