"""Metrics equal scikit-learn's and scipy's; entities are those of conlleval."""

from __future__ import annotations

import warnings
from itertools import pairwise, product

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from cloze.evaluation.finetuning import metrics
from cloze.evaluation.finetuning.entities import are_entities, entity_scores, iob2, spans


def guesses(classes: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    gold = draw.integers(0, classes, size)
    return gold, np.where(draw.random(size) < 0.5, gold, draw.integers(0, classes + 1, size))


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("size", [5, 400])
@pytest.mark.parametrize("seed", range(3))
def test_classes_are_scored_as_scikit_learn_does(classes: int, size: int, seed: int) -> None:
    gold, predicted = guesses(classes, size, seed)
    if classes == 2:
        predicted = predicted % 2
        assert metrics.f1(gold, predicted, 1) == pytest.approx(reference.f1_score(gold, predicted))
        assert metrics.f1(gold, predicted, 1) != pytest.approx(metrics.f1(1 - gold, predicted, 1))
    assert metrics.accuracy(gold, predicted) == pytest.approx(reference.accuracy_score(gold, predicted))
    assert metrics.accuracy(gold, predicted) == pytest.approx(
        reference.f1_score(gold, predicted, average="micro")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are never predicted
        macro = reference.f1_score(gold, predicted, average="macro")
    assert metrics.macro_f1(gold, predicted) == pytest.approx(macro)
    assert metrics.matthews(gold, predicted) == pytest.approx(reference.matthews_corrcoef(gold, predicted))


@pytest.mark.parametrize("seed", range(5))
def test_numbers_are_scored_as_scipy_does(seed: int) -> None:
    draw = np.random.default_rng(seed)
    gold = draw.integers(0, 11, 60) / 2  # with ties, as STS-B
    predicted = (gold + draw.normal(0, 2, 60)).astype(np.float32)
    assert metrics.pearson(gold, predicted) == pytest.approx(stats.pearsonr(gold, predicted)[0], abs=1e-6)
    assert metrics.spearman(gold, predicted) == pytest.approx(stats.spearmanr(gold, predicted)[0])
    ties = predicted.round()
    assert metrics.spearman(gold, ties) == pytest.approx(stats.spearmanr(gold, ties)[0])
    assert metrics.spearman(gold, predicted) == pytest.approx(metrics.spearman(gold, predicted**3))


def test_what_is_not_defined_is_0() -> None:
    same, mixed = np.ones(4, np.int64), np.array([0, 1, 1, 0])
    assert metrics.matthews(mixed, same) == metrics.pearson(mixed, same) == metrics.spearman(same, mixed) == 0
    assert metrics.f1(same, same, 0) == 0
    assert metrics.pearson(mixed, np.array([0.0, np.nan, 1.0, 2.0])) == 0


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("I-PER I-PER O I-LOC B-LOC", [("PER", 0, 2), ("LOC", 3, 4), ("LOC", 4, 5)]),  # IOB1
        ("B-A B-A I-A", [("A", 0, 1), ("A", 1, 3)]),
        ("B-A I-B I-B", [("A", 0, 1), ("B", 1, 3)]),
        ("O I-A O", [("A", 1, 2)]),
        ("S-A B-A E-A S-B", [("A", 0, 1), ("A", 1, 3), ("B", 3, 4)]),  # IOBES
        ("U-A B-A I-A L-A O", [("A", 0, 1), ("A", 1, 4)]),  # BILOU
        ("E-A E-A", [("A", 0, 1), ("A", 1, 2)]),
        ("B I O I", [("", 0, 2), ("", 3, 4)]),
        ("B-a-b I-a-b", [("a-b", 0, 2)]),
        ("O O", []),
    ],
)
def test_entities_are_read_as_conlleval_reads_them(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert spans(tags.split()) == found
    assert spans(iob2(tags.split())) == found
    assert set(iob2(tags.split())) <= {"O", *(p + "-" + k for k, _, _ in found for p in "BI")}


def slowly(tags: tuple[str, ...]) -> set[tuple[str, int, int]]:
    """Entities by trying all stretches: of one type, begun rightly, without a new beginning, and whole."""

    def begins(i: int) -> bool:
        return tags[i][0] == "B" or i == 0 or tags[i - 1][2:] != tags[i][2:]

    def inside(i: int, j: int) -> bool:
        return all(t != "O" for t in tags[i:j]) and not any(begins(k) for k in range(i + 1, j))

    ends = [(i, j) for i in range(len(tags)) for j in range(i + 1, len(tags) + 1)]
    good = [(i, j) for i, j in ends if inside(i, j) and begins(i)]
    return {(tags[i][2:], i, j) for i, j in good if not any(a == i and b > j for a, b in good)}


def test_entities_against_all_stretches() -> None:
    alphabet = ("O", "B-X", "I-X", "B-Y", "I-Y")
    everything = [tags for n in (1, 2, 3, 4) for tags in product(alphabet, repeat=n)]
    assert len(everything) == 780
    for tags in everything:
        assert set(spans(tags)) == slowly(tags), tags
    for gold, guess in zip(everything, reversed(everything), strict=True):
        if len(gold) == len(guess):
            a, b = slowly(gold), slowly(guess)
            score = entity_scores([gold, gold], [guess, gold])
            assert score["precision"] == (len(a & b) + len(a)) / max(1, len(a) + len(b))
            assert score["recall"] == (len(a & b) + len(a)) / max(1, 2 * len(a))
    for (_, _, stop), (_, start, _) in pairwise(spans(("B-X", "I-X", "B-X", "O", "I-Y"))):
        assert stop <= start


def test_an_entity_counts_only_as_a_whole() -> None:
    gold = [["B-X", "I-X", "O"], ["B-Y", "O", "O"]]
    assert entity_scores(gold, gold)["f1"] == 1
    assert entity_scores(gold, [["B-X", "O", "O"], ["B-X", "O", "O"]])["f1"] == 0  # too short, another type
    half = entity_scores(gold, [["B-X", "I-X", "O"], ["O", "O", "O"]])
    assert half == {"f1": pytest.approx(2 / 3), "precision": 1, "recall": 0.5}
    assert entity_scores(gold, [["O"] * 3] * 2) == {"f1": 0, "precision": 0, "recall": 0}


def test_parts_of_speech_are_no_entities() -> None:
    assert are_entities({"O", "B-PER", "I-PER"})
    assert not are_entities({"NN", "VB", "O"})
    assert not are_entities({"BOOK", "O"})
