"""The command: what it prints, writes and keeps, and its errors of one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import tiny_model, word_tokenizer
from report.test_report import Page
from transformers import AutoModelForMaskedLM, BertConfig, BertModel

import cloze as package
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites import SUITES, heldout
from cloze.evaluation.suites.base import Options, Scores, Suite

Cloze = Callable[..., Any]
SEEDS = {"news": {"f1": [0.5, 0.7, 0.6]}, "<b>bold</b>": {"f1": [0.2, 0.2, 0.2]}}


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout, "PSEUDO_TOKENS", 100)


@pytest.fixture
def run(trained: Any, tmp_path: Path) -> Path:
    """A run of its own, to be changed."""
    return Path(shutil.copytree(trained.folder, tmp_path / "run"))


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock") / "bert"
    tiny_model("bert").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "zorro"
    folder.mkdir()
    for name in ("case-subject", "case-object", "island-adjunct"):
        row = {"sentence_good": "The old river.", "sentence_bad": f"The {name} old."}
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A suite "fake" that gives what is put under "scores", or raises it."""
    box: dict[str, Any] = {"scores": SEEDS}

    def measure(subject: Subject, options: Options) -> Scores:
        if not isinstance(box["scores"], dict):
            raise box["scores"]
        return box["scores"]

    monkeypatch.setitem(SUITES, "fake", Suite("fake", "made up", measure, "f1"))
    return box


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text("utf-8"))


def metadata(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "model" / "README.md").read_text("utf-8").split("---\n")[1])


def test_a_run_gets_its_results(cloze: Cloze, run: Path, pairs: Path) -> None:
    before = (run / "model" / "README.md").read_text("utf-8")
    done = cloze("evaluate", run, "--suite", "heldout,minimal-pairs", "--data", f"minimal-pairs={pairs}")
    assert done.code == 0, done.err
    assert all(len(line) <= 80 for line in done.out.splitlines())
    assert "evaluation.json" in done.err and "evaluation.html" in done.err
    content = read(run)
    assert list(content) == ["heldout", "minimal-pairs", "_about"]
    loss = content["heldout"]["held-out text"]["loss"]
    assert set(loss) == {"mean", "std", "values"}
    assert loss["values"] == [loss["mean"]] and loss["std"] is None
    assert f"{loss['mean']:.4f}" in done.out
    assert list(content["minimal-pairs"]) == [
        "zorro/case/object",
        "zorro/case/subject",
        "zorro/island/adjunct",
    ]
    report = Page((run / "report.html").read_text("utf-8")).text
    assert "What the encoder can do" in report and "island (1)" in report
    page = Page((run / "evaluation.html").read_text("utf-8"))
    assert "Cloze evaluation of" in page.text and "pseudo_perplexity" in page.text
    # The card says what it said, and has the scores where the hub looks for them.
    after = (run / "model" / "README.md").read_text("utf-8")
    assert before.split("---\n")[2] == after.split("---\n")[2]
    card = metadata(run)
    assert card["pipeline_tag"] == "fill-mask"
    results = {r["dataset"]["name"]: r for r in card["model-index"][0]["results"]}
    assert set(results) == {"held-out text", "zorro"}
    assert results["zorro"]["task"] == {"type": "fill-mask", "name": "minimal-pairs"}
    assert {m["type"] for m in results["zorro"]["metrics"]} == {"accuracy", "accuracy_word_l2r"}
    assert results["held-out text"]["metrics"][0]["value"] == pytest.approx(loss["mean"], abs=1e-6)
    AutoModelForMaskedLM.from_pretrained(run / "model")


def test_another_model_leaves_nothing_unless_it_is_told_where(
    stock: Path, pairs: Path, cloze: Cloze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = sorted(stock.iterdir())
    (tmp_path / "words.txt").write_text("w5 w6 w7 w8 w9 w10 w11 w12", encoding="utf-8")
    done = cloze("evaluate", stock, "--suite", "heldout", "--data", "words.txt")
    assert done.code == 0 and "words.txt" in done.out and "written" not in done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["words.txt", "zorro"]
    done = cloze("evaluate", stock, "--suite", "heldout", "--data", "words.txt", "--out", "made/here")
    assert sorted(p.name for p in Path("made/here").iterdir()) == ["evaluation.html", "evaluation.json"]
    assert sorted(stock.iterdir()) == files


def test_what_was_evaluated_before_is_kept(cloze: Cloze, run: Path, pairs: Path) -> None:
    def evaluate(*arguments: object) -> None:
        assert cloze("evaluate", run, *arguments).code == 0

    evaluate("--suite", "minimal-pairs", "--data", pairs, "--tasks", "case")
    first = read(run)["minimal-pairs"]
    assert list(first) == ["zorro/case/object", "zorro/case/subject"]
    evaluate("--suite", "heldout")
    evaluate("--suite", "minimal-pairs", "--data", pairs, "--tasks", "island,object", "--seeds", 3)
    content = read(run)
    assert set(content) == {"minimal-pairs", "heldout", "_about"}
    assert set(content["minimal-pairs"]) == {*first, "zorro/island/adjunct"}
    about = {(m["suite"], task): m for m in content["_about"]["measurements"] for task in m["tasks"]}
    assert len(about) == 4
    seeds = {task: m["settings"]["seeds"] for (_, task), m in about.items()}
    assert seeds["zorro/case/subject"] == 5
    assert seeds["zorro/case/object"] == seeds["zorro/island/adjunct"] == 3
    assert len(metadata(run)["model-index"][0]["results"]) == 2


def test_a_card_keeps_the_results_of_others(cloze: Cloze, run: Path, fake: dict[str, Any]) -> None:
    card = run / "model" / "README.md"
    index = """model-index:
- name: mine
  results:
  - task: {type: fill-mask, name: by hand}
    dataset: {type: x, name: x}
    metrics: [{type: loss, value: 1.0}]
"""
    card.write_text(card.read_text("utf-8").replace("---\n", f"---\n{index}", 1), encoding="utf-8")
    for _ in range(2):
        assert cloze("evaluate", run, "--suite", "fake").code == 0
    [found] = metadata(run)["model-index"]
    assert found["name"] == "mine"
    assert [r["task"]["name"] for r in found["results"]] == ["by hand", "fake", "fake"]
    assert found["results"][1]["metrics"][0]["name"] == "f1, mean of 3 seeds (standard deviation 0.1000)"
    card.write_text("---\nmodel-index: [\n---\n", encoding="utf-8")
    done = cloze("evaluate", run, "--suite", "fake")
    assert done.code == 0 and "warning:" in done.err and "not in the model card" in done.err
    assert card.read_text("utf-8") == "---\nmodel-index: [\n---\n"


def test_an_interrupt_keeps_the_suites_that_are_done(cloze: Cloze, run: Path, fake: dict[str, Any]) -> None:
    fake["scores"] = KeyboardInterrupt()
    done = cloze("evaluate", run, "--suite", "heldout,fake")
    assert done.code == 130
    assert set(read(run)) == {"heldout", "_about"}
    fake["scores"] = package.ClozeError("nothing there")
    assert cloze("evaluate", run, "--suite", "fake").code == 2
    assert set(read(run)) == {"heldout", "_about"}


def test_a_run_that_has_gone_on_is_another_model(cloze: Cloze, run: Path, fake: dict[str, Any]) -> None:
    assert cloze("evaluate", run, "--suite", "heldout").code == 0
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    (run / "summary.json").write_text(json.dumps(summary | {"steps": 60}), encoding="utf-8")
    package.report.page.write_report(run)
    assert (
        "Measured after 6 steps; the run has gone on" in Page((run / "report.html").read_text("utf-8")).text
    )
    done = cloze("evaluate", run, "--suite", "fake")
    assert "results of step 6 are dropped" in done.err
    assert set(read(run)) == {"fake", "_about"} and read(run)["_about"]["step"] == 60


def test_every_seed_is_told(cloze: Cloze, stock: Path, fake: dict[str, Any], tmp_path: Path) -> None:
    done = cloze("evaluate", stock, "--suite", "fake", "--out", tmp_path)
    assert "0.6000 ±0.100" in done.out
    news = read(tmp_path)["fake"]["news"]["f1"]
    assert news == {"mean": pytest.approx(0.6), "std": pytest.approx(0.1), "values": [0.5, 0.7, 0.6]}
    page = Page((tmp_path / "evaluation.html").read_text("utf-8"))
    assert "0.5, 0.7, 0.6" in page.text
    assert "<b>bold</b>" in page.text and "b" not in page.tags
    assert not {"script", "iframe", "img", "object"} & set(page.tags)


def test_python_gives_the_same(stock: Path, fake: dict[str, Any]) -> None:
    found = package.evaluate(stock, "fake")
    assert isinstance(found, package.Evaluation)
    assert found.scores()["fake"]["news"]["f1"]["mean"] == pytest.approx(0.6)
    assert found.suites == {"fake": SEEDS}


def test_the_keys_are_all_described(cloze: Cloze, run: Path) -> None:
    assert cloze("evaluate", run, "--suite", "heldout").code == 0
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text("utf-8")
    part = page[page.index("## evaluation.json") :]
    part = part[: part.index("\n## ", 3)]
    about = read(run)["_about"]
    [measurement] = about["measurements"]
    score = read(run)["heldout"]["held-out text"]["loss"]
    trees = [score, about, measurement, measurement["settings"], {"_about": 0}]
    assert {key for tree in trees for key in tree if f"`{key}`" not in part} == set()


# -- mistakes ---------------------------------------------------------------------------------------------


def one_line(result: Any, *wanted: str) -> None:
    assert result.code == 2, result
    assert result.out == ""
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in result.err, result.err
    for word in wanted:
        assert word in errors[0], errors[0]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--suite", "minimal-pear"], ("--suite minimal-pear", "did you mean minimal-pairs?")),
        (["--suite", "xyz"], ("--suite xyz", "there are", "heldout")),
        (["--suite", ","], ("--suite", "name one")),
        ([], ("'--suite'", "evaluate --help")),
        (["--suite", "heldout", "--seeds", 0], ("--seeds 0", "at least 1")),
        (["--suite", "heldout", "--data", "a", "--data", "b"], ("--data b", "SUITE=PATH")),
        (["--suite", "minimal-pairs"], ("--data FOLDER",)),
        (["--suite", "minimal-pairs", "--data", "no/where"], ("no/where", "no such file")),
        (["--suite", "heldout", "--length", 4], ("--length 4", "16 to 64")),
    ],
)
def test_a_wrong_option_is_one_line(
    cloze: Cloze, trained: Any, arguments: list[Any], wanted: tuple[str, ...]
) -> None:
    one_line(cloze("evaluate", trained.folder, *arguments), *wanted)
    assert not (trained.folder / "evaluation.json").exists()


def test_models_that_are_none(cloze: Cloze, pairs: Path, tmp_path: Path) -> None:
    suite = ("--suite", "minimal-pairs", "--data", pairs)
    one_line(cloze("evaluate", tmp_path / "nothing", *suite), "nothing", "no")
    one_line(cloze("evaluate", tmp_path, *suite), "neither a run nor a model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=96, **sizes)).save_pretrained(tmp_path / "headless")
    word_tokenizer().save_pretrained(tmp_path / "headless")
    one_line(cloze("evaluate", tmp_path / "headless", *suite), "headless", "no masked-language-model head")


def test_folders_that_cannot_take_it(
    cloze: Cloze, stock: Path, fake: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(out: Path, model: Path = stock) -> Any:
        return cloze("evaluate", model, "--suite", "fake", "--out", out)

    (tmp_path / "file").write_text("")
    one_line(evaluate(tmp_path / "file"), "file", "cannot be written")
    (tmp_path / "other").mkdir()
    for content in ("[1]", "{", '{"fake": {}}', '{"_about": 3}'):
        (tmp_path / "other" / "evaluation.json").write_text(content)
        one_line(evaluate(tmp_path / "other"), "evaluation.json", "another --out folder")
    assert evaluate(tmp_path / "used").code == 0
    copied = Path(shutil.copytree(stock, tmp_path / "copied"))
    one_line(evaluate(tmp_path / "used", copied), str(stock), "another --out folder")
    monkeypatch.setattr(os, "access", lambda *_: False)
    one_line(evaluate(tmp_path / "locked"), "locked", "another --out folder")
