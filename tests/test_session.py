"""A run from beginning to end: what it leaves, and that stopping, resuming and repeating change nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertModel, pipeline

import cloze
from cloze import ClozeError, Run, session
from cloze.diagnosis import online
from cloze.masking import stratified, trust
from cloze.masking.base import Evidence
from cloze.methods.token_prediction import TokenPrediction
from cloze.recipes.load import dump, load_recipe
from cloze.run import resolve
from cloze.session import Interrupted
from cloze.training import precision
from cloze.training.budget import Budget
from cloze.training.loop import Trainer

Train = Callable[..., Run]

UNIFORM = ("training.optimizer.kind=adamw",)
WORDS = (
    "masking={kind: words, rate: {start: 0.3, end: 0.15}}",
    "training.phases=[{share: 0.5, length: 32, rows: 8}, {share: 0.5, length: 64, rows: 4}]",
    "training.micro_tokens=128",
)
SPANS = ("masking.kind=spans", "model.dropout=0.1", "training.schedule.kind=cosine")
CAUSAL = (
    "variants={causal: {masking: {kind: none}, visibility: {kind: causal}, objective: {kind: next_token}}}"
)
MIXED = (CAUSAL, "stages=[{use: {causal: 1, main: 3}}]", "training.micro_tokens=320", "model.dropout=0.1")
SWITCH = (CAUSAL, "stages=[{share: 0.4, use: causal}, {share: 0.6}]")  # after two steps
FLAT = "training.schedule={kind: constant, warmup: 0.0}"
TIMES = {"seconds", "tokens_per_second", "took"}


class Stop:
    """A listener that sends a signal to this process at the first record of a kind at a step."""

    def __init__(self, step: int, kind: str = "step", number: int = signal.SIGINT) -> None:
        self.at, self.number = (kind, step), number
        self.begun: list[int] = []

    def begin(self, steps: int) -> None:
        self.begun.append(steps)

    def record(self, record: dict[str, Any]) -> None:
        if (record["kind"], record["step"]) == self.at:
            os.kill(os.getpid(), self.number)


def metrics(folder: Path, but: set[str] = TIMES) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in but} for line in lines]


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


def assert_same_weights(a: Path, b: Path) -> None:
    """All parameters, the optimisers' state and the exported model, bit for bit."""
    for name in ("checkpoints", "model"):
        one, other = (f if name == "model" else newest(f.parent) for f in (a / name, b / name))
        for file in sorted(p.name for p in one.glob("*.safetensors")):
            expected, got = load_file(one / file), load_file(other / file)
            assert expected.keys() == got.keys()
            assert all(torch.equal(expected[k], got[k]) for k in expected), file


def assert_same_run(a: Path, b: Path) -> None:
    assert_same_weights(a, b)
    assert metrics(a) == metrics(b)
    for name in ("samples.json", "summary.json"):
        one, other = (json.loads((f / name).read_text("utf-8")) for f in (a, b))
        assert {k: v for k, v in one.items() if k not in TIMES} == {
            k: v for k, v in other.items() if k not in TIMES
        }


# -- what a run leaves ------------------------------------------------------------------------------------


def test_the_folder(trained: Run) -> None:
    names = {p.name for p in trained.folder.iterdir()}
    assert names == {
        "checkpoints", "metrics.jsonl", "model", "recipe.yaml", "report.html", "samples.json", "summary.json",
    }  # fmt: skip
    assert [p.name for p in sorted((trained.folder / "checkpoints").iterdir())] == [
        "step-00000003",
        "step-00000006",
    ]


def test_the_summary(trained: Run) -> None:
    summary = trained.summary
    assert summary == json.loads((trained.folder / "summary.json").read_text("utf-8"))
    assert summary["recipe"] == "mlm"
    assert summary["status"] == "finished"
    assert summary["steps"] == summary["budget_steps"] == 6
    assert 0.95 * 6 * 8 * 64 < summary["tokens_seen"] <= 6 * 8 * 64
    assert summary["parameters"] == sum(p.numel() for p in trained.model.parameters())
    assert summary["tokens_per_second"] == pytest.approx(
        summary["tokens_seen"] / summary["seconds"], rel=0.05
    )
    assert 0.0 <= summary["heldout_accuracy"] <= 1.0
    assert 3.0 < summary["unigram_loss"] < summary["heldout_loss_initial"]
    assert summary["heldout_loss"] < summary["heldout_loss_initial"]


def test_the_metrics(trained: Run) -> None:
    lines = metrics(trained.folder, but=set())
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("heldout", 0), ("step", 2), ("heldout", 3), ("step", 4), ("step", 6), ("heldout", 6),
    ]  # fmt: skip
    both = {"kind", "step", "tokens", "seconds", "loss", "predicted"}
    only = {
        "step": {"learning_rate", "gradient_norm", "rate", "tokens_per_second"},
        "heldout": {"accuracy"},
    }
    for line in lines:
        assert line.keys() == both | only[line["kind"]]
        assert all(isinstance(v, int | float) for k, v in line.items() if k != "kind")
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    assert all(line["rate"] == pytest.approx(0.3, abs=0.03) for line in lines if line["kind"] == "step")
    ends = [line["loss"] for line in lines if line["kind"] == "heldout"]
    assert ends[0] == pytest.approx(trained.summary["heldout_loss_initial"], rel=1e-5)
    assert ends[-1] == pytest.approx(trained.summary["heldout_loss"], rel=1e-5)


def test_a_line_of_metrics_is_the_mean_of_its_steps(trained: Run, train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", "training.log_every=1")
    each = [line for line in metrics(run.folder, but=set()) if line["kind"] == "step"]
    pairs = [line for line in metrics(trained.folder) if line["kind"] == "step"]
    assert (len(each), len(pairs)) == (6, 3)
    for first, second, line in zip(each[::2], each[1::2], pairs, strict=True):
        weights = first["predicted"], second["predicted"]
        mean = (first["loss"] * weights[0] + second["loss"] * weights[1]) / sum(weights)
        assert line["loss"] == pytest.approx(mean, abs=2e-5)
        assert all(line[key] == second[key] for key in ("step", "tokens", "gradient_norm", "learning_rate"))


def test_the_model_loads_with_stock_classes(trained: Run) -> None:
    assert type(trained.model).__name__ == "BertForMaskedLM"
    assert trained.model.config._attn_implementation != "cloze"
    assert trained.tokenizer.model_max_length == trained.model.config.max_position_embeddings == 64
    fill = pipeline("fill-mask", model=str(trained.folder / "model"))
    guesses = fill(f"The old river {trained.tokenizer.mask_token} the stone at dawn.")
    assert len(guesses) == 5
    assert sum(g["score"] for g in guesses) < 1.0
    card = (trained.folder / "model" / "README.md").read_text("utf-8")
    assert "pipeline_tag: fill-mask" in card
    assert f"{trained.summary['parameters']:,} parameters" in card


def test_the_model_computes_what_was_evaluated(trained: Run) -> None:
    """The held-out loss again, by stock code on the saved folder: one sample at a time, full logits."""
    from cloze.evaluation.heldout import SEED, HeldOutSet

    works: list[Any] = []
    original = HeldOutSet.evaluate

    def keep(self: HeldOutSet, method: Any, *args: Any) -> Any:
        works[:] = [method.examine(batch, plan, SEED) for batch, plan in self.items()]
        return original(self, method, *args)

    recipe = load_recipe(str(trained.folder / "recipe.yaml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldOutSet, "evaluate", keep)
        again = cloze.pretrain(recipe, out=trained.folder.parent / "again")
    model, total, count = trained.model.eval(), 0.0, 0
    with torch.no_grad():
        for work in works:
            ids = work.views[0].ids.flatten()
            for sample in range(work.batch.samples):
                inside = (work.batch.segments == sample).flatten().nonzero().flatten()
                log_p = model(input_ids=ids[inside][None]).logits[0].double().log_softmax(-1)
                for place, label in zip(work.places.tolist(), work.labels.tolist(), strict=True):
                    if (inside == place).any():
                        total -= log_p[(inside == place).nonzero().item(), label].item()
                        count += 1
    assert count == trained.summary["data"]["heldout_tokens_predicted"]
    assert total / count == pytest.approx(trained.summary["heldout_loss"], abs=1e-4)
    assert_same_run(trained.folder, again.folder)  # recipe.yaml is runnable, and gives the same run


def test_the_recipe_is_the_resolved_one(trained: Run, corpus: Path, tiny: tuple[str, ...]) -> None:
    text = (trained.folder / "recipe.yaml").read_text("utf-8")
    again = load_recipe(str(trained.folder / "recipe.yaml"))
    assert again == resolve("mlm", corpus, overrides=tiny)[0]
    assert dump(again) == text


def test_every_checkpoint_is_a_model_from_step_0(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", "training.keep=9", "training.budget=3steps", "training.checkpoint_every=1")
    folders = sorted((run.folder / "checkpoints").iterdir())
    assert [f.name for f in folders] == [f"step-{i:08d}" for i in range(4)]
    for folder in folders:
        model = AutoModelForMaskedLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert model(**tokenizer("The old river", return_tensors="pt")).logits.isfinite().all()


def test_the_report_tells_this_run(trained: Run) -> None:
    page = (trained.folder / "report.html").read_text("utf-8")
    assert f"{trained.summary['heldout_loss']:.2f}" in page
    assert "has not finished" not in page
    assert "<script" not in page


# -- stopping and going on --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [UNIFORM, WORDS, SPANS, MIXED, SWITCH], ids=["uniform", "words", "spans", "mixed", "switch"]
)
@pytest.mark.parametrize(
    ("step", "kind", "number"),
    [(2, "step", signal.SIGINT), (3, "heldout", signal.SIGTERM)],
    ids=["interrupted after 2 steps", "terminated after 3"],
)
def test_a_resumed_run_is_bit_equal(
    options: tuple[str, ...], step: int, kind: str, number: int, train: Train, tmp_path: Path
) -> None:
    options = (*options, "training.checkpoint_every=100")
    whole = train(tmp_path / "whole", *options)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop = Stop(step, kind, number)
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path / "parts", *options, listeners=[stop])
    assert (stopped.value.step, stopped.value.signal) == (step, number)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert stop.begun == [6]
    summary = json.loads((tmp_path / "parts" / "summary.json").read_text("utf-8"))
    assert (summary["status"], summary["steps"]) == ("stopped", step)
    AutoModelForMaskedLM.from_pretrained(tmp_path / "parts" / "model")
    assert "was stopped" in (tmp_path / "parts" / "report.html").read_text("utf-8")
    train(tmp_path / "parts", *options, resume=True)
    assert_same_run(whole.folder, tmp_path / "parts")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("options", [UNIFORM, WORDS, MIXED], ids=["uniform", "words", "mixed"])
def test_workers_change_nothing_not_even_on_a_resume(
    options: tuple[str, ...], train: Train, tmp_path: Path
) -> None:
    whole = train(tmp_path / "whole", *options)
    two = (*options, "training.workers=2")
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", *two, listeners=[Stop(2)])
    train(tmp_path / "parts", *two, resume=True)
    for file in ("summary.json", "samples.json"):
        assert (tmp_path / "parts" / file).is_file()
    assert_same_weights(whole.folder, tmp_path / "parts")
    assert metrics(whole.folder) == metrics(tmp_path / "parts")


def test_another_seed_is_another_run(trained: Run, train: Train, tmp_path: Path) -> None:
    """The control of all the equalities here."""
    other = train(tmp_path / "run", "seed=1")
    assert metrics(other.folder) != metrics(trained.folder)
    with pytest.raises(AssertionError):
        assert_same_weights(trained.folder, other.folder)


def test_a_resume_in_another_precision_says_so(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(precision, "_multiplies_bf16", lambda _: False)
    train(tmp_path / "run", "training.precision=auto", budget="3steps")
    assert "instead of" not in caplog.text
    monkeypatch.setattr(precision, "_multiplies_bf16", lambda _: True)
    run = train(tmp_path / "run", "training.precision=auto", resume=True)
    assert "precision: bf16 instead of fp32" in caplog.text
    assert run.summary["environment"]["precision"] == "bf16"


@pytest.mark.parametrize(("masking", "steps", "said"), [
    ("{kind: uniform, rate: 0.2}", 4000, "fully_explored, rate: 0.2, units: tokens}"),
    ("{kind: words, rate: 0.2}", 4000, "fully_explored, rate: 0.2, units: words}"),
    ("{kind: uniform, rate: 0.2}", 2, None),
    ("{kind: uniform, rate: {start: 0.3, end: 0.1}}", 4000, None),
    ("{kind: fully_explored, rate: 0.2}", 4000, None),
])  # fmt: skip
def test_text_that_comes_again_brings_a_hint(
    masking: str, steps: int, said: str | None, train: Train, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(Interrupted):
        train(tmp_path / "run", f"masking={masking}", budget=f"{steps}steps", listeners=[Stop(0, "heldout")])
    assert (f"masking={{kind: {said}" in caplog.text) == (said is not None)
    assert ("the text comes" in caplog.text) == (said is not None)


def test_two_interruptions(train: Train, tmp_path: Path, trained: Run) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path / "run", listeners=[Stop(2)])
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path / "run", resume=True, listeners=[Stop(4)])
    assert stopped.value.step == 4
    train(tmp_path / "run", resume=True)
    assert_same_run(trained.folder, tmp_path / "run")


@pytest.mark.parametrize("recipe", ["gpt-bert", "clm-then-mlm", "prefix", "structural", "enc-dec"])
def test_an_interruption_in_the_middle_of_methods(recipe: str, train: Train, tmp_path: Path) -> None:
    rows = "training.phases=[{share: 1.0, length: 64, rows: 16}]"
    whole = train(tmp_path / "whole", rows, recipe=recipe)
    with pytest.raises(Interrupted):
        train(tmp_path / "run", rows, recipe=recipe, listeners=[Stop(2)])
    train(tmp_path / "run", rows, recipe=recipe, resume=True)
    assert_same_run(whole.folder, tmp_path / "run")


def no_steps(*_: Any, **__: Any) -> Any:
    raise AssertionError("a step was trained")


def test_a_finished_run_is_shown_again(trained: Run, train: Train, tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    monkeypatch.setattr(Trainer, "step", no_steps)
    again = train(folder, resume=True)
    assert again.summary == trained.summary
    changed = [p.name for p, (time, _) in before.items() if p.stat().st_mtime_ns != time]
    assert set(changed) <= {"recipe.yaml"}
    assert all(p.read_bytes() == content for p, (_, content) in before.items())


def test_a_kill_before_the_report_is_mended(
    trained: Run, train: Train, tmp_path: Path, monkeypatch: Any
) -> None:
    def killed(_folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cloze.report.page.write_report", killed)
        train(tmp_path / "run")
    monkeypatch.setattr(Trainer, "step", no_steps)
    train(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "report.html").is_file()
    assert_same_run(trained.folder, tmp_path / "run")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_larger_budget_goes_on(optimizer: str, train: Train, tmp_path: Path) -> None:
    options = (FLAT, f"training.optimizer.kind={optimizer}")
    longer = train(tmp_path / "longer", *options, budget="10steps")
    train(tmp_path / "run", *options)
    run = train(tmp_path / "run", *options, budget="10steps", resume=True)
    assert (run.summary["steps"], run.summary["status"]) == (10, "finished")
    assert_same_weights(longer.folder, run.folder)
    assert "budget changed to 10steps" in [line.get("message") for line in metrics(run.folder)]
    steps = [line["step"] for line in metrics(run.folder) if line["kind"] == "step"]
    assert steps == [2, 4, 6, 8, 10]


def test_a_budget_of_time_after_one_of_steps_keeps_the_momentum(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = train(tmp_path / "longer", FLAT, budget="10steps")
    train(tmp_path / "run", FLAT)
    monkeypatch.setattr(Budget, "steps", lambda *_: 4)
    run = train(tmp_path / "run", FLAT, budget="1h", resume=True)
    assert run.summary["steps"] == 10
    assert_same_weights(longer.folder, run.folder)


def test_a_budget_of_time_is_steps_once(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate, count = Trainer.calibrate, []

    def counted(self: Trainer) -> float:
        count.append(calibrate(self, 2, 1))
        return 0.1

    monkeypatch.setattr(Trainer, "calibrate", counted)
    with pytest.raises(Interrupted):
        train(tmp_path / "run", budget="3s", listeners=[Stop(2)])
    planned = json.loads((newest(tmp_path / "run") / "state.json").read_text())["steps"]
    assert 3 <= planned <= 30
    run = train(tmp_path / "run", budget="3s", resume=True)
    assert run.summary["steps"] == run.summary["budget_steps"] == planned
    assert len(count) == 1


def test_a_loss_that_is_not_finite(
    train: Train, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, steps, keys = TokenPrediction.forward, [], []

    def broken(self: TokenPrediction, work: Any) -> Any:
        outcome = forward(self, work)
        steps.extend([None] * torch.is_grad_enabled())  # held-out forward passes are none
        if len(steps) == 5:
            keys.extend(work.batch.keys.tolist())
            outcome.sums["mlm"] = outcome.sums["mlm"] * float("nan")
        return outcome

    with monkeypatch.context() as patch, pytest.raises(ClozeError) as stop:
        patch.setattr(TokenPrediction, "forward", broken)
        train(tmp_path / "run")
    message = str(stop.value)
    assert "at step 4;" in message
    assert str(keys[0]) in message
    assert "step-00000004" in message
    assert metrics(tmp_path / "run")[-1]["kind"] == "note"
    assert newest(tmp_path / "run").name == "step-00000004"
    train(tmp_path / "run", resume=True)
    assert_same_weights(trained.folder, tmp_path / "run")
    assert [m for m in metrics(tmp_path / "run") if m["kind"] != "note"] == metrics(trained.folder)


def test_a_truncated_checkpoint_falls_back(trained: Run, train: Train, tmp_path: Path, caplog: Any) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    file = newest(folder) / "training.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING, "cloze"):
        train(folder, resume=True)
    assert "step-00000006 is damaged (training.safetensors" in caplog.text
    assert_same_run(trained.folder, folder)


def test_all_checkpoints_damaged(trained: Run, train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    for checkpoint in (folder / "checkpoints").iterdir():
        (checkpoint / "state.json").unlink()
    with pytest.raises(ClozeError, match="every checkpoint is damaged"):
        train(folder, resume=True)
    assert (folder / "model" / "model.safetensors").is_file()


def test_a_save_that_fails_keeps_the_last_one(
    train: Train, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    from cloze.training import state

    save = state.save_file

    def full(tensors: Any, path: Path) -> None:
        if "00000006" in str(path):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, path)

    with (
        monkeypatch.context() as patch,
        pytest.raises(ClozeError, match=r"step 6 could not be saved.*No space"),
    ):
        patch.setattr(state, "save_file", full)
        train(tmp_path / "run")
    left = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["step-00000000", "step-00000003"]
    train(tmp_path / "run", resume=True)
    assert_same_run(trained.folder, tmp_path / "run")


# -- the out folder ---------------------------------------------------------------------------------------


def test_a_run_is_not_trained_over(trained: Run, train: Train) -> None:
    before = {p: p.read_bytes() for p in trained.folder.rglob("*") if p.is_file()}
    with pytest.raises(ClozeError, match="holds a run already: use --resume"):
        train(trained.folder)
    assert {p: p.read_bytes() for p in trained.folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("resume", [False, True])
def test_other_peoples_files_are_left_alone(resume: bool, train: Train, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ClozeError, match="holds no run of cloze"):
        train(tmp_path, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ClozeError, match="is a file"):
        train(tmp_path / "thesis.tex", resume=resume)


def test_a_folder_that_cannot_be_written(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:  # root may write everywhere
        with pytest.raises(ClozeError, match="cannot be written"):
            train(Path("/proc/cloze"))
        return
    tmp_path.chmod(0o500)
    with pytest.raises(ClozeError, match="cannot be written"):
        train(tmp_path / "run")


def test_a_failed_start_does_not_take_the_folder(trained: Run, train: Train, tmp_path: Path) -> None:
    with pytest.raises(ClozeError, match="no such file"):
        train(tmp_path / "run", data=tmp_path / "tpyo.txt")
    train(tmp_path / "run")
    assert_same_run(trained.folder, tmp_path / "run")


def test_resume_of_nothing_starts(trained: Run, train: Train, tmp_path: Path) -> None:
    train(tmp_path / "run", resume=True)
    assert_same_run(trained.folder, tmp_path / "run")


def test_a_changed_recipe_asks_for_force(trained: Run, train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    change = "masking.rate=0.2"
    with pytest.raises(ClozeError, match=r"masking\.rate: 0\.3 -> 0\.2.*--force"):
        train(folder, change, resume=True, budget="8steps")
    assert load_recipe(str(folder / "recipe.yaml")).masking.rate == 0.3
    run = train(folder, change, resume=True, force=True, budget="8steps")
    assert run.summary["steps"] == 8
    assert run.summary["choices"]["masking"] == "single tokens, 20%"
    assert load_recipe(str(folder / "recipe.yaml")).masking.rate == 0.2


def test_force_with_other_phases_and_another_evaluation(trained: Run, train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    changes = ("evaluation.tokens=500", WORDS[1])
    run = train(folder, *changes, resume=True, force=True, budget="8steps")
    assert run.summary["steps"] == 8
    fresh = train(tmp_path / "fresh", *changes, budget="1steps")
    assert run.summary["heldout_loss_initial"] == fresh.summary["heldout_loss_initial"]


def test_what_changes_nothing_needs_no_force(trained: Run, train: Train, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path / "run", listeners=[Stop(2)])
    free = ("about=other words", "training.workers=0", "training.keep=1", "training.checkpoint_every=2")
    train(tmp_path / "run", *free, resume=True)
    assert_same_weights(trained.folder, tmp_path / "run")


def test_a_run_of_an_earlier_version_goes_on(trained: Run, train: Train, tmp_path: Path) -> None:
    """Its recipe lacks fields that came later, which have their defaults."""
    with pytest.raises(Interrupted):
        train(tmp_path / "run", listeners=[Stop(2)])
    file = newest(tmp_path / "run") / "state.json"
    state = json.loads(file.read_text("utf-8"))
    for field in ("variants", "stages"):
        del state["recipe"][field]
    assert state["recipe"]["tokenizer"].pop("lowercase") is False
    file.write_text(json.dumps(state), encoding="utf-8")
    train(tmp_path / "run", resume=True)
    assert_same_weights(trained.folder, tmp_path / "run")
    with pytest.raises(ClozeError, match=r"tokenizer\.lowercase: False -> True"):
        train(tmp_path / "run", "tokenizer.lowercase=true", resume=True, budget="9steps")


def test_changed_text_is_noticed(train: Train, corpus: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    shutil.copy(corpus, text)
    tokenizer = tmp_path / "run" / "model"
    train(tmp_path / "run", data=text)
    with text.open("a", encoding="utf-8") as file:
        file.write("\n\nQuite another zebra xylophone quizzed jovial lynxes. " * 200)
    for force in (False, True):
        with pytest.raises(ClozeError, match="its text has changed and gives another tokenizer"):
            train(tmp_path / "run", data=text, budget="8steps", resume=True, force=force)
    keep = f"tokenizer={{kind: load, path: {tokenizer}}}"
    run = train(tmp_path / "run", keep, data=text, budget="8steps", resume=True, force=True)
    assert run.summary["steps"] == 8
    with text.open("a", encoding="utf-8") as file:
        file.write("\n\nOnce more.")
    with pytest.raises(ClozeError, match="the text has changed since this run began: use --force"):
        train(tmp_path / "run", keep, data=text, budget="9steps", resume=True)
    run = train(tmp_path / "run", keep, data=text, budget="9steps", resume=True, force=True)
    assert run.summary["steps"] == 9


def test_the_same_text_written_anew_is_no_change(
    train: Train, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine: files have other times there, and nothing is in the cache."""
    text = tmp_path / "text.txt"
    shutil.copy(corpus, text)
    train(tmp_path / "run", data=text)
    os.utime(text, ns=(0, 0))
    monkeypatch.setenv("CLOZE_CACHE", str(tmp_path / "elsewhere"))
    assert train(tmp_path / "run", data=text, budget="8steps", resume=True).summary["steps"] == 8


def test_a_resume_that_fails_leaves_the_recipe(train: Train, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path / "run", listeners=[Stop(2)])
    before = (tmp_path / "run" / "recipe.yaml").read_text("utf-8")
    with pytest.raises(ClozeError, match="no such file"):
        train(tmp_path / "run", data=tmp_path / "gone.txt", resume=True, force=True)
    assert (tmp_path / "run" / "recipe.yaml").read_text("utf-8") == before


def test_force_goes_on_with_a_policy_that_learns(train: Train, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path / "run", listeners=[Stop(2)])
    run = train(tmp_path / "run", "masking={kind: mapnet, rate: 0.3}", resume=True, force=True)
    assert run.summary["steps"] == 6
    assert "mapnet" in (run.folder / "recipe.yaml").read_text("utf-8")


# -- what is trained on -----------------------------------------------------------------------------------


def test_held_out_text_of_its_own(
    train: Train, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = tmp_path / "held.txt"
    held.write_text("\n\n".join(corpus.read_text("utf-8").split("\n\n")[:100]), encoding="utf-8")
    run = train(tmp_path / "run", f"data.heldout.path={held}")
    assert "100% of the held-out text" in caplog.text  # which is in the training text, too
    caplog.clear()
    usual = train(tmp_path / "usual")
    assert "of the held-out text" not in caplog.text
    data, usual_data = run.summary["data"], usual.summary["data"]
    assert (
        data["tokens_train"] > usual_data["tokens_train"] + 5000
    )  # nothing is held out of the training text
    assert data["tokens_heldout"] == pytest.approx(held.stat().st_size / 2.3, rel=0.3)


def test_weighted_sources(train: Train, corpus: Path, trained: Run, tmp_path: Path) -> None:
    text = corpus.read_text("utf-8").split("\n\n")
    (tmp_path / "news.txt").write_text("\n\n".join(text[:600]), encoding="utf-8")
    with (tmp_path / "wiki.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": t}) + "\n" for t in text[600:])
    run = train(
        tmp_path / "run", data=[f"news=0.9:{tmp_path / 'news.txt'}", f"wiki=0.1:{tmp_path / 'wiki.jsonl'}"]
    )
    assert run.summary["data"]["sources"] == [str(tmp_path / "news.txt"), str(tmp_path / "wiki.jsonl")]
    assert run.summary["data"]["documents"] == len(text)
    assert run.summary["unigram_loss"] == pytest.approx(trained.summary["unigram_loss"], abs=0.1)
    recipe = load_recipe(str(run.folder / "recipe.yaml"))
    assert [(s.name, s.weight) for s in recipe.data.sources] == [("news", 0.9), ("wiki", 0.1)]
    again = cloze.pretrain(recipe, out=tmp_path / "again")
    assert_same_run(run.folder, again.folder)


def test_a_datasets_object(train: Train, corpus: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    def text() -> Dataset:
        return Dataset.from_dict(
            {"text": corpus.read_text("utf-8").split("\n\n"), "number": list(range(1279))}
        )

    with pytest.raises(Interrupted):
        train(tmp_path / "run", data=text(), listeners=[Stop(2)])
    run = train(tmp_path / "run", data=text(), resume=True)
    assert run.summary["data"]["sources"] == ["Dataset"]
    assert run.summary["steps"] == 6
    whole = train(tmp_path / "whole", data=[text()])
    assert_same_run(whole.folder, run.folder)


def test_adapt_from_a_run(trained: Run, train: Train, tmp_path: Path) -> None:
    run = train(
        tmp_path / "run", "training.optimizer.learning_rate=3e-3", recipe="adapt", budget="40steps",
        model=str(trained.folder / "model"),
    )  # fmt: skip
    expected = {k: v for k, v in load_recipe("adapt").model_dump().items() if k in ("name", "tokenizer")}
    assert expected.items() <= load_recipe(str(run.folder / "recipe.yaml")).model_dump().items()
    summary = run.summary
    assert summary["heldout_loss_initial"] == pytest.approx(trained.summary["heldout_loss"], abs=1e-4)
    assert summary["heldout_loss"] < summary["heldout_loss_initial"] - 0.5
    assert run.tokenizer.get_vocab() == trained.tokenizer.get_vocab()
    assert pipeline("fill-mask", model=str(run.folder / "model"))("The old [MASK].")


def test_any_recipe_from_a_model_keeps_its_tokenizer(trained: Run, corpus: Path, tmp_path: Path) -> None:
    chosen, _ = resolve("spans", corpus, model=str(trained.folder / "model"))
    assert chosen.tokenizer.kind == "load"
    with pytest.raises(ClozeError, match="a pretrained model has its own tokenizer"):
        resolve("mlm", corpus, overrides=["model={kind: pretrained, path: x}"])


def test_an_encoder_without_a_head_gets_one(trained: Run, train: Train, tmp_path: Path, caplog: Any) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "encoder")
    trained.tokenizer.save_pretrained(tmp_path / "encoder")
    with caplog.at_level(logging.WARNING, "cloze"):
        run = train(tmp_path / "run", recipe="adapt", model=str(tmp_path / "encoder"))
    assert "has no masked-language-model head: it gets a new one" in caplog.text
    assert type(run.model).__name__ == "BertForMaskedLM"
    assert run.summary["heldout_loss"] < run.summary["heldout_loss_initial"]


def test_a_recipe_object_takes_overrides(corpus: Path, tiny: tuple[str, ...]) -> None:
    recipe = load_recipe("mlm", tiny)
    chosen, _ = resolve(recipe, corpus, budget="3steps", overrides=["masking.rate=0.5"])
    assert (chosen.masking.rate, chosen.training.budget) == (0.5, "3steps")
    assert chosen.data.sources[0].path == str(corpus)
    assert resolve(recipe)[0] == recipe


def test_rows_longer_than_the_encoder_takes_hold_several_samples(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", "training.phases=[{share: 1.0, length: 256, rows: 2}]")
    assert run.summary["data"]["fill"] > 0.97
    assert run.summary["model"]["longest_sample"] == 64


# -- compiled ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile's own
def test_a_compiled_run_is_the_same_run(train: Train, tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", budget="4steps")
    compiled = train(tmp_path / "compiled", "training.compile=true", budget="4steps")
    assert compiled.summary["heldout_loss"] == pytest.approx(plain.summary["heldout_loss"], abs=1e-3)
    assert compiled.summary["heldout_loss"] != compiled.summary["heldout_loss_initial"]
    names = []
    for run in (plain, compiled):
        found = sorted((run.folder / "checkpoints").rglob("*.safetensors"))
        names.append({str(path.relative_to(run.folder)): sorted(load_file(path)) for path in found})
    assert names[0] == names[1]  # no `_orig_mod.`
    assert len(names[0]) >= 2
    train(tmp_path / "compiled", "training.compile=true", budget="6steps", resume=True)
    with pytest.raises(ClozeError, match="another recipe"):  # it may change the last bits
        train(tmp_path / "compiled", budget="8steps", resume=True)


# -- policies that learn and decide -----------------------------------------------------------------------

LEARNERS = {
    "mapnet": ("masking={kind: mapnet, learning_rate: 0.05}",),
    "stratified": ("masking={kind: stratified, order: score}",),
    "difficulty": ("masking={kind: difficulty}",),
    "auto": ("masking={kind: auto}",),
}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies use what they learn, and runs measure their variance, within six steps."""
    monkeypatch.setattr(trust, "WARM", 1)
    monkeypatch.setattr(trust, "POWERS", (1e-9, 0.25, 0.5, 0.75, 1.0))
    monkeypatch.setattr(trust, "MARGIN", -1.0)
    monkeypatch.setattr(stratified, "FIRST_FREEZE", 1)
    monkeypatch.setattr(online, "SHARE", 1e9)
    monkeypatch.setattr(online, "MOST", 6)


@pytest.fixture
def paired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is measured, two masks of a row in one step seem to pay from the second point on."""
    evidence = online.evidence

    def seems(*arguments: Any) -> Evidence:
        found = evidence(*arguments)
        return dataclasses.replace(found, break_even_high=-1.0 if found.rate > 0.2 else None)

    monkeypatch.setattr(online, "evidence", seems)


@pytest.mark.usefixtures("soon", "paired")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", LEARNERS)
def test_a_resumed_run_has_learnt_the_same(kind: str, train: Train, tmp_path: Path) -> None:
    """What policies learn and decide is in the checkpoint: bit-equal, with other workers too."""
    options = (*LEARNERS[kind], "training.checkpoint_every=100")
    whole = train(tmp_path / "whole", *options)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", *options, "training.workers=2", listeners=[Stop(4)])
    shutil.copytree(tmp_path / "parts", tmp_path / "forgetful")
    train(tmp_path / "parts", *options, resume=True)
    assert_same_run(whole.folder, tmp_path / "parts")
    changes = whole.summary["unbiased"] is False
    assert changes == (kind == "difficulty")
    assert ("changes the objective" in (whole.folder / "report.html").read_text("utf-8")) == changes
    if kind != "mapnet":
        return
    # The control: without the policy's state it is another run.
    restore = session.restore_tensors

    def forgetting(tensors: dict[str, Any], method: Any, optimizers: Any) -> None:
        fresh = {n: b.clone() for n, b in method.named_buffers() if "masking" in n}
        restore(tensors, method, optimizers)
        for name, value in fresh.items():
            method.get_buffer(name).copy_(value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "restore_tensors", forgetting)
        train(tmp_path / "forgetful", *options, resume=True)
    with pytest.raises(AssertionError):
        assert_same_run(whole.folder, tmp_path / "forgetful")


@pytest.mark.usefixtures("soon", "paired")
def test_auto_measures_decides_and_says_why(train: Train, tmp_path: Path) -> None:
    steps = ("training.log_every=1", "training.budget=6steps")
    run = train(tmp_path / "run", *LEARNERS["auto"], *steps)
    lines = metrics(run.folder)
    variance = [line for line in lines if line["kind"] == "variance"]
    assert [line["step"] for line in variance] == [1, 2, 4, 6]
    known = {"kind", "step", "tokens", "rows", "rate", "data_term", "mask_term", "mask_share", "score_cv"}
    assert all(known <= line.keys() for line in variance)
    assert all(line["rows"] == 6 and line["mask_term"] > 0 for line in variance)
    notes = [(line["step"], line["message"]) for line in lines if line["kind"] == "note"]
    assert {step for step, _ in notes} == {1, 2, 4}  # at the end there is nothing left to decide
    first = [message for step, message in notes if step == 1]
    assert first[0].startswith("disjoint segments: the text is seen 0.0 times, the proposal saves at least")
    assert first[1].startswith("rate 0.")
    assert f"mask term {variance[0]['mask_term']:.3g}"[:12] in first[1]
    later = [message for step, message in notes if step == 2]
    assert later[0].startswith("disjoint segments: ")
    assert later[2].startswith("2 masks of a row in one step: D + C is at most -1")
    logged = [line for line in lines if line["kind"] == "step"]
    assert [line["copies"] for line in logged] == [1, 1, 2, 2, 2, 2]
    assert {line["segments"] for line in logged} == {1.0}
    assert logged[0]["rate"] == 0.2 < logged[1]["rate"]
    # Everything that it writes is described.
    page = (Path(__file__).parent.parent / "docs" / "files.md").read_text("utf-8")
    keys = {key for line in lines for key in line}
    assert {key for key in keys if f"`{key}`" not in page and not key.endswith(("_low", "_high"))} == set()
    assert '`"kind": "variance"`' in page


@pytest.mark.usefixtures("paired")
def test_auto_on_a_short_run_and_with_rows_that_cannot_be_halved(train: Train, tmp_path: Path) -> None:
    options = ("training.phases=[{share: 1.0, length: 64, rows: 7}]", "masking={kind: auto, rate: 0.25}")
    run = train(tmp_path / "run", *options, "training.log_every=1")
    lines = metrics(run.folder)
    assert not any(line["kind"] == "variance" for line in lines)  # too few tokens to be measured
    notes = {line["message"] for line in lines if line["kind"] == "note"}
    assert notes == {"disjoint segments: the text is seen 0.0 times, what the proposal saves is not known"}
    assert {line["copies"] for line in lines if line["kind"] == "step"} == {1.0}


@pytest.mark.usefixtures("soon")
def test_the_main_method_is_measured_while_it_is_trained(train: Train, tmp_path: Path) -> None:
    variant = "causal: {masking: {kind: none}, visibility: {kind: causal}, objective: {kind: next_token}}"
    stages = "stages=[{share: 0.5, use: causal}, {share: 0.5, use: main}]"
    run = train(tmp_path / "run", f"variants={{{variant}}}", stages, "training.budget=6steps")
    found = [line["step"] for line in metrics(run.folder) if line["kind"] == "variance"]
    assert found == [4, 6]  # of 1, 2, 4 and 6


@pytest.mark.usefixtures("soon")
def test_measuring_changes_nothing(trained: Run, train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    lines = metrics(run.folder)
    assert sum(line["kind"] == "variance" for line in lines) == 4
    assert [line for line in lines if line["kind"] != "variance"] == metrics(trained.folder)
    assert_same_weights(trained.folder, run.folder)
    off = train(tmp_path / "off", "evaluation.variance=false")
    assert metrics(off.folder) == metrics(trained.folder)
    assert_same_weights(trained.folder, off.folder)


def test_copies_share_the_budget(train: Train, tmp_path: Path) -> None:
    """Two masks of each row in a step: as many steps and tokens, of half of the text."""
    run = train(tmp_path / "run", "masking={kind: fully_explored, rate: 0.25, same_step: 2}")
    state = json.loads((newest(run.folder) / "state.json").read_text("utf-8"))
    assert state["cursors"] == [24]
    assert run.summary["steps"] == 6
    assert 0.95 * 6 * 8 * 64 < run.summary["tokens_seen"] <= 6 * 8 * 64
    with pytest.raises(ClozeError, match=r"8 rows cannot be split .* 3 masked copies .* multiple of 3"):
        train(tmp_path / "three", "masking={kind: fully_explored, rate: 0.25, same_step: 3}")
