"""Tagging: learnt, every word has its token whatever the tokenizer, long sentences, files, and errors."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation.made_up_tasks import (
    FAST,
    Record,
    records,
    save_encoder,
    shuffled,
    tagged,
    words,
    write,
    write_task,
)
from helpers import tiny_model, word_tokenizer

from cloze.data.tokenizer_training import train_tokenizer
from cloze.errors import ClozeError
from cloze.evaluation.finetuning.encoding import encode_words
from cloze.evaluation.finetuning.probe import probe
from cloze.evaluation.finetuning.task import Task
from cloze.evaluation.finetuning.tasks import find_tasks
from cloze.evaluation.finetuning.train import finetune
from cloze.evaluation.run import evaluate
from cloze.evaluation.subject import Subject
from cloze.models.twins import decoder_twin


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def one_task(data: Path, *columns: str) -> Task:
    (task,) = find_tasks("tag", str(data), columns=columns)
    return task


def test_entities_are_learnt(encoder: Path, tmp_path: Path) -> None:
    task, subject = one_task(write_task(tmp_path / "ner", tagged, "conll.gz", train=160)), Subject(encoder)
    assert (task.kind, task.labels) == ("entities", ("O", "B-X", "I-X", "B-Y", "I-Y"))
    found = finetune(subject, task, FAST, seeds=2)
    assert list(found) == ["f1", "precision", "recall"]
    assert min(found["f1"]) > 0.9
    probed = probe(subject, task, FAST)
    assert probed["f1"][0] > 0.9
    assert len(probed["f1"]) == 1


def test_shuffled_tags_are_not_learnt(encoder: Path, tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", shuffled(records(tagged, 160, 0), "tags"))
    write(tmp_path, "test.jsonl", records(tagged, 100, 1))
    task, subject = one_task(tmp_path), Subject(encoder)
    assert finetune(subject, task, FAST, seeds=1)["f1"][0] < 0.3
    assert probe(subject, task, FAST)["f1"][0] < 0.3


def test_parts_of_speech_are_scored_by_accuracy(encoder: Path, tmp_path: Path) -> None:
    rows = [{"words": r["tokens"], "pos": ["NN" if t == "O" else "VB" for t in r["tags"]]}
            for r in records(tagged, 240, 0)]  # fmt: skip
    write(tmp_path, "train.jsonl", rows[:200])
    write(tmp_path, "valid.jsonl", rows[200:])
    task = one_task(tmp_path, "words", "pos")
    assert (task.kind, task.labels) == ("tags", ("NN", "VB"))
    found = probe(Subject(encoder), task, FAST)
    assert set(found) == {"accuracy", "macro_f1"}
    assert found["accuracy"][0] > 0.7, "more than half of the words are NN"


TEXTS = ["The quiet widow's lantern, un-painted: £5 (or so).", "Mended by naïve carpenters in the rain!"] * 20


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "characters"])
@pytest.mark.parametrize("length", [64, 12])
def test_each_word_has_its_first_token(algorithm: Any, length: int) -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=320, algorithm=algorithm)
    sentences = [tuple(text.split()) for text in TEXTS[:2]]
    found = encode_words(tokenizer, sentences, length)
    assert found.places is not None
    words = [word for sentence in sentences for word in sentence]
    assert sum(len(places) for places in found.places) == len(words)
    assert max(len(ids) for ids in found.ids) <= length
    if length == 12:
        assert len(found) > 2, "long sentences are cut, no word is lost"
    at = iter(words)
    for ids, places in zip(found.ids, found.places, strict=True):
        for place in places:
            piece = tokenizer.decode([ids[place]]).strip().removeprefix("##")
            word = next(at)
            assert piece and word.startswith(piece), (piece, word)


def test_words_that_the_tokenizer_drops_and_words_that_are_too_long() -> None:
    found = encode_words(word_tokenizer(), [("w5", "", "w6"), ("\u200b\u200b" * 3, "w7")], 8)
    assert found.places == [[1, 0, 2], [1, 2]]
    tokenizer = train_tokenizer(TEXTS, vocab_size=320, algorithm="characters")
    found = encode_words(tokenizer, [("a" * 50, "b")], 16)
    assert [len(ids) for ids in found.ids] == [16, 3]
    assert found.places == [[1], [1]]


def test_iob1_and_iob2_are_one_task(tmp_path: Path) -> None:
    one = "w5 I-X\nw6 I-X\nw7 B-X\n\nw8 O\nw9 I-Y\n\n" * 10
    two = "w5\tB-X\nw6\tI-X\nw7\tB-X\n\nw8\tO\nw9\tB-Y\n\n" * 10
    tasks = []
    for name, text in (("one", one), ("two", two)):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            (tmp_path / name / f"{split}.conll").write_text(text)
        tasks.append(one_task(tmp_path / name))
    assert tasks[0].train == tasks[1].train
    assert tasks[0].train[0].labels == ("B-X", "I-X", "B-X")
    assert tasks[0].labels == ("O", "B-X", "I-X", "B-Y", "I-Y")


GOOD = records(tagged, 12, 0)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (GOOD, "w5 B-X\nw6\n", r"test.conll: line 2 has one field, a word and its tag are needed"),
        (GOOD, "\n\n", "the test split is empty"),
        (GOOD, "w5 B-Z\n", r"the label 'B-Z' \(record 1\) is not in train, which has O, B-X, I-X, B-Y"),
        (
            [{"tokens": r["tokens"], "tags": ["O"] * len(r["tags"])} for r in GOOD],
            "w5 O\n",
            "labels are 'O'; a task needs",
        ),
        (
            [{"tokens": ["w5", "w6"], "tags": ["O"]}] * 12,
            "w5 O\n",
            "record 1: 2 words, 1 tags; a tag is needed",
        ),
        ([{"tokens": ["w5"], "tags": [3]}] * 12, "w5 O\n", r"'tags' is no list of strings but \[3\]"),
        ([{"tokens": "w5", "tags": "O"}] * 12, "w5 O\n", "'tokens' is no list of strings but 'w5'"),
        ([{"text": "w5", "label": "x"}] * 12, "w5 O\n", "are those of the suite classify; for tag give"),
    ],
)
def test_mistakes_are_told_in_one_line(
    encoder: Path, tmp_path: Path, train: list[Record], test: str, message: str
) -> None:
    write(tmp_path, "train.jsonl", train)
    (tmp_path / "test.conll").write_text(test)
    with pytest.raises(ClozeError, match=message) as error:
        evaluate(encoder, "tag", tmp_path, seeds=1)
    assert "\n" not in str(error.value)


def decided_by_the_last(draw: random.Random) -> Record:
    """Words whose tags tell which of two words ends the sentence."""
    kind = draw.randrange(2)
    return {"tokens": [*words(draw, 5), f"w{5 + kind}"], "tags": [*(["NN", "VB"][kind],) * 5, "END"]}


def test_an_open_layer_finds_tags_that_a_later_word_decides(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "model")  # a tokenizer, and then a decoder
    decoder_twin(tiny_model("bert", initializer_range=0.05)).save_pretrained(folder)
    task = one_task(write_task(tmp_path / "task", decided_by_the_last, train=200))
    once = replace(FAST, learning_rates=(3e-3,), updates=90)
    found = {
        groups: finetune(Subject(folder, groups), task, once, seeds=1)["accuracy"][0]
        for groups in ("00", "01", "10")
    }
    assert found["00"] < 0.75, "half of five words in six, and the last"
    assert min(found["01"], found["10"]) > 0.95


def test_settings_are_tasks_of_their_own(cloze: Any, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "model")
    decoder_twin(tiny_model("bert")).save_pretrained(folder)
    data = write_task(tmp_path / "ner", tagged, train=40)
    command = ("evaluate", folder, "--suite", "tag", "--data", data, "--probe", "--unmask")
    done = cloze(*command, "00,11", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text("utf-8"))
    assert list(content["tag"]) == ["ner 00", "ner 11"]
    assert content["tag"]["ner 00"] != content["tag"]["ner 11"]
    refused = cloze(*command, "all")
    assert refused.code == 2 and "the model has 2 layers: give at most 2 bits" in refused.err
    refused = cloze("evaluate", folder, "--suite", "sentences", "--data", data, "--unmask", "01")
    assert refused.code == 2 and "--unmask: sentences trains nothing" in refused.err
    save_encoder(tmp_path / "encoder")
    refused = cloze("evaluate", tmp_path / "encoder", *command[2:], "01")
    assert refused.code == 2 and "its tokens see both sides already" in refused.err
