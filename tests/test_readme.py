"""The commands that README.md and the docs quote: all exist, and those of the README and the tutorial run.

Only commands in ```sh blocks count, one a line that starts with `cloze `. WORDS IN CAPITALS are placeholders:
such a command is parsed but not run.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cloze import cli
from cloze.recipes.load import load_recipe, shipped

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = [ROOT / "README.md", ROOT / "docs" / "tutorial.md"]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]{2,}\b")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page."""
    return _BLOCK.findall(page.read_text("utf-8"))


def commands(page: Path) -> list[str]:
    """The quoted commands of a page."""
    lines = [line for kind, text in blocks(page) if kind == "sh" for line in text.splitlines()]
    return [line for line in lines if line.startswith("cloze ")]


def split(line: str) -> tuple[list[str], str | None]:
    """The arguments of a command, and the file that its output goes to."""
    words = shlex.split(line, comments=True)[1:]
    if ">" in words:
        at = words.index(">")
        return words[:at], words[at + 1]
    return words, None


def is_template(line: str) -> bool:
    return bool(_PLACEHOLDER.search(line.replace("[MASK]", "")))


QUOTED = [(page, line) for page in PAGES if page.is_file() for line in commands(page)]


def test_there_are_commands() -> None:
    verbs = {split(line)[0][0] for page, line in QUOTED if page.name == "README.md"}
    assert verbs == {"recipes", "pretrain", "prepare", "fill", "export", "diagnose", "evaluate", "compare"}


def options_of(arguments: Sequence[str]) -> dict[str, Any]:
    """The command's parameters as it would get them. Errors: no such command, option or value."""
    context = typer.main.get_command(cli.app).make_context("cloze", list(arguments))
    while True:
        rest = [*context._protected_args, *context.args]
        if not rest or not hasattr(context.command, "resolve_command"):
            return context.params
        name, command, rest = context.command.resolve_command(context, rest)
        context = command.make_context(name, list(rest), parent=context)


@pytest.mark.parametrize(("page", "line"), QUOTED, ids=[f"{page.name}: {line}" for page, line in QUOTED])
def test_a_quoted_command_exists(page: Path, line: str) -> None:
    arguments, _ = split(line)
    options = options_of(arguments)
    if arguments[0] != "pretrain":
        return
    recipe = options["recipe"]
    own = [yaml.safe_load(text).get("name") for kind, text in blocks(page) if kind == "yaml"]
    assert recipe in (*shipped(), *own) or recipe.endswith(".yaml") or is_template(recipe)
    start = {"model": {"kind": "pretrained", "path": "x"}} if options["model"] else {}
    name = recipe if recipe in shipped() else "mlm"
    if not is_template(" ".join(options["overrides"] or [])):
        load_recipe(name, options["overrides"] or [], start)
    if options["budget"] and not is_template(options["budget"]):
        load_recipe(name, [f"training.budget={options['budget']}"])


def test_a_command_that_does_not_exist_is_found() -> None:
    for line in (
        "cloze pretrain mlm --bugdet 3m",
        "cloze prepair --data x",
        "cloze fill",
        "cloze recipes shwo mlm",
    ):
        with pytest.raises(cli._UsageError):
            options_of(split(line)[0])
    assert options_of(["pretrain", "mlm", "--budget", "3m"])["budget"] == "3m"
    assert options_of(["recipes", "show", "mlm"]) == {"name": "mlm"}


# -- run --------------------------------------------------------------------------------------------------


@pytest.fixture
def scratch(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the texts that the pages speak of."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    monkeypatch.chdir(tmp_path)
    texts = corpus.read_text("utf-8").split("\n\n")
    for folder in ("my_text", "wiki", "corpus"):
        Path(folder).mkdir()
        shutil.copy(corpus, Path(folder) / "a.txt")
    shutil.copy(corpus, "notes.txt")
    Path("valid.txt").write_text("\n\n".join(texts[:100]), encoding="utf-8")
    both = {"text": texts, "body": texts}
    for name in ("papers", "news"):
        Dataset.from_dict(both).to_json(f"{name}.jsonl")
    pq.write_table(pa.table(both), "corpus/a.parquet")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tiny: tuple[str, ...]) -> None:
    """Every run of this test is tiny, where the command does not say otherwise; budgets are 2 and 3 steps."""
    from cloze import run
    from cloze.comparison import arms
    from cloze.comparison.budget import Allowance
    from cloze.data import corpus as corpus_module

    resolve, make_store = run.resolve, corpus_module.make_store

    def smaller(
        recipe: Any,
        data: Any = None,
        budget: str | None = None,
        model: Any = None,
        overrides: Sequence[str] = (),
    ) -> Any:
        said = resolve(recipe, data, budget, model, overrides)[0]
        mine = [t for t in tiny if t.split("=")[0] not in ("tokenizer.vocabulary", "model")]
        if said.tokenizer.kind == "train" and said.tokenizer.algorithm == "bpe":
            mine.append("tokenizer.vocabulary=320")
        if said.model.kind == "new":
            mine += [t for t in tiny if t.startswith("model=")]
        mine = [t for t in mine if not any(o.split("=")[0] == t.split("=")[0] for o in overrides)]
        steps = "3steps" if budget in ("2h", "20Mtok") else "2steps"
        return resolve(recipe, data, steps, model, [*mine, *overrides])

    monkeypatch.setattr(run, "resolve", smaller)
    monkeypatch.setattr(arms, "resolve", smaller)
    monkeypatch.setattr(Allowance, "parse", classmethod(lambda cls, text: cls(2, "steps")))
    monkeypatch.setattr(
        corpus_module, "make_store", lambda *a, **k: make_store(*a, **k | {"vocabulary": 320})
    )


@pytest.mark.usefixtures("scratch", "quick")
@pytest.mark.parametrize("page", RUN, ids=[page.name for page in RUN])
def test_the_quoted_commands_run(
    page: Path, cloze: Callable[..., Any], corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloze.data.files.books", lambda: corpus)
    for kind, text in blocks(page):
        if kind == "yaml" and (named := re.match(r"# ([\w-]+\.yaml)\n", text)):
            Path(named[1]).write_text(text, encoding="utf-8")
    done = 0
    for line in commands(page):
        if is_template(line) or ("training.trackers" in line and find_spec("tensorboard") is None):
            continue
        arguments, target = split(line)
        result = cloze(*arguments)
        assert result.code == 0, f"{line}\n{result.err}"
        assert result.out
        if target is not None:
            Path(target).write_text(result.out, encoding="utf-8")
        done += 1
    assert done >= 8


@pytest.mark.usefixtures("scratch", "quick")
@pytest.mark.parametrize("page", RUN, ids=[page.name for page in RUN])
def test_the_quoted_python_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for kind, text in blocks(page):
        if kind == "python" and "cloze.pretrain(" in text:
            exec(compile(text, str(page), "exec"), names)
    assert names["run"].summary["steps"] == 2
    assert str(names["run"].summary["heldout_loss"]) in capsys.readouterr().out
