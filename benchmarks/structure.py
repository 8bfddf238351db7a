"""Does an encoder know which sentences are of one paragraph? Structural objectives against masks alone.

    python benchmarks/structure.py --data TRAIN --test TEXT --seeds 3 --json benchmarks/results/structure.json

A question is a sentence and five others of the same document: one of its own paragraph, and one each of
four paragraphs nearby. The encoder is frozen. Two ways to answer: the cosine of mean outputs, and a linear
probe on the first token's output for `[CLS] question [SEP] candidate [SEP]`, trained on questions about the
training text. Paragraphs are drawn evenly and then sentences, so that right and wrong candidates are of the
same lengths; two answers that know no model show what is left to guess by. Runs of a seed share weights,
text and budget. `--data topics` makes text up, each paragraph about one of 150 topics of twelve words.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cloze.comparison.statistics import mean_interval
from cloze.data.embedded import BOOKS, books
from cloze.data.sections import sentence_starts, split_paragraphs
from cloze.report.environment import environment
from cloze.run import Run, pretrain

CANDIDATES, NEAR, SHORTEST, LONGEST = 5, 12, 5, 50  # of a question; paragraphs; words of a sentence
MODEL = (
    "model={kind: new, family: modernbert, layers: 4, width: 128, longest: 256}",
    "tokenizer.vocabulary=8192",
    "training.phases=[{share: 1.0, length: 256, rows: 8}]",
    "training.optimizer={kind: muon, learning_rate: 0.004}",
    "evaluation={times: 1, tokens: 20000, variance: false}",
)
PAIRS = (
    "variants={{pairs: {{masking: {{kind: none}}, objective: {{kind: structure, task: {task}}}}}}}",
    "stages=[{{use: {{main: {main}, pairs: {pairs}}}}}]",
)


@dataclass(frozen=True, slots=True)
class Question:
    """A sentence and its candidates, the right one first."""

    sentence: str
    candidates: tuple[str, ...]


def topics(documents: int, seed: int) -> list[str]:
    """Made-up texts of ten paragraphs of four sentences, each paragraph with the words of one topic."""
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = [a + b for a in syllables for b in syllables][:: len(syllables) ** 2 // (150 * 12)][: 150 * 12]
    random.Random(0).shuffle(words)  # which words are of one topic is the same in all texts
    draw = random.Random(f"topics {seed}")

    def sentence(topic: int) -> str:
        return f"The {' '.join(draw.sample(words[12 * topic : 12 * topic + 12], 6))}."

    def text() -> str:
        chosen = draw.sample(range(150), 10)
        return "\n\n".join(" ".join(sentence(topic) for _ in range(4)) for topic in chosen)

    return [text() for _ in range(documents)]


def texts_of(path: str) -> list[str]:
    """The texts of a .jsonl.gz file, or the books that come with the package."""
    with gzip.open(books() if path == BOOKS else path, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def questions_of(text: str, count: int, seed: str) -> list[Question]:
    """Questions about one document; none where it is too short."""
    paragraphs = []
    for paragraph in split_paragraphs(text):
        starts = [0, *sentence_starts(paragraph), len(paragraph)]
        found = [paragraph[a:b].strip() for a, b in pairwise(starts)]
        found = [s for s in found if SHORTEST <= len(s.split()) <= LONGEST]
        if len(found) > 1:
            paragraphs.append(found)
    draw = random.Random(seed)
    questions = []
    for _ in range(count if len(paragraphs) > CANDIDATES else 0):
        place = draw.randrange(len(paragraphs))
        near = [i for i in range(max(0, place - NEAR), min(len(paragraphs), place + NEAR + 1)) if i != place]
        right = draw.sample(paragraphs[place], 2)
        wrong = [draw.choice(paragraphs[i]) for i in draw.sample(near, min(len(near), CANDIDATES - 1))]
        questions.append(Question(right[0], (right[1], *wrong)))
    return [q for q in questions if len(q.candidates) == CANDIDATES]


def first_of(scores: Tensor) -> dict[str, float]:
    """Share of questions whose right candidate is first, and the mean of 1/rank; [questions, candidates]."""
    above = (scores[:, 1:] > scores[:, :1]).sum(1) + 0.5 * (scores[:, 1:] == scores[:, :1]).sum(1)
    return {"first": float((above < 0.5).float().mean()), "reciprocal_rank": float((1 / (1 + above)).mean())}


class Frozen:
    """A trained run's encoder."""

    def __init__(self, run: Run):
        self.body, self.tokenizer = run.model.base_model.eval(), run.tokenizer

    @torch.no_grad()
    def outputs(self, sequences: Sequence[list[int]], mean: bool) -> Tensor:
        """[N, width]: the mean output, or the first token's."""
        found = torch.empty(len(sequences), self.body.config.hidden_size)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            ids = [torch.tensor(sequences[i]) for i in chosen]
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
            sizes = torch.tensor([len(i) for i in ids])
            attended = torch.arange(padded.shape[1])[None] < sizes[:, None]
            hidden = self.body(input_ids=padded, attention_mask=attended.long()).last_hidden_state
            kept = attended[..., None]
            found[chosen] = ((hidden * kept).sum(1) / kept.sum(1)) if mean else hidden[:, 0]
        return found

    def tokens(self, text: str) -> list[int]:
        """At most 120 tokens, without special ones."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"][:120]

    def cosines(self, questions: Sequence[Question]) -> Tensor:
        """[questions, candidates]."""
        texts = [t for q in questions for t in (q.sentence, *q.candidates)]
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        vectors = self.outputs([[first, *self.tokens(t), last] for t in texts], mean=True)
        each = F.normalize(vectors - vectors.mean(0), dim=1).view(len(questions), 1 + CANDIDATES, -1)
        return (each[:, :1] * each[:, 1:]).sum(2)

    def pairs(self, questions: Sequence[Question]) -> Tensor:
        """[questions, candidates, width]."""
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        sequences = [
            [first, *self.tokens(q.sentence), last, *self.tokens(c), last]
            for q in questions
            for c in q.candidates
        ]
        return self.outputs(sequences, mean=False).view(len(questions), CANDIDATES, -1)


def probe(train: Tensor, test: Tensor) -> Tensor:
    """Scores [questions, candidates] of a linear layer that was trained to rank, with a little decay."""
    mean, deviation = train.flatten(0, 1).mean(0), train.flatten(0, 1).std(0) + 1e-6
    train, test = (train - mean) / deviation, (test - mean) / deviation
    weight = torch.zeros(train.shape[2], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")
    right = torch.zeros(len(train), dtype=torch.int64)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(train @ weight, right) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (test @ weight).detach()


def words(text: str) -> set[str]:
    """Its words."""
    return set(re.findall(r"\w+", text.lower()))


def without_model(questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """Answers by the nearest length, and by shared words."""
    length = [[-abs(len(c) - len(q.sentence)) for c in q.candidates] for q in questions]
    overlap = [
        [len(words(c) & words(q.sentence)) / len(words(c) | words(q.sentence)) for c in q.candidates]
        for q in questions
    ]
    return {"length": first_of(torch.tensor(length).float()), "shared words": first_of(torch.tensor(overlap))}


def arm_of(name: str) -> tuple[str, ...]:
    """Overrides of an arm: `mlm`, or TASK:MAIN:PAIRS, the last two shares of the rows."""
    if name == "mlm":
        return ()
    task, main, pairs = name.split(":")
    return tuple(line.format(task=task, main=main, pairs=pairs) for line in PAIRS)


def main() -> None:
    """Train, ask, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default=BOOKS, help="training text: .jsonl.gz, cloze:books, or topics")
    parser.add_argument("--test", help="other documents, .jsonl.gz; not with topics")
    parser.add_argument("--arms", nargs="+", default=["same_paragraph:1:1"])
    parser.add_argument("--budget", default="1Mtok")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=1500)
    parser.add_argument("--set", action="append", default=[], help="overrides of all arms")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    made = tempfile.TemporaryDirectory()
    if arguments.data == "topics":
        arguments.data, arguments.test = f"{made.name}/train.jsonl.gz", f"{made.name}/test.jsonl.gz"
        for seed, (path, count) in enumerate(((arguments.data, 2000), (arguments.test, 100))):
            with gzip.open(path, "wt", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": text}) + "\n" for text in topics(count, seed))
    asked = {}
    for part, path in (("train", arguments.data), ("test", arguments.test)):
        texts = texts_of(path)
        each = -(-arguments.questions // len(texts))
        asked[part] = [q for i, t in enumerate(texts) for q in questions_of(t, each, f"{part}{i}")]
    result: dict[str, Any] = {
        "environment": environment(torch.device("cpu"), "as trained"),
        "budget": arguments.budget,
        "settings": [*MODEL, *arguments.set],
        "questions": {part: len(found) for part, found in asked.items()},
        "chance": 1 / CANDIDATES,
        "without_model": without_model(asked["test"]),
        "runs": [],
    }
    arms = ["mlm", *arguments.arms]
    for seed in range(arguments.seeds):
        for arm in arms:
            with tempfile.TemporaryDirectory() as folder:
                sets = [*MODEL, *arm_of(arm), f"seed={seed}", *arguments.set]
                run = pretrain(
                    "mlm", arguments.data, Path(folder) / "run", budget=arguments.budget, overrides=sets
                )
                frozen = Frozen(run)
                found = {
                    "cosine": first_of(frozen.cosines(asked["test"])),
                    "probe": first_of(probe(frozen.pairs(asked["train"]), frozen.pairs(asked["test"]))),
                }
                log = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
                last = [line for line in log if line["kind"] == "step"][-1]
            heldout = run.summary["heldout_loss"]
            told = last.get("pairs/right")
            result["runs"].append({"arm": arm, "seed": seed, "heldout": heldout, "right": told, **found})
            print(json.dumps(result["runs"][-1]), flush=True)
    result["differences"] = {
        arm: {
            way: {
                metric: mean_interval(
                    [
                        r[way][metric] - c[way][metric]
                        for r in result["runs"]
                        for c in result["runs"]
                        if r["arm"] == arm and c["arm"] == "mlm" and c["seed"] == r["seed"]
                    ]
                ).as_dict()
                for metric in ("first", "reciprocal_rank")
            }
            for way in ("cosine", "probe")
        }
        for arm in arguments.arms
    }
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
