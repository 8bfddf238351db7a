"""The command on small runs and models: what it measures, prints and writes, and its errors of one line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_model, word_tokenizer
from transformers import BertConfig, BertModel

import cloze as package
from cloze.diagnosis.table import WIDTH
from cloze.errors import ClozeError

Cloze = Callable[..., Any]
SMALL = ("--sequences", 4, "--masks", 4, "--length", 32)
ESTIMATE = {"value", "low", "high"}


def diagnose(*arguments: Any, **options: Any) -> package.Diagnosis:
    return package.diagnose(*arguments, **({"sequences": 4, "masks": 4, "length": 32} | options))


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT as transformers saves it, with its tokenizer; not trained."""
    folder = tmp_path_factory.mktemp("stock") / "bert"
    tiny_model("bert").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text for its tokenizer: 12 documents of 40 words."""
    path = tmp_path_factory.mktemp("words") / "words.txt"
    texts = [" ".join(f"w{5 + (7 * i + j * j) % 90}" for j in range(40)) for i in range(12)]
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(trained: Any, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """diagnosis.json of a run, with everything that can be asked for."""
    out = tmp_path_factory.mktemp("whole") / "made" / "here"
    result = diagnose(trained.folder, corpus, sequences=8, weight="curvature", out=out)
    assert sorted(p.name for p in out.iterdir()) == ["diagnosis.html", "diagnosis.json"]
    content = json.loads((out / "diagnosis.json").read_text("utf-8"))
    assert content == json.loads(json.dumps(result.as_dict()))
    return content


def estimates(value: Any) -> list[dict[str, Any]]:
    """All estimates in a JSON value."""
    if isinstance(value, dict) and set(value) == ESTIMATE:
        return [value]
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [e for item in below for e in estimates(item)]


def test_the_json_has_what_is_promised(whole: dict[str, Any]) -> None:
    known = ("data_term", "mask_term", "mask_share", "total", "covariance", "break_even", "signal", "cv")
    for key in (*known, "oracle_saving"):
        assert set(whole[key]) == ESTIMATE
        assert all(math.isfinite(whole[key][end]) for end in ESTIMATE), key
        assert whole[key]["low"] < whole[key]["value"] < whole[key]["high"]
    assert set(whole["noise_scale"]) == ESTIMATE
    assert [g["name"] for g in whole["groups"]] == ["embeddings", "layer 0", "head"]
    assert set(whole["score_savings"]) == {"hidden_gradient", "residual", "product", "loss", "inverse"}
    assert (whole["hamming"][0]["distance"], whole["hamming"][-1]["distance"]) == (0.0, 1.0)
    assert [s["segments"] for s in whole["segments"]] == list(range(1, int(1 / whole["rate"]) + 1))
    assert [p["rate"] for p in whole["rates"]] == [0.08, 0.15, 0.2, 0.3, 0.4, 0.5]
    assert [p["length"] for p in whole["lengths"]] == [32, 16]
    assert set(whole["recommended"]) == {"masking", "rate", "reason"}
    assert set(whole["loss_cost"]) == {"data_term", "mask_term", "mask_share"}
    assert (whole["masking"], whole["corruption"], whole["rate"]) == ("uniform", "80/10/10", 0.3)
    assert (whole["proposal_saving"], whole["proposal_words"]) == (None, [])
    assert whole["environment"]["torch"] and whole["seconds"] > 0
    for estimate in estimates(whole):
        assert all(x is None or math.isfinite(x) for x in estimate.values())


def test_the_keys_are_all_described(whole: dict[str, Any]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text("utf-8")
    part = page[page.index("## diagnosis.json") :]
    part = part[: part.index("\n## ", 3)]
    lists = [whole[name][0] for name in ("groups", "hamming", "segments", "rates")]
    trees = [whole, whole["score_savings"], whole["recommended"], whole["loss_cost"], *lists]
    assert {key for tree in trees for key in tree if f"`{key}`" not in part} == set()


def test_the_numbers_hang_together(whole: dict[str, Any]) -> None:
    value = {key: whole[key]["value"] for key in ("data_term", "mask_term", "total", "mask_share")}
    assert value["data_term"] + value["mask_term"] == pytest.approx(value["total"])
    assert value["mask_share"] == pytest.approx(value["mask_term"] / value["total"])
    for key in ("data_term", "mask_term"):
        assert sum(g[key]["value"] for g in whole["groups"]) == pytest.approx(value[key], rel=1e-4)
    break_even, covariance = whole["break_even"]["value"], whole["covariance"]["value"]
    assert break_even == pytest.approx(value["data_term"] + covariance)
    assert whole["segments"][1]["ratio"]["value"] == pytest.approx(1 + covariance / value["mask_term"])
    cv = whole["cv"]["value"]
    assert whole["oracle_saving"]["value"] == pytest.approx(1 - 1 / (1 + cv * cv))
    savings = {name: s["value"] for name, s in whole["score_savings"].items()}
    assert max(savings.values()) <= whole["oracle_saving"]["value"] + 1e-9
    assert savings["inverse"] < savings["hidden_gradient"]
    for point in whole["rates"]:
        cost = 6 * (whole["body_parameters"] * 32 + whole["head_parameters"] * round(30 * point["rate"]))
        assert point["cost"] == pytest.approx(cost)
        assert point["variance_per_compute"]["value"] == pytest.approx(
            point["variance"]["value"] * cost / 1e9
        )
    variances = [p["variance"]["value"] for p in whole["rates"]]
    assert variances[0] > variances[3] > variances[5]  # the mask term falls with the number of masked tokens


def test_the_command_prints_tables_and_the_advice_last(
    cloze: Cloze, trained: Any, corpus: Path, tmp_path: Path
) -> None:
    result = cloze("diagnose", trained.folder, "--data", corpus, *SMALL, "--out", tmp_path / "a")
    assert result.code == 0, result.err
    content = json.loads((tmp_path / "a" / "diagnosis.json").read_text("utf-8"))
    text = result.out.splitlines()
    assert [line for line in text[1:] if len(line) > WIDTH] == []  # the first line has the paths
    last = text[text.index("What to do") + 1 :]
    assert " ".join(line.strip() for line in last) == content["recommended"]["reason"]
    assert "diagnosis.html" in result.err


def test_the_same_numbers_twice_and_others_with_another_seed(trained: Any, corpus: Path) -> None:
    first, second, other = (diagnose(trained.folder, corpus, seed=seed).measurements for seed in (0, 0, 1))
    assert first == second
    assert first.mask_term != other.mask_term


def test_a_run_has_text_of_its_own(trained: Any) -> None:
    found = diagnose(trained.folder).measurements
    assert found.setting.data == "held-out text of the run"
    assert found.setting.passes == pytest.approx(trained.summary["data"]["passes"])


def test_a_checkpoint_is_the_run_at_that_step(trained: Any, corpus: Path) -> None:
    checkpoints = sorted((trained.folder / "checkpoints").iterdir())
    newest = diagnose(checkpoints[-1], corpus).measurements
    oldest = diagnose(checkpoints[0], corpus).measurements
    run = diagnose(trained.folder, corpus).measurements
    assert (newest.mask_term, newest.setting.rate) == (run.mask_term, run.setting.rate)
    assert oldest.mask_term != run.mask_term


def test_what_a_run_wants_masked(train: Callable[..., Any], corpus: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", "masking.kind=mapnet", "masking.rate=0.2", "training.budget=30steps")
    found = diagnose(run.folder, corpus, sequences=6).measurements
    assert (found.setting.masking, found.setting.rate) == ("mapnet", 0.2)
    assert found.proposal_saving is not None and found.proposal_saving.value is not None
    assert found.proposal_saving.value <= (found.oracle_saving.value or 0.0)
    shares = [w.inclusion for w in found.proposal_words]
    assert shares == sorted(shares, reverse=True) and 0.2 < shares[0] <= 1.0
    (run.folder / "checkpoints").rename(tmp_path / "elsewhere")  # the proposal is in a checkpoint
    without = diagnose(run.folder, corpus, sequences=6).measurements
    assert without.mask_term == found.mask_term
    assert without.proposal_words != found.proposal_words


def test_a_stock_model(stock: Path, words: Path) -> None:
    found = diagnose(stock, str(words), rate=0.25).measurements
    setting = found.setting
    assert (setting.masking, setting.passes, setting.rate, setting.length) == (None, None, 0.25, 32)
    assert [g.name for g in found.groups] == ["embeddings", "layer 0", "layer 1", "head"]
    assert setting.sequences == 4


def test_python_objects_are_text_too(stock: Path, words: Path) -> None:
    from datasets import Dataset

    data = Dataset.from_list([{"text": text} for text in words.read_text("utf-8").split("\n\n")])
    assert diagnose(stock, data).measurements.setting.data == "Dataset"


def test_short_texts_give_short_sequences(stock: Path, words: Path, tmp_path: Path) -> None:
    texts = words.read_text("utf-8").split()
    (tmp_path / "short.txt").write_text("\n\n".join(" ".join(texts[20 * i : 20 * i + 20]) for i in range(3)))
    found = diagnose(stock, tmp_path / "short.txt", length=128).measurements
    assert (found.setting.sequences, found.setting.length) == (3, 22)
    assert [p.length for p in found.lengths] == [22]


def test_parameters_choose_what_is_measured(trained: Any, corpus: Path) -> None:
    everything = diagnose(trained.folder, corpus).measurements
    body = diagnose(trained.folder, corpus, parameters="body").measurements
    one = diagnose(trained.folder, corpus, parameters="*.attention.self.query.weight").measurements
    assert [g.name for g in body.groups] == [g.name for g in one.groups] == ["layer 0"]
    total, layer = (x.mask_term.value or 0.0 for x in (everything, body))
    assert total > layer > (one.mask_term.value or 0.0) > 0.0
    assert layer == pytest.approx(everything.groups[1].mask_term.value, rel=1e-4)


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
        (["--masks", 5], ("--masks 5", "even")),
        (["--masks", 2], ("--masks 2", "at least 4")),
        (["--sequences", 1], ("--sequences 1", "at least 2")),
        (["--rate", 1.0], ("--rate 1", "below 1")),
        (["--rate", "much"], ("'--rate'", "diagnose --help")),
        (["--length", 128], ("--length 128", "16 to 64")),
        (["--length", 8], ("--length 8", "16 to 64")),
        (["--weight", "adam"], ("--weight adam", "curvature")),
        (["--parameters", "*.7.*"], ("--parameters *.7.*", "names like bert.")),
        (["--text-field", "body", "--data", "nowhere.jsonl"], ("nowhere.jsonl",)),
    ],
)
def test_a_wrong_option_is_one_line(
    cloze: Cloze, trained: Any, corpus: Path, arguments: list[Any], wanted: tuple[str, ...]
) -> None:
    data = [] if "--data" in arguments else ["--data", corpus]
    one_line(cloze("diagnose", trained.folder, *data, *SMALL, *arguments), *wanted)


def test_what_is_not_there_is_one_line(cloze: Cloze, stock: Path, corpus: Path, tmp_path: Path) -> None:
    one_line(cloze("diagnose", tmp_path / "nothing", "--data", corpus), "nothing", "no such folder")
    one_line(cloze("diagnose", tmp_path, "--data", corpus), "neither a run nor a model")
    one_line(cloze("diagnose", stock, "--data", tmp_path / "no.txt"), "no.txt")
    one_line(cloze("diagnose", stock), "no text is given", "--data")
    (tmp_path / "empty.txt").write_text(" \n")
    one_line(cloze("diagnose", stock, "--data", tmp_path / "empty.txt"), "empty.txt")
    (tmp_path / "line.txt").write_text("w5 w6 w7 w8 w9 w10 w11 w12 w13 w14")
    one_line(cloze("diagnose", stock, "--data", tmp_path / "line.txt"), "too short", "1 of the at least 2")


def test_a_run_whose_text_is_gone(
    cloze: Cloze, train: Callable[..., Any], corpus: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(corpus.read_text("utf-8"), encoding="utf-8")
    run = train(tmp_path / "run", "training.budget=1steps", data=text)
    text.unlink()
    one_line(cloze("diagnose", run.folder, *SMALL), "text.txt", "use --data PATH")


def test_models_that_cannot_fill_blanks(cloze: Cloze, stock: Path, words: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=96, **sizes)).save_pretrained(tmp_path / "headless")
    word_tokenizer().save_pretrained(tmp_path / "headless")
    wanted = ("headless", "BertModel", "no masked-language-model head", "cloze pretrain adapt")
    one_line(cloze("diagnose", tmp_path / "headless", "--data", words), *wanted)
    tiny_model("bert").save_pretrained(tmp_path / "maskless")
    tokenizer = word_tokenizer()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path / "maskless")
    one_line(cloze("diagnose", tmp_path / "maskless", "--data", words), "no mask token")


def test_a_folder_that_cannot_be_written_is_found_first(
    cloze: Cloze, stock: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        one_line(cloze("diagnose", stock, "--data", words, *SMALL, "--out", out), "file", "cannot be written")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ClozeError, match="another --out folder"):
        diagnose(stock, words, out=tmp_path / "locked")
