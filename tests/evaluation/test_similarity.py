"""Sentence and word similarity: the correlation is scipy's, a task is what the docs say, chance gives 0."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from evaluation.peers import overlapping, save, tsv
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from cloze.errors import ClozeError
from cloze.evaluation.correlation import ranks, spearman
from cloze.evaluation.embedding import Embedder, cosines
from cloze.evaluation.run import evaluate
from cloze.evaluation.subject import Subject

HEADER = "sentence1,sentence2,score"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "bert")


def sentences(model: Path, data: Path, **options: object) -> dict[str, dict[str, list[float]]]:
    return evaluate(model, "sentences", data, **options).suites["sentences"]  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=40))
def test_spearman_is_scipys_with_ties(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, float).T
    np.testing.assert_array_equal(ranks(a), rankdata(a))
    if np.ptp(a) and np.ptp(b):
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    else:
        assert spearman(a, b) == 0.0


def test_sentences_that_share_words_are_near_and_shuffled_pairs_are_not(model: Path, tmp_path: Path) -> None:
    pairs = overlapping(400)
    shuffled = np.random.default_rng(1).permutation([score for *_, score in pairs])
    tsv(tmp_path / "real.tsv", HEADER, pairs)
    tsv(tmp_path / "shuffled.tsv", HEADER, [(a, b, s) for (a, b, _), s in zip(pairs, shuffled, strict=True)])
    found = sentences(model, tmp_path)
    assert found["real"]["spearman"][0] > 0.8
    assert abs(found["shuffled"]["spearman"][0]) < 4 / 400**0.5


def test_the_score_is_scipys_of_the_cosines(model: Path, tmp_path: Path) -> None:
    pairs = overlapping(30)
    first, second, scores = zip(*pairs, strict=True)
    embedder = Embedder(Subject(model), 6)
    wanted = spearmanr(cosines(embedder.encode(first), embedder.encode(second)), scores).statistic
    found = sentences(model, tsv(tmp_path / "a.tsv", HEADER, pairs), length=6)
    assert found == {"a": {"spearman": [pytest.approx(wanted, abs=1e-12)]}}


def test_layout_of_the_tasks(model: Path, tmp_path: Path) -> None:
    pairs = overlapping(12)
    a_b_score = [(7, *pair, "NEUTRAL") for pair in pairs]
    score_a_b = [(s, a, b) for a, b, s in pairs]
    tsv(tmp_path / "stsb" / "train.tsv", HEADER, [("not", "read")])
    tsv(tmp_path / "stsb" / "test.tsv", HEADER, pairs)
    tsv(tmp_path / "sick" / "dev.tsv", "pair_ID,sentence_A,sentence_B,relatedness_score,judgment", a_b_score)
    for name, part in (("2012.a", score_a_b[:6]), ("2012.b", score_a_b[6:]), ("2016.a-b", score_a_b)):
        tsv(tmp_path / "semeval" / f"{name}.tsv", "score,sentence1,sentence2", part)
    (tmp_path / "README.md").write_text("about these data")
    found = sentences(model, tmp_path)
    assert set(found) == {"stsb", "sick.dev", "sts12", "sts16"}
    assert len({scores["spearman"][0] for scores in found.values()}) == 1  # they are the same pairs
    assert list(sentences(model, tmp_path, tasks=["sts12"])) == ["sts12"]
    assert list(sentences(model, tmp_path / "stsb")) == ["stsb"]
    one = sentences(model, tmp_path / "semeval" / "2012.a.tsv")
    assert list(one) == ["2012.a"]
    assert one["2012.a"] != found["sts12"]  # a year is all of its files together


def test_tasks_of_one_name_are_told_apart(model: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        tsv(tmp_path / folder / "a.tsv", HEADER, overlapping(5))
    assert set(sentences(model, tmp_path)) == {"one/a", "two/a"}


def test_two_tables_for_one_task(model: Path, tmp_path: Path) -> None:
    for name in ("a.tsv", "a.csv"):
        tsv(tmp_path / name, HEADER, overlapping(5))
    with pytest.raises(ClozeError, match=r"a\.tsv: task a has another table, a\.csv"):
        sentences(model, tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_named_columns_of_other_formats(model: Path, tmp_path: Path, name: str) -> None:
    pairs = overlapping(12)
    if name == "a.csv":
        lines = ["left,right,how", *(f'"{a}","{b}",{s}' for a, b, s in pairs)]
    else:
        lines = [json.dumps({"how": s, "left": a, "right": b}) for a, b, s in pairs]
    (tmp_path / name).write_text("\n".join(lines))
    found = sentences(model, tmp_path / name, columns=["left", "right", "how"])
    assert found["a"] == sentences(model, tsv(tmp_path / "b.tsv", HEADER, pairs))["b"]


def test_words(model: Path, tmp_path: Path) -> None:
    """Word vectors leave the specials out, and both kinds are correlated."""
    draw = np.random.default_rng(0)
    words = [(f"w{a}", f"w{b}") for a, b in draw.integers(5, 96, (60, 2))]
    inner = Embedder(Subject(model))
    for inputs, metric in ((False, "spearman"), (True, "embeddings")):
        a, b = (inner.encode(w, specials=False, inputs=inputs) for w in zip(*words, strict=True))
        rows = [(*pair, s) for pair, s in zip(words, cosines(a, b), strict=True)]
        found = evaluate(model, "words", tsv(tmp_path / f"{metric}.tsv", "word1,word2,score", rows))
        scores = found.suites["words"][metric]
        assert scores.pop(metric)[0] > 0.999
        assert all(values[0] < 0.99 for values in scores.values())


def test_a_word_is_tokenised_as_in_running_text(train: Callable, tmp_path: Path) -> None:
    run = train(tmp_path / "run", "training.budget=1steps")
    subject = Subject(run.folder)
    assert subject.tokenizer.tokenize(" harbour") != subject.tokenizer.tokenize("harbour")
    rows = [("harbour", "river", 3), ("widow", "sparrow", 1), ("stone", "stone", 9), ("fiddle", "winter", 5)]
    path = tsv(tmp_path / "a.tsv", "word1,word2,score", rows)
    embedder = Embedder(subject)
    a, b = (embedder.encode([f" {r[i]}" for r in rows], specials=False) for i in (0, 1))
    wanted = spearmanr(cosines(a, b), [r[2] for r in rows]).statistic
    found = evaluate(run.folder, "words", path).suites["words"]["a"]["spearman"]
    assert found == [pytest.approx(wanted, abs=1e-12)]


def test_the_command(model: Path, tmp_path: Path, cloze: Callable) -> None:
    tsv(tmp_path / "sts" / "stsb" / "test.tsv", HEADER, overlapping(20))
    tsv(
        tmp_path / "words" / "MC.tsv",
        "word1,word2,score",
        [("w5", "w6", 1), ("w7", "w8", 3), ("w9", "w5", 2)],
    )
    data = [f"--data=sentences={tmp_path / 'sts'}", f"--data=words={tmp_path / 'words'}"]
    result = cloze("evaluate", model, "--suite", "sentences,words", *data, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert "stsb" in result.out and "embeddings" in result.out
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    score = written["sentences"]["stsb"]["spearman"]
    assert score["values"] == [score["mean"]] and score["std"] is None
    assert set(written["words"]) == {"MC"}


GOOD = "a\tb\t1\nc\td\t2\ne\tf\t3\n"
HEAD = "sentence1\tsentence2\tscore\n"
BAD: dict[str, tuple[bytes | str, dict[str, object], str]] = {
    "empty": ("", {}, "the file is empty"),
    "header alone": (HEAD, {}, "no record"),
    "binary": (b"\0\1\2", {}, "binary data"),
    "wrong columns": (
        "x\ty\tz\n" + GOOD,
        {},
        "which columns.* x, y, z; .*--columns sentence1,sentence2,score",
    ),
    "misspelt column": (HEAD + GOOD, {"columns": ["sentence1", "sentence2", "scores"]}, "did you mean score"),
    "too few names": (HEAD + GOOD, {"columns": ["sentence1", "sentence2"]}, "give columns as in"),
    "a word for a score": (
        HEAD + GOOD + "g\th\thigh\n",
        {},
        "record 4: column 'score' is 'high', not a number",
    ),
    "no score": (HEAD + GOOD + "g\th\n", {}, "record 4: column 'score' is None, not a number"),
    "not a score": (HEAD + GOOD + "g\th\tnan\n", {}, "'nan', not a number"),
    "empty cell": (HEAD + GOOD + "g\t \t4\n", {}, "record 4: column 'sentence2' is empty"),
    "too many cells": (HEAD + GOOD + "g\th\t4\t5\n", {}, "line 5 has 4 fields"),
    "two pairs": (HEAD + "a\tb\t1\nc\td\t2\n", {}, "only 2 pairs; at least 3"),
    "constant scores": (HEAD + "a\tb\t1\nc\td\t1\ne\tf\t1.0\n", {}, "all scores are 1"),
    "unknown task": (HEAD + GOOD, {"tasks": ["dta"]}, "--tasks dta: .*did you mean data"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_tables(model: Path, tmp_path: Path, what: str) -> None:
    content, options, message = BAD[what]
    path = tmp_path / "data.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ClozeError, match=message) as error:
        sentences(model, path, **options)
    assert "\n" not in str(error.value)


def test_other_bad_input(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ClozeError, match="suite words needs data: give --data PATH"):
        evaluate(model, "words")
    with pytest.raises(ClozeError, match="no such file"):
        sentences(model, tmp_path / "nothing.tsv")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ClozeError, match="a table is needed"):
        sentences(model, tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_text('{"sentence1": "a", "sentence2": 5, "score": 1}')
    with pytest.raises(ClozeError, match="column 'sentence2' is 5, not text"):
        sentences(model, tmp_path / "a.jsonl")
