"""The command: what it prints, and that every mistake is one clear line, exit code 2, and nothing lost."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import MPNetConfig, MPNetForMaskedLM

from cloze import Run
from cloze.recipes.load import load_recipe, recipe_text, shipped
from cloze.terminal import Terminal, amount, duration
from cloze.training.tracking import Metrics

Cloze = Callable[..., Any]
ANSI = "\x1b["


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command runs in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)


@pytest.fixture
def sets(tiny: tuple[str, ...]) -> list[str]:
    """The tiny recipe as options."""
    return [part for text in tiny for part in ("--set", text)]


def assert_one_line(result: Any, *words: str) -> None:
    """Exit code 2, and one line on standard error that says these words."""
    assert result.code == 2, result
    assert result.out == ""
    lines = result.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, result.err
    assert lines[-1] == errors[0]
    assert "Traceback" not in result.err
    for word in words:
        assert word in errors[0], result.err


def written() -> list[str]:
    return sorted(str(p) for p in Path().rglob("*"))


# -- recipes ----------------------------------------------------------------------------------------------


def test_the_table_of_recipes(cloze: Cloze) -> None:
    result = cloze("recipes")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].split() == ["recipe", "masking", "corruption", "visibility", "objective", "unbiased"]
    for name in shipped():
        recipe = load_recipe(name)
        (row,) = [line for line in lines if line.startswith(f"{name} ")]
        assert all(choice in row for choice in recipe.choices().values())
        assert row.rstrip().endswith("yes" if recipe.unbiased else "no")
        assert recipe.about.split()[0] in result.out
        assert recipe.paper is None or recipe.paper in result.out
    assert max(map(len, lines)) <= 80
    assert ANSI not in result.out


def test_a_recipe_that_is_shown_can_be_edited_and_run(cloze: Cloze, corpus: Path, sets: list[str]) -> None:
    shown = cloze("recipes", "show", "spans")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == recipe_text("spans")
    Path("my.yaml").write_text(shown.out.replace("rate: 0.3", "rate: 0.2"), encoding="utf-8")
    result = cloze("pretrain", "my.yaml", "--data", corpus, "--out", "out", "--budget", "2steps", *sets[:-2])
    assert result.code == 0, result.err
    assert load_recipe("out/recipe.yaml").masking.rate == 0.2


@pytest.mark.parametrize("command", ["recipes", "pretrain", "prepare", "fill", "export"])
def test_help_fits(command: str, cloze: Cloze) -> None:
    result = cloze(command, "--help")
    assert result.code == 0
    assert "Usage: cloze" in result.out
    assert max(map(len, result.out.splitlines())) <= 80


def test_version_and_no_arguments(cloze: Cloze) -> None:
    from cloze import __version__

    assert cloze("--version").out == f"cloze {__version__}\n"
    assert "pretrain" in cloze().out


# -- the main job -----------------------------------------------------------------------------------------


def test_pretrain_fill_and_export(cloze: Cloze, corpus: Path, sets: list[str]) -> None:
    result = cloze("pretrain", "mlm", "--data", corpus, *sets)
    assert result.code == 0, result.err
    assert Path("runs/mlm/report.html").is_file()  # the default folder
    names = [name for line in result.out.splitlines() if (name := line.split("  ")[0])]
    assert names == ["held-out loss", "accuracy", "seen", "model", "report", "blanks"]
    assert "runs/mlm/report.html" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    # Standard error is not a terminal: plain lines, no bar, no colours.
    assert ANSI not in result.err
    assert "\r" not in result.err
    assert "vocabulary of 320, " in result.err
    assert "step      0  held-out loss" in result.err
    assert "step      6  held-out loss" in result.err
    assert "warning" not in result.err.lower()
    assert max(len(line) for line in result.err.splitlines()) <= 80

    filled = cloze("fill", "runs/mlm", "The old [MASK] forgot the quiet [MASK].", "--top", "3")
    assert filled.code == 0
    first, second = filled.out.split("\n\n")
    rows = [line for line in (first + "\n" + second).splitlines() if line]
    assert len(rows) == 6
    shares = [float(line.split("%")[0]) for line in first.splitlines()]
    assert shares == sorted(shares, reverse=True)
    assert all("forgot the quiet [MASK]." in line for line in first.splitlines())
    assert all("The old [MASK] forgot" in line for line in second.splitlines())

    exported = cloze("export", "runs/mlm", "--to", "encoder")
    assert (exported.code, exported.err) == (0, "")
    assert "AutoModelForMaskedLM.from_pretrained('encoder')" in exported.out
    assert {p.name for p in Path("encoder").iterdir()} == {p.name for p in Path("runs/mlm/model").iterdir()}
    assert cloze("fill", "encoder", "The old [MASK] forgot.").code == 0
    assert_one_line(cloze("export", "runs/mlm", "--to", "encoder"), "encoder exists already")


def test_prepare_and_pretrain_from_the_store(cloze: Cloze, corpus: Path, sets: list[str]) -> None:
    made = cloze("prepare", "--data", corpus, "--out", "store", "--vocabulary", 320, "--workers", 1)
    assert made.code == 0, made.err
    assert made.out.startswith("store: 1,279 documents, ")
    assert len(made.out) <= 80
    again = cloze("prepare", "--data", corpus, "--out", "store", "--vocabulary", 320)
    assert (again.code, again.out) == (0, made.out)
    result = cloze("pretrain", "mlm", "--data", "store", *sets)
    assert result.code == 0, result.err
    summary = json.loads(Path("runs/mlm/summary.json").read_text("utf-8"))
    assert summary["data"]["sources"] == ["store"]
    assert summary["data"]["documents"] == 1279
    larger = ["--set", "tokenizer.vocabulary=4096"]  # the store's own tokenizer counts
    dry = cloze("pretrain", "mlm", "--data", "store", "--dry-run", *sets, *larger)
    assert f", {amount(summary['parameters'])} parameters" in dry.out


def test_a_dry_run_writes_nothing(cloze: Cloze, corpus: Path, sets: list[str], tmp_path: Path) -> None:
    cache = Path(os.environ["CLOZE_CACHE"])
    before = sorted(cache.rglob("*"))
    lines = Path("lines.txt")
    shutil.copy(corpus, lines)
    result = cloze(
        "pretrain", "mlm", "--data", f"a=0.7:{lines}", "--data", f"b=0.3:{lines}", "--dry-run", *sets
    )
    assert result.code == 0, result.err
    found = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert set(found) == {"model", "memory", "masking", "steps", "tokens", "time", "text", "passes"}
    assert found["steps"].startswith("6 of 512 tokens")
    assert found["text"].count("lines.txt") == 2
    assert all(len(line) <= 80 for line in result.out.splitlines() if not line.startswith("text"))
    assert written() == ["lines.txt"]
    assert sorted(cache.rglob("*")) == before


def test_a_dry_run_of_rows_longer_than_the_model_takes(cloze: Cloze, sets: list[str], trained: Run) -> None:
    long = ["--set", "training.phases=[{share: 1.0, length: 200, rows: 2}]"]
    assert cloze("pretrain", "mlm", "--dry-run", *sets, *long).code == 0
    assert cloze("pretrain", "adapt", "--model", trained.folder / "model", "--dry-run", *long).code == 0
    config = MPNetConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=66,
    )  # fmt: skip
    MPNetForMaskedLM(config).save_pretrained("mpnet")  # keeps no samples apart
    trained.tokenizer.save_pretrained("mpnet")
    result = cloze("pretrain", "adapt", "--model", "mpnet", "--dry-run", *long)
    assert result.code == 0, result.err


def test_a_finished_run_is_shown_again(cloze: Cloze, trained: Run, corpus: Path, sets: list[str]) -> None:
    shutil.copytree(trained.folder, "run")
    result = cloze("pretrain", "mlm", "--data", corpus, "--out", "run", "--resume", *sets)
    assert result.code == 0
    assert f"{trained.summary['heldout_loss']:.3f}" in result.out
    assert "step" not in result.err


def test_ctrl_c_says_how_to_go_on(
    cloze: Cloze, corpus: Path, sets: list[str], monkeypatch: Any, trained: Run
) -> None:
    record = Metrics.record

    def interrupting(self: Metrics, kind: str, step: int, **values: Any) -> None:
        record(self, kind, step, **values)
        if (kind, step) == ("step", 2):
            os.kill(os.getpid(), signal.SIGINT)

    texts = Path("my texts.txt")
    shutil.copy(corpus, texts)
    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "record", interrupting)
        result = cloze("pretrain", "mlm", "--data", texts, "--out", "run", *sets)
    assert result.code == 130
    assert "stopping after this step" in result.err
    assert "Traceback" not in result.err
    *_, where, last = result.err.splitlines()
    assert where == "stopped at step 2"
    assert last.startswith("go on with: cloze pretrain mlm --data 'my texts.txt' --out run")
    again = cloze(*shlex.split(last.partition("go on with: cloze ")[2]))
    assert again.code == 0, again.err
    assert json.loads(Path("run/summary.json").read_text("utf-8"))["steps"] == 6


def test_ctrl_c_while_reading_says_how_to_go_on(
    cloze: Cloze, corpus: Path, sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    command = ["pretrain", "mlm", "--data", str(corpus), "--out", "run", *sets]
    with monkeypatch.context() as patch:
        patch.setattr("cloze.assembly.open_corpus", interrupted)
        result = cloze(*command)
    assert result.code == 130
    assert "Traceback" not in result.err
    last = result.err.splitlines()[-1]
    assert shlex.split(last.partition("go on with: cloze ")[2]) == [*command, "--resume"]
    assert cloze(*command).code == 0  # nothing has begun: without --resume too


# -- mistakes ---------------------------------------------------------------------------------------------


def make(kind: str) -> Path:
    """Bad data of a kind."""
    path = Path("data.jsonl" if kind in ("field", "json") else "data.txt")
    content = {
        "empty": b"",
        "blank": b"\n\n \n",
        "binary": bytes(range(256)) * 50,
        "latin": "déjà vu\n".encode("latin-1"),
        "short": b"Just one line.\n",
        "json": b'{"text": "fine"}\n{"text": \n',
        "field": b'{"title": "a b", "body": "The river."}\n' * 30,
    }
    if kind in content:
        path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize("command", ["pretrain", "prepare"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nothing", ["data.txt: no such file or folder"]),
        ("empty", ["data.txt: the file is empty"]),
        ("blank", ["data.txt"]),
        ("binary", ["data.txt: binary data"]),
        ("latin", ["data.txt: line 1 is not UTF-8", "iconv"]),
        ("json", ["data.jsonl: line 2 is not JSON"]),
        ("field", ["data.jsonl: no column 'abstract'", "title, body"]),
    ],
)
def test_bad_data(command: str, kind: str, words: list[str], cloze: Cloze, sets: list[str]) -> None:
    path = make(kind)
    options = ["--text-field", "abstract"] if kind == "field" else []
    verb = ["pretrain", "mlm", *sets] if command == "pretrain" else ["prepare", "--vocabulary", "320"]
    assert_one_line(cloze(*verb, "--data", path, "--out", "out", *options), *words)


def test_a_text_shorter_than_a_row(cloze: Cloze, sets: list[str]) -> None:
    path = make("short")
    result = cloze("pretrain", "mlm", "--data", path, "--out", "out", *sets)
    assert_one_line(result, "too short", "tokens", "data.heldout.minimum")


def test_a_column_that_looks_like_something_else(cloze: Cloze, corpus: Path, sets: list[str]) -> None:
    texts = corpus.read_text("utf-8").split("\n\n")
    with Path("norwegian.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"no": text, "en": "x"}) + "\n" for text in texts)
    result = cloze(
        "pretrain", "mlm", "--data", "norwegian.jsonl", "--text-field", "no", "--out", "out", *sets
    )
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mml"], ["no recipe 'mml': did you mean 'mlm'?"]),
        (["my.yaml"], ["my.yaml"]),
        (["mlm"], ["no text is given: use --data PATH"]),
        (["adapt"], ["use --model with a folder or hub id"]),
        (["mlm", "--budget", "soon"], ["budget 'soon' is not understood", "30m, 2h, 10Mtok or 5000steps"]),
        (["mlm", "--budget", "0m"], ["'0m' is nothing"]),
        (["mlm", "--budget", "1e999steps"], ["endless"]),
        (
            ["mlm", "--set", "masking.rat=0.3"],
            ["unknown field masking.rat", "did you mean 'rate'", "kind, rate"],
        ),
        (["mlm", "--set", "masking.rate=lots"], ["masking.rate", "number", "'lots'"]),
        (["mlm", "--set", "model.size=huge"], ["model.size", "'tiny'", "'base'", "'huge'"]),
        (
            ["mlm", "--set", "masking.kind=sapns"],
            ["did you mean 'spans'", "stratified, uniform, words"],
        ),
        (["mlm", "--set", "rate"], ["write it as some.field=value"]),
        (["mlm", "--seed", "x"], ["--seed", "integer"]),
        (["mlm", "--seed", "-1"], ["seed", "got -1"]),
        (["mlm", "--precision", "fp8"], ["training.precision", "'auto'", "'fp8'"]),
        (["mlm", "--split-text", "words"], ["data.split_text", "'paragraphs'", "'words'"]),
        (["mlm", "--set", "model={kind: pretrained, path: x}"], ["own tokenizer", "set tokenizer.kind=load"]),
        (["mlm", "--data", "news=0:x.txt"], ["weight"]),
        (["mlm", "--data", ""], ["data ''"]),
        (["mlm", "--sise", "3"], ["--sise", "cloze pretrain --help"]),
        ([], ["recipe", "cloze pretrain --help"]),
    ],
)
@pytest.mark.parametrize("dry", [False, True], ids=["run", "dry run"])
def test_bad_options(arguments: list[str], words: list[str], dry: bool, cloze: Cloze) -> None:
    if dry and arguments == ["mlm"]:
        assert cloze("pretrain", "mlm", "--dry-run", "--set", "model.size=tiny").code == 0
        return
    assert_one_line(cloze("pretrain", *arguments, *(["--dry-run"] if dry else [])), *words)
    assert not [p for p in written() if not p.startswith("runs")]


@pytest.mark.parametrize("line", ["masking: {rat: 0.3}", "masking: {rate: lots}", "masking: {rate: 0.3", "3"])
def test_bad_yaml(line: str, cloze: Cloze) -> None:
    Path("my.yaml").write_text(f"extends: mlm\n{line}\n" if line != "3" else "3", encoding="utf-8")
    assert_one_line(cloze("pretrain", "my.yaml", "--data", "x.txt"), "my.yaml")
    assert written() == ["my.yaml"]


def test_a_model_that_is_not_there(cloze: Cloze, corpus: Path, sets: list[str]) -> None:
    for model in ("./nowhere", "runs/nowhere", "/no/where/at/all"):
        assert_one_line(cloze("pretrain", "adapt", "--data", corpus, "--model", model, "--out", "out"), model)
        assert_one_line(cloze("fill", model, "The [MASK]."), model)
    assert_one_line(cloze("export", "runs/nowhere", "--to", "x"), "runs/nowhere holds no run")
    Path("empty").mkdir()
    assert_one_line(cloze("fill", "empty", "The [MASK]."), "empty holds neither a run nor a model")
    assert written() == ["empty", "out", "out/recipe.yaml"]


def test_a_tokenizer_without_a_mask_token(cloze: Cloze, corpus: Path, sets: list[str], trained: Run) -> None:
    tokenizer = trained.tokenizer
    tokenizer.mask_token = None
    tokenizer.save_pretrained("bare")
    load = ["--set", "tokenizer={kind: load, path: bare}"]
    options = ["--data", corpus, "--out", "out", *sets[2:], *load]
    result = cloze("pretrain", "mlm", *options)
    assert_one_line(result, "bare: this tokenizer has no mask token", "tokenizer.add_mask_token=true")
    added = cloze("pretrain", "mlm", *options, "--set", "tokenizer.add_mask_token=true")
    assert added.code == 0, added.err


def test_out_folders(cloze: Cloze, corpus: Path, sets: list[str], trained: Run) -> None:
    command = ["pretrain", "mlm", "--data", corpus, *sets]
    shutil.copytree(trained.folder, "run")
    assert_one_line(cloze(*command, "--out", "run"), "run holds a run already: use --resume")
    changed = cloze(*command, "--out", "run", "--resume", "--set", "masking.rate=0.2")
    assert_one_line(changed, "masking.rate: 0.3 -> 0.2", "--force")
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("precious")
    assert_one_line(cloze(*command, "--out", "mine"), "mine is not empty and holds no run of cloze")
    assert_one_line(cloze(*command, "--out", "mine/thesis.tex"), "is a file")
    assert_one_line(
        cloze("prepare", "--data", corpus, "--out", "mine", "--vocabulary", "320"), "mine", "no store"
    )
    assert Path("mine/thesis.tex").read_text() == "precious"
    for name in ("summary.json", "metrics.jsonl", "recipe.yaml"):
        assert Path("run", name).read_bytes() == (trained.folder / name).read_bytes()


def test_a_truncated_checkpoint_falls_back_and_says_so(
    cloze: Cloze, corpus: Path, sets: list[str], trained: Run
) -> None:
    shutil.copytree(trained.folder, "run")
    file = Path("run/checkpoints/step-00000006/training.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    result = cloze("pretrain", "mlm", "--data", corpus, "--out", "run", "--resume", *sets)
    assert result.code == 0, result.err
    assert "warning: checkpoint step-00000006 is damaged" in result.err
    assert json.loads(Path("run/summary.json").read_text("utf-8"))["steps"] == 6


def test_a_tracker_that_is_not_installed(
    cloze: Cloze, corpus: Path, sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloze.session.find_spec", lambda _: None)
    command = ["pretrain", "mlm", "--data", corpus, "--out", "out", *sets]
    assert_one_line(
        cloze(*command, "--set", "training.trackers=[wandb]"), "wandb is not installed", "pip install"
    )
    assert cloze(*command).code == 0  # what failed to start has not taken the folder


@pytest.mark.slow
@pytest.mark.parametrize("spaces", [True, False])
def test_one_line_of_5_mb(spaces: bool, cloze: Cloze, sets: list[str]) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 9))) for _ in range(3000)]
    line = (" " if spaces else "").join(draw.choice(words) for _ in range(1_000_000))[:5_000_000]
    Path("line.txt").write_text(line, encoding="utf-8")
    result = cloze("pretrain", "mlm", "--data", "line.txt", "--out", "out", *sets)
    assert result.code == 0, result.err
    assert json.loads(Path("out/summary.json").read_text("utf-8"))["data"]["documents"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("No blank here.", ["no blank in the text", "[MASK]"]),
        ("", ["no blank in the text"]),
        ("The [MASK] " + "river and stone " * 100, ["tokens, the model takes 64"]),
    ],
)
def test_fill_mistakes(text: str, words: list[str], cloze: Cloze, trained: Run) -> None:
    assert_one_line(cloze("fill", trained.folder, text), *words)
    assert_one_line(cloze("fill", trained.folder, "The [MASK].", "--top", "0"), "--top")


@pytest.mark.parametrize(
    "arguments", [["recipes", "shwo"], ["pretrian"], ["recipes", "show", "nope"], ["fill"]]
)
def test_unknown_commands(arguments: list[str], cloze: Cloze) -> None:
    assert_one_line(cloze(*arguments))


@pytest.mark.parametrize("place", ["before", "behind"])
def test_debug_shows_the_traceback(place: str, cloze: Cloze) -> None:
    command = ["pretrain", "mml"]
    result = cloze(*(["--debug", *command] if place == "before" else [*command, "--debug"]))
    assert result.code == 2
    assert "Traceback" in result.err
    assert "recipe_text" in result.err
    assert result.err.splitlines()[-1].startswith("error: no recipe 'mml'")


def test_signs_in_paths_are_not_markup(cloze: Cloze, corpus: Path, sets: list[str]) -> None:
    for name in ("[bold]x", "[/]", "a:smile:b"):
        result = cloze(
            "pretrain", "mlm", "--data", corpus, "--out", f"runs/{name}", "--budget", "1steps", *sets
        )
        assert result.code == 0, result.err
        assert f"runs/{name}/report.html" in result.out
        missing = cloze("pretrain", "mlm", "--data", f"{name}.txt", "--out", "x")
        assert_one_line(missing, f"{name}.txt")


# -- the terminal -----------------------------------------------------------------------------------------


def test_numbers_for_people() -> None:
    assert [duration(s) for s in (0, 59.6, 61, 3599, 3600, 12_000)] == [
        "0s", "1m 00s", "1m 01s", "59m 59s", "1h 00m", "3h 20m",
    ]  # fmt: skip
    assert [amount(n) for n in (0, 950, 12_345, 4_560_000, 1.2e9)] == [
        "0",
        "950",
        "12.3 k",
        "4.56 M",
        "1.2 G",
    ]


def test_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    from io import StringIO

    step = {"kind": "step", "step": 5, "loss": 6.5, "tokens_per_second": 12_345.0, "seconds": 10.0}
    held = {"kind": "heldout", "step": 0, "loss": 7.25, "accuracy": 0.125}
    shown = {}
    for terminal in (True, False):
        text = StringIO()
        console = Console(
            file=text,
            force_terminal=terminal,
            width=80,
            highlight=False,
            markup=False,
            _environ={"TERM": "xterm"},
        )
        with Terminal(console) as screen:
            screen.reading("corpus/[a]*.txt", 1_000_000, 250_000)
            screen.begin(10)
            screen.record(held)
            screen.record(step)
            screen.say("a note")
        shown[terminal] = text.getvalue()
    assert shown[False].splitlines() == [
        "reading corpus/[a]*.txt: 1 M characters, 250 k tokens",
        "step      0  held-out loss 7.250  accuracy 12.5%",
        "a note",
    ]  # the step's line is due after ten seconds, or at the end
    assert "loss 6.500  held-out 7.250  12.3 k tok/s  10s left" in shown[True]
    assert "reading corpus/[a]*.txt" in shown[True]
    assert "a note" in shown[True]
    assert ANSI in shown[True]
