"""Runs that detect replaced tokens: what they measure, what goes out, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from cloze import ClozeError, Run, load
from cloze.estimate import estimate
from cloze.evaluation.subject import Subject
from cloze.recipes.load import load_recipe
from cloze.run import resolve

Train = Callable[..., Run]
Cloze = Callable[..., Any]
DETECTORS = ("rts", "electra", "c-rts")


@pytest.fixture(scope="module")
def runs(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """`runs(recipe)`: a finished run, made once."""
    made: dict[str, Run] = {}

    def run(name: str) -> Run:
        if name not in made:
            made[name] = train(tmp_path_factory.mktemp("runs") / name, recipe=name, budget="30steps")
        return made[name]

    return run


def records(run: Run, kind: str) -> list[dict[str, Any]]:
    lines = (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_run_learns_to_tell_and_leaves_a_stock_detector(name: str, runs: Callable[[str], Run]) -> None:
    run = runs(name)
    summary, measured = run.summary, records(run, "heldout")
    assert summary["heldout_of"].startswith("replaced or not")
    assert summary["model"]["reading"] == "detection"
    assert measured[0]["auc"] == pytest.approx(0.5, abs=0.12)  # untrained: the control
    assert summary["heldout_auc"] == pytest.approx(measured[-1]["auc"], abs=1e-5)
    assert (summary["unigram_loss"], summary["heldout_accuracy"]) == (None, None)
    last = records(run, "step")[-1]
    assert 0.0 < last["replaced"] <= 0.16
    kind = getattr(transformers, summary["model"]["class"])
    for folder in (run.folder / "model", max((run.folder / "checkpoints").iterdir())):
        model, report = kind.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert "replaced-token-detection" in (folder / "README.md").read_text("utf-8")
    trained = load_file(max((run.folder / "checkpoints").iterdir()) / "training.safetensors")
    own = {
        n.rpartition("model.")[2]: t
        for n, t in trained.items()
        if n.startswith("model.") and ".detector." in n
    }
    assert own and all(torch.equal(model.state_dict()[n], t) for n, t in own.items())


def test_a_generator_is_a_stock_model_beside_the_detector(runs: Callable[[str], Run], cloze: Cloze) -> None:
    run = runs("electra")
    assert run.summary["model"]["class"] == "ElectraForPreTraining"
    result = cloze("fill", run.folder / "generator", "The old [MASK].")
    assert result.code == 0 and result.out.count("%") == 5
    steps = records(run, "step")
    assert all(("losses" in step) == (step["step"] > 15) for step in steps)  # first it learns to fill blanks
    assert steps[-1]["losses"].keys() == {"main/mlm", "main/detection"}


def test_random_tokens_are_found_after_a_few_steps(runs: Callable[[str], Run]) -> None:
    assert runs("rts").summary["heldout_auc"] > 0.75


@pytest.mark.parametrize("name", DETECTORS)
def test_the_report_shows_what_is_detected(name: str, runs: Callable[[str], Run]) -> None:
    run = runs(name)
    samples = json.loads((run.folder / "samples.json").read_text("utf-8"))
    tokens = [t for example in samples["examples"] for t in example["tokens"]]
    assert all(example["judged"] for example in samples["examples"])
    assert any("original" in t for t in tokens) and not all("original" in t for t in tokens)
    assert all(0.0 <= t["p"] <= 1.0 for t in tokens)
    report = (run.folder / "report.html").read_text("utf-8")
    assert "Replaced tokens, detected" in report and "<dt>AUC</dt>" in report
    for absent in ("Blanks, filled in", "perplexity", "unigram", "Which words are learnt"):
        assert absent not in report


def test_the_command_ends_with_an_example(
    cloze: Cloze, corpus: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    sets = [part for setting in tiny for part in ("--set", setting)]
    result = cloze(
        "pretrain", "rts", "--data", corpus, "--out", tmp_path / "run", *sets, "--budget", "4steps"
    )
    assert result.code == 0
    assert "AUC" in result.out and "0.5 is chance" in result.out
    assert "(missed<original)" in result.out


@pytest.mark.parametrize("name", DETECTORS)
def test_what_needs_a_masked_model_is_refused_in_one_line(
    name: str, runs: Callable[[str], Run], cloze: Cloze, tmp_path: Path
) -> None:
    run = runs(name)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"sentence_good": "The old river.", "sentence_bad": "River the old."}\n')
    for arguments in (
        ("fill", run.folder, "The old [MASK]."),
        ("evaluate", run.folder, "--suite", "minimal-pairs", "--data", pairs, "--out", tmp_path),
        ("evaluate", run.folder, "--suite", "heldout", "--out", tmp_path),
    ):
        result = cloze(*arguments)
        assert result.code == 2
        assert "Traceback" not in result.err
        assert "tells replaced tokens from original ones" in result.err.splitlines()[-1]
    with pytest.raises(ClozeError, match="fills no blanks"):
        load(run.folder)


def test_the_encoder_of_a_detector_is_read_by_the_other_suites(runs: Callable[[str], Run]) -> None:
    run = runs("rts")
    body = Subject(run.folder).body()
    own = run.model.base_model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in body.state_dict().items() if name in own)


def test_export_names_the_class_that_loads_it(
    runs: Callable[[str], Run], cloze: Cloze, tmp_path: Path
) -> None:
    result = cloze("export", runs("rts").folder, "--to", tmp_path / "out")
    assert result.code == 0 and "AutoModelForTokenClassification.from_pretrained" in result.out


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_can_be_diagnosed(
    name: str, runs: Callable[[str], Run], cloze: Cloze, tmp_path: Path
) -> None:
    out = tmp_path / "diagnosis"
    sizes = ("--sequences", 4, "--masks", 4, "--length", 24, "--out", out)
    result = cloze("diagnose", runs(name).folder, *sizes)
    assert (result.code, "Traceback" in result.err) == (0, False), result.err
    found = json.loads((out / "diagnosis.json").read_text("utf-8"))
    assert found["mask_term"]["value"] > 0.0 and not found["score_savings"]
    refused = cloze("diagnose", runs(name).folder, *sizes, "--weight", "curvature")
    assert refused.code == 2 and "predicts no tokens" in refused.err.splitlines()[-1]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, train: Train, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", recipe=name)
    part = tmp_path / "part"
    shutil.copytree(whole.folder, part)
    shutil.rmtree(part / "checkpoints" / "step-00000006")
    (part / "summary.json").unlink()
    train(part, recipe=name, resume=True)
    a, b = (
        load_file(folder / "checkpoints" / "step-00000006" / "training.safetensors")
        for folder in (whole.folder, part)
    )
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_dry_run_knows_that_every_token_is_judged(name: str, corpus: Path, tiny: tuple[str, ...]) -> None:
    recipe, _ = resolve(
        name, corpus, overrides=[*tiny, *(("stages=[{use: main}]",) if name == "electra" else ())]
    )
    assert "512 predicted tokens" in estimate(recipe)["masking"]


def test_detection_before_masked_modelling_with_one_encoder(train: Train, tmp_path: Path) -> None:
    variant = (
        "variants={rts: {corruption: {kind: replace, mask: 0.0, random: 1.0}, objective: {kind: detection}}}"
    )
    stages = "stages=[{share: 0.5, use: rts}, {share: 0.5, use: {rts: 1, main: 3}}]"
    run = train(tmp_path / "run", variant, stages)
    assert run.summary["model"]["class"] == "BertForMaskedLM"
    last = records(run, "step")[-1]
    assert last["losses"].keys() == {"rts/detection", "main/mlm"} and "rts/auc" in last


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("masking={kind: none}", "replaces nothing"),
        ("masking={kind: mapnet}", "learns from losses of hidden tokens"),
        ("visibility.kind=causal", "reads whole texts"),
        ("corruption.mask=0.5", "mask"),
        ("corruption={kind: replace, mask: 0.8, random: 0.1}", "a mask token is no riddle"),
    ],
)
def test_what_cannot_be_detected_is_refused(change: str, message: str) -> None:
    with pytest.raises(ClozeError, match=message):
        load_recipe("rts", [change])


def test_a_cluster_table_is_learnt_and_saved(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", recipe="c-rts", budget="30steps")
    last = load_file(max((run.folder / "checkpoints").iterdir()) / "training.safetensors")
    table = last["buffer.corruption.table"]
    assert table.std() > 0.5 and (last["buffer.corruption.sizes"] > 0).all()
    logged = [record["cluster_skew"] for record in records(run, "step")]
    assert logged[-1] > 0.001
