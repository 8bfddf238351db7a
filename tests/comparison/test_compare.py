"""Comparisons from beginning to end, on runs of a second: what they leave, and that they go on and refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import cloze
from cloze import ClozeError, Comparison
from cloze.comparison import execute, plan
from cloze.comparison.run import Unwatched
from cloze.comparison.runs import Job, read
from cloze.comparison.table import lines
from cloze.comparison.timing import read_timing
from cloze.evaluation import suites
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites.base import Options, Scores, Suite
from cloze.session import Interrupted

Compare = Callable[..., Comparison]
RATES = ("masking.rate=0.15,0.3",)


@pytest.fixture(scope="module")
def compare(corpus: Path, tiny: tuple[str, ...]) -> Compare:
    """`compare(out, ...)`: two masking rates with two seeds, for six steps."""

    def run(out: Path, *overrides: str, sweeps: Sequence[str] = RATES, **options: Any) -> Comparison:
        given = {"recipes": ["mlm"], "data": str(corpus), "budget": "6steps", "seeds": 2} | options
        return cloze.compare(out=out, sweeps=sweeps, overrides=[*tiny, *overrides], **given)

    return run


@pytest.fixture(scope="module")
def made(compare: Compare, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """One finished comparison, to be looked at and copied, never changed."""
    out = tmp_path_factory.mktemp("compared") / "out"
    return out, compare(out)


@pytest.fixture
def copied(made: tuple[Path, Comparison], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "out"))


def no_run(*_: Any, **__: Any) -> None:
    raise AssertionError("a run was made")


def losses(found: Comparison) -> dict[tuple[str, int], list[float]]:
    return {(run.recipe, run.seed): [p.loss for p in run.curve] for run in found.runs}


# -- what it leaves ---------------------------------------------------------------------------------------


def test_the_folder(made: tuple[Path, Comparison]) -> None:
    out, found = made
    assert sorted(p.name for p in out.iterdir()) == ["comparison.json", "report.html", "runs", "timing.json"]
    names = [f"mlm-rate={rate}-{seed}" for rate in (0.15, 0.3) for seed in (0, 1)]
    assert sorted(p.name for p in (out / "runs").iterdir()) == sorted([*names, *(f"{n}.json" for n in names)])
    assert not (out / "runs" / names[0] / "checkpoints").exists()
    assert (out / "runs" / names[0] / "model" / "config.json").is_file()
    content = json.loads((out / "comparison.json").read_text())
    assert content == json.loads(json.dumps(found.as_dict()))
    assert [(r["recipe"], r["seed"]) for r in content["runs"]] == [
        (f"mlm rate={rate}", seed) for seed in (0, 1) for rate in (0.15, 0.3)
    ]
    summary = json.loads((out / "runs" / names[0] / "summary.json").read_text())
    assert content["runs"][0]["heldout_loss"] == pytest.approx(summary["heldout_loss"])
    assert content["runs"][0]["tokens"] == summary["tokens_seen"]


def test_every_key_is_described(made: tuple[Path, Comparison]) -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "files.md").read_text("utf-8")
    content = json.loads((made[0] / "comparison.json").read_text())
    lists = ("means", "differences", "speedup_to_baseline", "recipes", "runs")
    trees = [content, *(content[name][0] for name in lists), content["runs"][0]["curve"][0]]
    assert not {key for tree in trees for key in tree if f"`{key}`" not in page}


def test_runs_of_a_seed_are_paired(made: tuple[Path, Comparison]) -> None:
    """The same initial weights, masks and text: equal losses before the first step, by seed."""
    first = {key: curve[0] for key, curve in losses(made[1]).items()}
    for seed in (0, 1):
        assert first["mlm rate=0.15", seed] == first["mlm rate=0.3", seed]
    assert first["mlm rate=0.15", 0] != first["mlm rate=0.15", 1]
    recipes = [read(f).settings for f in sorted((made[0] / "runs").glob("*.json"))]
    assert {json.dumps(r["data"]) + json.dumps(r["evaluation"]) for r in recipes} == {
        json.dumps(recipes[0]["data"]) + json.dumps(recipes[0]["evaluation"])
    }


def test_the_difference_is_that_of_the_final_losses(made: tuple[Path, Comparison]) -> None:
    final = {key: curve[-1] for key, curve in losses(made[1]).items()}
    values = [final["mlm rate=0.3", s] - final["mlm rate=0.15", s] for s in (0, 1)]
    (difference,) = made[1].differences
    assert difference.values == pytest.approx(values, abs=1e-4)
    assert (difference.recipe, difference.baseline) == ("mlm rate=0.3", "mlm rate=0.15")
    assert all(arm.seconds > 0 and len(arm.seconds_per_step) == 3 for arm in made[1].arms)
    assert made[1].arms[1].operations > made[1].arms[0].operations  # the head sees more


# -- going on ---------------------------------------------------------------------------------------------


def test_the_same_call_again_makes_nothing_anew(
    copied: Path, compare: Compare, made: tuple[Path, Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "pretrain", no_run)
    monkeypatch.setattr(plan, "time_in_turn", no_run)
    (copied / "comparison.json").unlink()
    assert compare(copied).as_dict() == made[1].as_dict()
    assert (copied / "comparison.json").is_file()


def test_runs_side_by_side_are_the_same_runs(
    made: tuple[Path, Comparison], compare: Compare, tmp_path: Path
) -> None:
    heard: list[tuple[str, int, int]] = []

    class Ear(Unwatched):
        def __init__(self, job: Job | None = None):
            self.job = job

        def listen(self, job: Job) -> Ear:
            return Ear(job)

        def record(self, record: dict[str, Any]) -> None:
            if self.job is not None and record["kind"] == "step":
                heard.append((self.job.arm, self.job.seed, record["step"]))

    found = compare(tmp_path / "out", seeds=1, jobs=2, watch=lambda _: Ear())
    alone = {key: loss for key, loss in losses(made[1]).items() if key[1] == 0}
    assert losses(found) == {key: pytest.approx(loss, rel=1e-3) for key, loss in alone.items()}
    assert {(arm, seed) for arm, seed, _ in heard} == set(losses(found))
    assert (tmp_path / "out" / "runs" / "mlm-rate=0.3-0.log").is_file()


def test_more_seeds_and_recipes_are_added(
    copied: Path, compare: Compare, made: tuple[Path, Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    pretrain = execute.pretrain

    def counted(*arguments: Any, **options: Any) -> Any:
        done.append(options["out"].name)
        return pretrain(*arguments, **options)

    monkeypatch.setattr(execute, "pretrain", counted)
    found = compare(copied, sweeps=["masking.rate=0.15,0.3,0.4"], seeds=2)
    assert done == ["mlm-rate=0.4-0", "mlm-rate=0.4-1"]
    assert losses(found).items() >= losses(made[1]).items()
    assert {d.comparisons for d in found.differences} == {2}


class Impatient(Unwatched):
    """Sends Ctrl-C in the middle of the third run."""

    def listen(self, job: Any) -> Impatient:
        self.job = job
        return self

    def record(self, record: dict[str, Any]) -> None:
        import os
        import signal

        if (self.job.arm, self.job.seed, record["step"]) == ("mlm rate=0.15", 1, 2):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_was_interrupted_goes_on_and_is_the_same(
    tmp_path: Path, compare: Compare, made: tuple[Path, Comparison]
) -> None:
    with pytest.raises(Interrupted):
        compare(tmp_path / "out", watch=lambda plan: Impatient())
    kept = sorted(p.name for p in (tmp_path / "out" / "runs").glob("*.json"))
    assert kept == ["mlm-rate=0.15-0.json", "mlm-rate=0.3-0.json"]  # whole pairs
    assert not (tmp_path / "out" / "comparison.json").exists()
    assert losses(compare(tmp_path / "out")) == losses(made[1])


# -- refusing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": "7steps"}, "training.budget: '6steps' -> '7steps'"),
        ({"overrides": "training.clip=0.5"}, "training.clip: 1.0 -> 0.5"),
        ({"seeds": 0}, "--seeds 0"),
        ({"margin": 0.0}, "--margin 0"),
        ({"suites": ["nothing"]}, "--suite nothing: no such suite"),
        ({"budget": "6 feet"}, "budget '6 feet'"),
        ({"data": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_lost(
    options: dict[str, Any], words: str, copied: Path, compare: Compare
) -> None:
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
    more = [options.pop("overrides")] if "overrides" in options else []
    with pytest.raises(ClozeError) as error:
        compare(copied, *more, **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()} == before


def test_another_text_is_refused(copied: Path, compare: Compare, corpus: Path) -> None:
    """The same path with other content."""
    file = copied / "runs" / "mlm-rate=0.15-0.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"text": content["text"] | {"text": "another"}}))
    with pytest.raises(ClozeError, match="the text or its tokenizer is another one"):
        compare(copied)
    file.write_text("{")
    with pytest.raises(ClozeError, match=r"mlm-rate=0.15-0.json: not a run of a comparison"):
        compare(copied)


def test_an_error_of_a_run_names_it(
    tmp_path: Path, compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ClozeError("the disk is full")

    monkeypatch.setattr(execute, "pretrain", broken)
    with pytest.raises(ClozeError, match=r"mlm rate=0.15, seed 0: the disk is full"):
        compare(tmp_path / "out")


# -- what else it can do ----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_a_result(tmp_path: Path, compare: Compare) -> None:
    sweeps = ["training.optimizer.learning_rate=0.001,1e30"]
    found = compare(tmp_path / "out", "training.optimizer.kind=adamw", sweeps=sweeps, seeds=1)
    assert [run.status for run in found.runs] == ["finished", "diverged"]
    assert found.differences[0].finding == "diverged"
    assert (tmp_path / "out" / "report.html").is_file()


def test_other_tokenizers_are_compared_by_bits_per_character(tmp_path: Path, compare: Compare) -> None:
    found = compare(tmp_path / "out", sweeps=["tokenizer.vocabulary=320,576"], seeds=1)
    assert found.metric == "bits_per_character"
    assert any("another tokenizer" in note for note in found.notes)
    for run in found.runs:
        assert run.bits_per_character is not None and run.heldout_loss is not None
        nats = run.bits_per_character * 0.6931
        characters = run.heldout_loss / nats  # of a token
        assert 1.5 < characters < 6.0
    short, long = found.runs
    assert long.heldout_loss / long.bits_per_character > short.heldout_loss / short.bits_per_character  # type: ignore[operator]


def test_losses_of_other_things_are_shown_and_never_subtracted(tmp_path: Path, compare: Compare) -> None:
    out = tmp_path / "out"
    found = compare(out, recipes=["mlm", "causal", "spans"], sweeps=(), seeds=2, suites=["heldout"])
    assert [arm.measures for arm in found.arms] == ["masked tokens", "next tokens", "masked tokens"]
    # The suite `heldout` measures each model by what it predicts.
    assert {d.recipe for d in found.differences if d.values} == {"spans"}
    assert {s.recipe for s in found.speedups} == {"spans"}
    assert all(m.mean is not None for m in found.means if m.metric == "heldout_loss")
    (said,) = (line for line in found.verdict if line.startswith("causal"))
    assert (
        said == "causal: its held-out loss is of next tokens, that of mlm of masked tokens: not comparable."
    )
    (row,) = (line for line in lines(found) if line.startswith("  causal ") and " of next tokens" in line)
    assert len(row) <= 80
    page = (out / "report.html").read_text("utf-8")
    assert "Recipes predict different things" in page and "not comparable" in page


def test_a_hybrid_compares_with_masked_language_modelling(tmp_path: Path, compare: Compare) -> None:
    rows = "training.phases=[{share: 1.0, length: 64, rows: 16}]"
    found = compare(tmp_path / "out", rows, recipes=["mlm", "gpt-bert"], sweeps=(), seeds=1)
    assert [run.recipe for run in found.runs] == ["mlm", "gpt-bert"]
    assert not found.notes  # on the same masked tokens


def test_other_tokenizers_need_the_same_held_out_text(tmp_path: Path, compare: Compare) -> None:
    minimum = "data.heldout={share: 0.001, minimum: 9000}"
    with pytest.raises(ClozeError, match=r"would hold out different text.*data\.heldout\.path"):
        compare(tmp_path / "out", minimum, sweeps=["tokenizer.vocabulary=320,576"])


def test_budgets_of_operations_and_of_time_become_steps(
    tmp_path: Path, compare: Compare, monkeypatch: Any
) -> None:
    plans = []

    def stop(made: Any, *_: Any) -> list[Any]:
        plans.append(made)
        raise ClozeError("planned")

    monkeypatch.setattr("cloze.comparison.run.runs_of", stop)
    for number, budget in enumerate(("1e10flop", "2s")):
        with pytest.raises(ClozeError, match="planned"):
            compare(tmp_path / str(number), budget=budget)
    for arm in plans[0].arms:
        assert arm.steps * arm.cost.operations == pytest.approx(1e10, rel=0.5 / arm.steps)
    assert plans[0].arms[0].steps > plans[0].arms[1].steps
    for arm in plans[1].arms:
        assert arm.steps * arm.seconds == pytest.approx(2.0, rel=0.5 / arm.steps)
    recipes = {arm.arm.name: arm.arm.recipe for arm in plans[1].arms}
    kept = read_timing(tmp_path / "1" / "timing.json", recipes)
    assert kept is not None  # a budget of time is the same number of steps when one goes on
    assert kept.seconds == {arm.arm.name: arm.seconds_per_step for arm in plans[1].arms}
    assert read_timing(tmp_path / "0" / "timing.json", recipes | {"new": plans[0].arms[0].arm.recipe}) is None


def test_suites_are_measured_once_on_every_run(
    copied: Path, compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def score(subject: Subject, options: Options) -> Scores:
        measured.append(Path(subject.name).name)
        assert (options.data, options.seeds) == (str(copied), 1)
        norm = float(subject.body().get_input_embeddings().weight.detach().norm())  # type: ignore[union-attr]
        return {"norm": {"size": [norm], "other": [0.0]}, "loss": {"size": [1.0, 3.0]}}

    monkeypatch.setitem(suites.SUITES, "fake", Suite("fake", "of the tests", score, "size"))
    monkeypatch.setattr(execute, "pretrain", no_run)
    found = compare(copied, suites=["fake"], suite_data={"fake": str(copied)})
    names = [f"mlm-rate={rate}-{seed}" for seed in (0, 1) for rate in (0.15, 0.3)]
    assert measured == names
    task = next(d for d in found.differences if d.metric == "fake/norm/size")
    assert task.comparisons == 2
    assert len(task.values) == 2 and task.values[0] != 0.0
    assert next(m for m in found.means if m.metric == "fake/loss/size").mean == 2.0
    again = compare(copied, suites=["fake"], suite_data={"fake": str(copied)})
    assert measured == names
    assert again.as_dict() == found.as_dict()


def test_a_probe_is_another_measurement(
    copied: Path, compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(subject: Subject, options: Options) -> Scores:
        return {"task": {"accuracy": [0.25 if options.probe else 0.75]}}

    for name, trains in (("trained", True), ("other", False)):
        monkeypatch.setitem(suites.SUITES, name, Suite(name, "of the tests", score, "accuracy", trains))
    monkeypatch.setattr(execute, "pretrain", no_run)
    given = {"suites": ["trained", "other"], "suite_data": {"trained": copied, "other": copied}}
    compare(copied, **given)
    found = compare(copied, **given, probe=True)
    means = {mean.metric: mean.mean for mean in found.means if mean.metric != "heldout_loss"}
    assert means == {
        "trained/task/accuracy": 0.75,
        "other/task/accuracy": 0.75,
        "trained (probe)/task/accuracy": 0.25,
    }


# -- the command ------------------------------------------------------------------------------------------


def test_the_command(copied: Path, corpus: Path, tiny: tuple[str, ...], cloze: Callable[..., Any]) -> None:
    sets = [part for text in tiny for part in ("--set", text)]
    command = ["compare", "mlm", "--sweep", RATES[0], "--data", corpus, "--seeds", 2, "--out", copied, *sets]
    result = cloze(*command, "--budget", "6steps")
    assert result.code == 0, result.err
    assert max(len(line) for line in result.out.splitlines() if str(copied) not in line) <= 80
    for words in (
        "Held-out loss",
        "mlm rate=0.3",
        "Baseline's loss, x less",
        "Verdict",
        str(copied / "report.html"),
    ):
        assert words in result.out
    assert "4/4  mlm rate=0.3, seed 1: held-out loss" in result.err
    refused = cloze(*command, "--budget", "7steps")
    assert refused.code == 2
    assert "use another --out folder" in refused.err.splitlines()[-1]


def test_a_search_by_the_command(
    tmp_path: Path, corpus: Path, tiny: tuple[str, ...], cloze: Callable[..., Any]
) -> None:
    sets = [part for text in tiny for part in ("--set", text)]
    command = ["compare", "mlm", "--sweep", RATES[0], "--data", corpus, "--out", tmp_path / "out", *sets]
    result = cloze(*command, "--search", "6steps")
    assert result.code == 0, result.err
    assert "Rung 1: 2 settings, 3 steps each" in result.out
    assert (tmp_path / "out" / "best.yaml").is_file()
    runs = sorted(p.name for p in (tmp_path / "out" / "rung-1" / "runs").glob("*.json"))
    assert runs == ["mlm-rate=0.15-1000.json", "mlm-rate=0.3-1000.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mlm"], "there is one recipe"),
        (["mlm", "spans"], "no text is given"),
        (["mlm", "spans", "--budget", "10M"], "budget '10M'"),
        (["mlm", "spans", "--suite", "nothing"], "--suite nothing"),
        (["mlm", "spans", "--seeds", "0"], "--seeds 0"),
        (["mlm", "spans", "--jobs", "0"], "--jobs 0"),
        (["mlm", "spans", "--suite", "words"], "--suite-data words=PATH"),
        (["mlm", "spans", "--suite", "words", "--suite-data", "./no/"], "--suite-data words=./no/: no such"),
        (["mlm", "--sweep", "masking.rate"], "--sweep masking.rate"),
        (["mlm", "spans", "--search", "lots"], "budget 'lots'"),
        ([], "compare --help"),
    ],
)
def test_bad_options(
    arguments: list[str],
    words: str,
    cloze: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cloze("compare", *arguments)
    assert result.code == 2
    assert words in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
