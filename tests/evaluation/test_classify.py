"""Classification and pairs: learnt where there is something to learn, read from every layout, and errors."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation.made_up_tasks import (
    FAST,
    Record,
    records,
    same,
    save_encoder,
    shuffled,
    topic,
    twin,
    write,
    write_task,
)
from helpers import word_tokenizer

from cloze.errors import ClozeError
from cloze.evaluation.finetuning.encoding import Sequences, collate, encode, run_all, training_batches
from cloze.evaluation.finetuning.probe import Linear, probe
from cloze.evaluation.finetuning.protocol import Protocol
from cloze.evaluation.finetuning.task import Task
from cloze.evaluation.finetuning.tasks import find_tasks
from cloze.evaluation.finetuning.train import Part, Tuned, Tuner, finetune
from cloze.evaluation.run import evaluate
from cloze.evaluation.subject import Subject


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("data") / "topics", topic)


def one_task(shape: Any, data: Path, *columns: str) -> Task:
    (task,) = find_tasks(shape, str(data), columns=columns)
    return task


def test_classes_are_learnt_and_each_seed_counts(
    encoder: Path, topics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, looked = one_task("classify", topics), []
    real = Tuner.predict

    def spy(self: Tuner, model: Tuned, part: Part) -> np.ndarray:
        looked.append(part.examples is task.reported[""])
        return real(self, model, part)

    monkeypatch.setattr(Tuner, "predict", spy)
    found = finetune(Subject(encoder), task, FAST, seeds=2)
    assert list(found) == ["accuracy", "macro_f1", "micro_f1"]
    assert all(len(values) == 2 for values in found.values())
    assert min(found["accuracy"]) > 0.9
    assert found["micro_f1"] == found["accuracy"]
    epochs = FAST.epochs_of(216)
    assert len(looked) == (len(FAST.learning_rates) + 2) * epochs + 2
    assert sum(looked) == 2, "the reported split is looked at once for each seed"


def test_a_learning_rate_that_is_given_is_not_searched(
    encoder: Path, topics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    real = Tuner.train

    def spy(self: Tuner, fit: Part, choice: Part, rate: float, seed: int) -> tuple[float, Tuned]:
        rates.append(rate)
        return real(self, fit, choice, rate, seed)

    monkeypatch.setattr(Tuner, "train", spy)
    evaluate(encoder, "classify", topics, seeds=1, epochs=1, learning_rate=0.002)
    assert rates == [0.002]


def test_shuffled_labels_are_not_learnt(encoder: Path, tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", shuffled(records(topic, 240, 0), "label"))
    write(tmp_path, "test.jsonl", records(topic, 100, 1))
    task, subject = one_task("classify", tmp_path), Subject(encoder)
    assert finetune(subject, task, FAST, seeds=1)["accuracy"][0] < 0.6
    assert probe(subject, task, FAST)["accuracy"][0] < 0.6


def test_a_seed_is_repeatable_and_draws_the_head_the_order_and_dropout(encoder: Path, topics: Path) -> None:
    task = one_task("classify", topics)
    protocol = Protocol(epochs=1, learning_rates=(1e-3,), length=32)
    tuner = Tuner(Subject(encoder), task, protocol)
    fit, choice = (tuner.part(examples) for examples in protocol.split(task))
    models = [tuner.train(fit, choice, 1e-3, seed)[1] for seed in (0, 0, 1)]
    weights = [model.head.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])
    orders = [list(training_batches(fit.sequences, 16, np.random.default_rng(s))) for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(i for batch in orders[0] for i in batch) == list(range(216))


def test_numbers_are_learnt(encoder: Path, tmp_path: Path) -> None:
    task, subject = one_task("pair", write_task(tmp_path / "twins", twin, "tsv")), Subject(encoder)
    assert (task.kind, task.metrics) == ("numbers", ("pearson", "spearman"))
    assert finetune(subject, task, FAST, seeds=1)["pearson"][0] > 0.8
    write(tmp_path / "twins", "train.tsv", shuffled(records(twin, 240, 0), "score"))
    task = one_task("pair", tmp_path / "twins")
    assert finetune(subject, task, FAST, seeds=1)["pearson"][0] < 0.5


def test_the_probe_learns_classes_and_pairs(encoder: Path, topics: Path, tmp_path: Path) -> None:
    subject = Subject(encoder)
    found = probe(subject, one_task("classify", topics), FAST)
    assert found["accuracy"][0] > 0.85
    task = one_task("pair", write_task(tmp_path / "same", same, "csv.gz"))
    assert probe(subject, task, FAST)["accuracy"][0] > 0.85
    task = one_task("pair", write_task(tmp_path / "twins", twin))
    assert set(probe(subject, task, FAST)) == {"pearson", "spearman"}


def test_the_probe_is_the_regression_of_scikit_learn(topics: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    draw = np.random.default_rng(0)
    targets = draw.integers(0, 3, 200)
    features = (5 + 3 * draw.normal(size=(200, 4)) + 2 * targets[:, None]).astype(np.float32)
    model = Linear(one_task("classify", topics))
    for strength in (0.01, 0.1):  # the second starts from the first
        model.fit(features, targets, strength)
    stock = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(features, targets)
    assert np.abs(model.model.coef_ - stock[-1].coef_).max() < 1e-3
    assert (model.predict(features) == stock.predict(features)).all()


@pytest.mark.parametrize("family", ["modernbert", "roberta", "deberta-v2", "mpnet"])
def test_other_families_are_tuned_and_padding_says_nothing(family: str, tmp_path: Path) -> None:
    subject = Subject(save_encoder(tmp_path / family, family))
    task = one_task("pair", write_task(tmp_path / "twins", twin, train=40))
    scores = finetune(subject, task, Protocol(epochs=1, learning_rates=(1e-3,), length=24), seeds=1)
    assert set(scores) == {"pearson", "spearman"}
    texts = [("w5 w6",), ("w7 w8 w9 w10 w11 w12 w13",), ("w14",)]
    sequences = encode(subject.tokenizer, texts, 24, types=False)
    body, device = subject.body(), torch.device("cpu")
    together = run_all(lambda rows: rows.states(body), sequences, 0, device)
    for i, (text,) in enumerate(texts):
        ids = subject.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            alone = body(**ids).last_hidden_state[0].mean(0)
        assert np.abs(together[i] - alone.numpy()).max() < 1e-4


def test_pairs_have_token_types_where_the_model_knows_them(encoder: Path, tmp_path: Path) -> None:
    task = one_task("pair", write_task(tmp_path / "twins", twin, train=40))
    for folder, known in (
        (encoder, True),
        (save_encoder(tmp_path / "r", "roberta", type_vocab_size=1), False),
    ):
        part = Tuner(Subject(folder), task, FAST).part(task.train[:3])
        inputs = collate(part.sequences, [2, 0], 0, torch.device("cpu")).inputs
        assert ("token_type_ids" in inputs) == known
        assert inputs["input_ids"].shape == (2, 15)
    assert part.sequences.ids[0][7] == 3, "a separator between the texts"


def test_long_texts_are_cut() -> None:
    long, short = " ".join(f"w{i}" for i in range(5, 45)), "w50 w51"
    ids = encode(word_tokenizer(), [(long,), (short,), ("",)], 16, types=False).ids
    assert [len(i) for i in ids] == [16, 4, 2]
    assert ids[0][-1] == ids[1][-1] == 3
    pair = encode(word_tokenizer(), [(long, short)], 16, types=True)
    assert pair.ids[0][-2:] == [50, 51], "the longer text of a pair is cut"


def test_batches_are_of_like_length() -> None:
    draw = np.random.default_rng(0)
    sequences = Sequences([[0] * int(n) for n in draw.integers(1, 100, 1000)])
    batches = list(training_batches(sequences, 32, np.random.default_rng(1)))
    padded = sum(len(b) * max(len(sequences.ids[i]) for i in b) for b in batches)
    assert padded < 1.1 * sum(len(i) for i in sequences.ids)
    assert sorted(i for b in batches for i in b) == list(range(1000))
    first = [len(sequences.ids[b[0]]) for b in batches]
    assert first != sorted(first), "batches of all lengths, mixed"


def test_the_protocol_is_what_the_docs_say(topics: Path) -> None:
    protocol = Protocol()
    assert [protocol.epochs_of(n) for n in (100, 1519, 7696, 20_000, 400_000)] == [10, 10, 5, 3, 3]
    assert Protocol(epochs=2).epochs_of(100) == 2
    task = one_task("classify", topics)
    fit, choice = protocol.split(task)
    assert (len(fit), len(choice)) == (216, 24)
    assert sorted([*fit, *choice], key=repr) == sorted(task.train, key=repr)
    assert protocol.split(task) == (fit, choice)
    for label in "abc":  # stratified
        whole = sum(e.labels == (label,) for e in task.train)
        assert abs(sum(e.labels == (label,) for e in choice) - whole / 10) <= 1
    fit, choice = Protocol(selection_most=10).split(task)
    assert len(choice) == 10


COLA = ["gj04\t1\t\tw5 w6.", *(f"gj04\t{i % 2}\t{'' if i % 2 else '*'}\tw{i} w6." for i in range(5, 25))]
HEAD = "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
ENTAILS = ("entailment", "neutral", "contradiction")


def lines(size: int, line: Callable[[int], str], start: int = 0) -> str:
    return "".join(line(i) + "\n" for i in range(start, start + size))


def test_the_official_files_of_glue(tmp_path: Path) -> None:
    files = {
        "CoLA/train.tsv": "\n".join(COLA),
        "CoLA/dev.tsv": "\n".join(COLA[:6]),
        "CoLA/test.tsv": "index\tsentence\n0\tw5 w6\n",
        "MRPC/train.tsv": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
        + lines(20, lambda i: f"{i % 2}\t1\t2\tw{5 + i} 'w6\tw7 \"w8"),
        "MRPC/dev.tsv": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tw5\tw6\n0\t1\t2\tw7\tw8\n",
        "QQP/train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
        + lines(200, lambda i: f"{i}\t1\t2\tw5\tw6" + (f"\t{i % 2}" if i != 17 else "")),
        "QQP/dev.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tw5\tw6\t1\n",
        "MNLI/train.tsv": HEAD + lines(12, lambda i: f"{i}\tx\tw5\tw6\tneutral\t{ENTAILS[i % 3]}"),
        "MNLI/dev_matched.tsv": HEAD + "0\tx\tw5\tw6\tneutral\tentailment\n",
        "MNLI/dev_mismatched.tsv": HEAD + "0\tx\tw5\tw6\tneutral\tentailment\n" * 2,
        "MNLI/test_matched.tsv": "index\tsentence1\tsentence2\n0\tw5\tw6\n",
        "STS-B/train.tsv": "index\tsentence1\tsentence2\tscore\n"
        + lines(12, lambda i: f"{i}\tw5\tw6\t{i % 6}.000"),
        "STS-B/dev.tsv": "index\tsentence1\tsentence2\tscore\n1\tw5\tw6\t2.500\n2\tw5\tw7\t3.5\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    (cola,) = find_tasks("classify", str(tmp_path))
    assert (cola.name, cola.metrics) == ("cola", ("matthews", "accuracy"))
    assert cola.train[0].texts == ("w5 w6.",)
    assert (len(cola.train), len(cola.reported[""])) == (21, 6)
    tasks = find_tasks("pair", str(tmp_path), ["qqp", "MRPC", "mnli", "sts-b"])
    assert [task.name for task in tasks] == ["qqp", "mrpc", "mnli", "stsb"]
    qqp, mrpc, mnli, stsb = tasks
    assert len(qqp.train) == 199, "the broken record is left out"
    assert mrpc.train[0].texts == ("w5 'w6", 'w7 "w8')
    assert mrpc.score(mrpc.reported[""], np.array([1, 1])) == {"accuracy": 0.5, "f1": pytest.approx(2 / 3)}
    assert {name: len(examples) for name, examples in mnli.reported.items()} == {"": 1, "_mismatched": 2}
    assert mnli.labels == tuple(sorted(ENTAILS))
    assert (stsb.kind, stsb.metrics) == ("numbers", ("pearson", "spearman"))


def test_mnli_has_both_accuracies(encoder: Path, tmp_path: Path) -> None:
    head = "premise\thypothesis\tlabel\n"
    folder = tmp_path / "mnli"
    folder.mkdir()
    for name, size in (("train", 30), ("validation_matched", 9), ("validation_mismatched", 12)):
        (folder / f"{name}.tsv").write_text(head + lines(size, lambda i: f"w5\tw{i + 5}\t{i % 3}"))
    found = evaluate(encoder, "pair", tmp_path, seeds=2, epochs=1, length=16).suites["pair"]["mnli"]
    assert set(found) == {"accuracy", "accuracy_mismatched"}
    assert all(len(values) == 2 for values in found.values())


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from cloze.evaluation.finetuning import sources

    with pytest.raises(ClozeError, match="cola, sst2 of nyu-mll/glue: the hub cannot be reached"):
        find_tasks("classify", None, ["cola", "sst2"])
    with pytest.raises(ClozeError, match="--data is needed"):
        find_tasks("classify", None)
    asked = []

    def load(path: str, name: str | None) -> Any:
        asked.append((path, name))
        rows = [{"sentence": f"w{i}", "label": i % 2, "idx": i} for i in range(20)]
        parts = {"train": rows, "validation": rows[:4], "test": [r | {"label": -1} for r in rows]}
        return datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()})

    monkeypatch.setattr(sources, "offline", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    (task,) = find_tasks("classify", None, ["CoLA"])
    assert (task.name, task.labels, len(task.reported[""])) == ("cola", ("0", "1"), 4)
    (other,) = find_tasks("classify", "someone/reviews")
    assert (other.name, other.metrics[0]) == ("reviews", "accuracy")
    assert asked == [("nyu-mll/glue", "cola"), ("someone/reviews", None)]


def test_the_command(encoder: Path, topics: Path, tmp_path: Path, cloze: Callable[..., Any]) -> None:
    write_task(topics.parent / "same", same, "tsv.gz")
    arguments = ("evaluate", encoder, "--data", topics.parent, "--out", tmp_path / "out")
    done = cloze(*arguments, "--suite", "classify,pair", "--probe")
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text("utf-8"))
    assert set(content) == {"classify", "pair", "_about"}
    assert content["classify"]["topics"]["accuracy"]["std"] is None
    done = cloze(*arguments, "--suite", "pair", "--tasks", "same", "--seeds", 2, "--epochs", 1)
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text("utf-8"))
    cell = content["pair"]["same"]["macro_f1"]
    assert len(cell["values"]) == 2 and cell["std"] is not None
    assert "(on the selection split, 3e-05: 0." in done.err


ROWS = [{"text": f"w{5 + i} w6", "label": "xy"[i % 2]} for i in range(20)]
PAIRS = [{"sentence1": "w5", "sentence2": f"w{5 + i}", "score": 0.5 * i} for i in range(20)]
Files = dict[str, list[Record] | str]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"dev.jsonl": ROWS, "test.jsonl": ROWS}, {}, "there is no train split, only dev, test"),
        ({"train.jsonl": ROWS}, {}, "neither a dev nor a test split to report on"),
        (
            {"train.jsonl": ROWS, "test.jsonl": [{"text": "w5"}]},
            {},
            "task: neither dev nor test has labels to report on",
        ),
        ({"train.jsonl": ROWS, "test.jsonl": ""}, {}, r"test.jsonl: the test split is empty"),
        ({"train.jsonl": ROWS, "test.tsv": "text\tlabel\n"}, {}, r"test.tsv: the test split is empty"),
        ({"train.jsonl": "", "test.jsonl": ROWS}, {}, r"train.jsonl: the train split is empty"),
        (
            {"train.jsonl": [r | {"label": "x"} for r in ROWS], "test.jsonl": ROWS},
            {},
            "all 20 labels are 'x'; a task needs two or more",
        ),
        (
            {"train.jsonl": ROWS, "test.jsonl": [*ROWS, {"text": "w5", "label": "z"}]},
            {},
            r"test.jsonl: the label 'z' \(record 21\) is not in train, which has x, y",
        ),
        ({"train.jsonl": ROWS[:6], "test.jsonl": ROWS}, {}, "6 examples; at least 10 are needed"),
        (
            {"train.jsonl": [r | {"label": 0.5 * i} for i, r in enumerate(ROWS)], "test.jsonl": ROWS},
            {},
            "a label is the number 0.5, where a class is expected",
        ),
        (
            {"train.jsonl": [r | {"label": f"id {i}"} for i, r in enumerate(ROWS)], "test.jsonl": ROWS},
            {},
            "20 different labels in 20 examples; is it the label's column",
        ),
        (
            {"train.jsonl": ROWS, "test.jsonl": ROWS},
            {"columns": ["test", "label"]},
            r"train.jsonl: no column 'test'; did you mean text\?",
        ),
        (
            {"train.jsonl": ROWS, "test.jsonl": ROWS},
            {"columns": ["text"]},
            "--columns text: classify needs TEXT,LABEL",
        ),
        (
            {"train.jsonl": ROWS, "test.jsonl": ROWS},
            {"suites": "pair"},
            r"the columns \(text, label\) are those of the suite classify; for pair give --columns TEXT,TEXT",
        ),
        ({"train.jsonl": PAIRS, "dev.jsonl": PAIRS}, {}, "those of the suite pair"),
        ({"train.conll": "w5 O\nw6 O\n", "dev.conll": "w5 O\n"}, {}, "those of the suite tag"),
        (
            {"train.csv": "a,b\n1,2\n", "dev.csv": "a,b\n1,2\n"},
            {},
            r"which columns are the text and the label\? give --columns TEXT,LABEL; there is a, b",
        ),
        (
            {"train.jsonl": PAIRS, "dev.jsonl": [PAIRS[0] | {"score": "high"}]},
            {"suites": "pair"},
            "record 1 has the label 'high', where numbers are expected",
        ),
        (
            {"train.jsonl": [*ROWS[:5], {"text": 5, "label": "x"}, *ROWS], "test.jsonl": ROWS},
            {},
            r"record 6: 'text' is no text but 5",
        ),
        (
            {"train.jsonl": ROWS, "test.jsonl": [{"text": "w5", "label": ["x", "y"]}]},
            {},
            r"record 1: 'label' is no label but \['x', 'y'\]",
        ),
        (
            {"train.jsonl": ROWS, "test.jsonl": [{"label": "x"}]},
            {},
            r"test.jsonl: record 1 has no 'text'",
        ),
        ({"train.jsonl": ROWS, "train.tsv": ROWS}, {}, "are both the train split"),
        ({"train.jsonl": '{"text": ', "test.jsonl": ROWS}, {}, "line 1 is not JSON"),
        ({"train.tsv": "text\tlabel\n\0\0", "test.jsonl": ROWS}, {}, "binary data"),
        ({"books.txt": "text"}, {}, "no task in this folder; a task is a folder with train, and dev or test"),
        (
            {"train.jsonl": ROWS, "test.jsonl": ROWS},
            {"tasks": ["tusk"]},
            r"--tasks tusk: no such task in .*; did you mean task\?",
        ),
        (
            {"train.jsonl": ROWS, "test.jsonl": ROWS},
            {"length": 4},
            "--length 4: this model takes from 8 to 322",
        ),
        ({"train.jsonl": ROWS, "test.jsonl": ROWS}, {"length": 512}, "takes from 8 to 322"),
        ({"train.jsonl": ROWS, "test.jsonl": ROWS}, {"epochs": 0}, "--epochs 0: at least 1 is needed"),
        (
            {"train.jsonl": ROWS, "test.jsonl": ROWS},
            {"learning_rate": 3.0},
            "--learning-rate 3: give one",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(
    encoder: Path, tmp_path: Path, files: Files, options: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    for name, content in files.items():
        if isinstance(content, str):
            (folder / name).write_text(content, "utf-8")
        else:
            write(folder, name, content)
    with pytest.raises(ClozeError, match=message) as error:
        evaluate(encoder, **({"suites": "classify", "data": folder, "seeds": 1} | options))
    assert "\n" not in str(error.value)


def test_places_that_are_not_folders(encoder: Path, topics: Path, tmp_path: Path) -> None:
    with pytest.raises(ClozeError, match=re.escape(f"{tmp_path}/none: no such folder")):
        evaluate(encoder, "classify", tmp_path / "none")
    with pytest.raises(ClozeError, match=r"train.jsonl: is a file; a folder is needed with train"):
        evaluate(encoder, "classify", topics / "train.jsonl")


def test_the_probe_says_what_it_needs(encoder: Path, topics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(
        ClozeError, match=r"--probe needs scikit-learn: pip install cloze-pretrain\[evaluate\]"
    ):
        evaluate(encoder, "classify", topics, probe=True)
