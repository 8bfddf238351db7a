"""Retrieval: ranks against sorting by hand, chance for shuffled pairs, and what counts as a candidate."""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation.peers import save, sentence, tsv

from cloze.errors import ClozeError
from cloze.evaluation.embedding import Embedder
from cloze.evaluation.run import evaluate
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites import retrieve
from cloze.evaluation.suites.retrieve import rank_of_right

CODE = "docstring,code"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "bert")


def measure(model: Path, data: Path, **options: object) -> dict[str, float]:
    (scores,) = evaluate(model, "retrieve", data, **options).suites["retrieve"].values()  # type: ignore[arg-type]
    return {metric: value for metric, (value,) in scores.items()}


def searches(count: int) -> list[tuple[str, str]]:
    """Queries that are half of their documents."""
    draw = np.random.default_rng(0)
    words = [sentence(draw, 10) for _ in range(count)]
    return [(" ".join(w[:5]), " ".join(w)) for w in words]


def by_hand(model: Path, queries: list[str], documents: list[str], right: list[int]) -> np.ndarray:
    embedder = Embedder(Subject(model))
    q, d = (embedder.encode(texts).astype(np.float64) for texts in (queries, documents))
    similar = (q @ d.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(d, axis=1)
    order = np.argsort(-similar, axis=1)
    return np.array([list(row).index(wanted) + 1 for row, wanted in zip(order, right, strict=True)])


def test_the_metrics_are_those_of_sorting_by_hand(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = searches(60)
    place = by_hand(model, [q for q, _ in pairs], [d for _, d in pairs], list(range(60)))
    wanted = {
        "mrr": np.mean(1 / place),
        "recall@1": np.mean(place == 1),
        "recall@10": np.mean(place <= 10),
    }
    path = tsv(tmp_path / "test.tsv", CODE, pairs)
    assert 0.1 < wanted["recall@1"] < wanted["recall@10"] < 1  # the task tells models apart
    assert measure(model, path) == pytest.approx(wanted)
    monkeypatch.setattr(retrieve, "SIMILARITIES", 150)  # two queries at once
    assert measure(model, path) == pytest.approx(wanted)


def test_shuffled_pairs_are_at_chance(model: Path, tmp_path: Path) -> None:
    pairs = searches(300)
    other = np.random.default_rng(1).permutation(300)
    shuffled = [(pairs[i][0], pairs[j][1]) for i, j in enumerate(other)]
    chance = 1 / np.arange(1, 301)
    found = measure(model, tsv(tmp_path / "a.tsv", CODE, shuffled))
    assert abs(found["mrr"] - chance.mean()) < 4 * chance.std() / 300**0.5
    assert found["recall@10"] < 10 / 300 + 4 * (10 / 300 / 300) ** 0.5
    assert measure(model, tsv(tmp_path / "b.tsv", CODE, pairs))["mrr"] > 10 * found["mrr"]


def test_rows_of_label_0_are_candidates_alone_and_equal_documents_are_one(
    model: Path, tmp_path: Path
) -> None:
    (a, x), (b, y), (c, z), (d, v) = searches(4)
    rows = [(a, x, 1), (b, y, 0), (c, z, 1), (d, z, 1), ("w5 w6", v, 0), ("w7", x, 0)]
    place = by_hand(model, [a, c, d], [x, y, z, v], [0, 2, 2])
    path = tmp_path / "dev.jsonl"
    path.write_text("\n".join(json.dumps({"doc": q, "code": t, "label": n}) for q, t, n in rows))
    assert measure(model, path)["mrr"] == pytest.approx(np.mean(1 / place))
    everything = by_hand(model, [q for q, *_ in rows], [x, y, z, v], [0, 1, 2, 2, 3, 0])
    found = measure(model, path, columns=["doc", "code"])
    assert found["mrr"] == pytest.approx(np.mean(1 / everything))
    assert found["mrr"] != pytest.approx(np.mean(1 / place))


def test_a_tie_counts_against_the_document() -> None:
    """A model that gives all texts one vector is worst, not best."""
    same = np.ones((5, 3), np.float32)
    assert rank_of_right(same, same, np.arange(5), "cpu").tolist() == [5] * 5


BAD: dict[str, tuple[str, dict[str, object], str]] = {
    "columns": ("x\ty\na\tb\n", {}, "which columns.* x, y; .*--columns query,document"),
    "a column that is not there": ("query\tcode\na\tb\n", {"columns": ["query", "cod"]}, "did you mean code"),
    "one name": ("query\tcode\na\tb\n", {"columns": ["query"]}, "give columns as in"),
    "labels": ("query\tcode\tlabel\na\tb\t2\n", {}, "label 2 is not 0 or 1"),
    "no label": ("query\tcode\tlabel\na\tb\tyes\n", {}, "column 'label' is 'yes', not a number"),
    "few": ("query\tcode\na\tb\nc\td\n", {}, "only 2 queries"),
    "negative": ("query\tcode\tlabel\na\tb\t0\nc\td\t0\ne\tf\t0\n", {}, "only 0 queries"),
    "one document": ("query\tcode\na\tb\nc\tb\nd\tb\n", {}, "all documents are the same"),
    "empty": ("query\tcode\na\t\n", {}, "column 'code' is empty"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_tables(model: Path, tmp_path: Path, what: str) -> None:
    content, options, message = BAD[what]
    path = tmp_path / "data.tsv"
    path.write_text(content)
    with pytest.raises(ClozeError, match=message):
        measure(model, path, **options)
