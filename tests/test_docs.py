"""The documentation is true: commands run, examples work, generated pages are fresh, links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def files_of(page: Path) -> dict[str, str]:
    """Blocks that open with their file name in a comment: {name: content}."""
    found = (re.fullmatch(r"# (\S+\.\w+)\n(.*)", b, re.DOTALL) for b in blocks(page, r"\w+"))
    return {match[1]: match[2] for match in found if match}


def test_adding_a_masking_policy_works_as_told(corpus: Path, tmp_path: Path) -> None:
    """The three files of the page, added to a copy of the package: its test passes, its recipe trains."""
    files = files_of(ROOT / "docs" / "add-a-masking-policy.md")
    assert [Path(name).name for name in files] == ["block.py", "test_block.py", "block.yaml"]
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in files.items():
        assert not (tmp_path / name).exists(), f"{name} is in the package"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, "utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "PYTHONDONTWRITEBYTECODE": "1"}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    tests = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "tests")
    assert "4 passed" in tests
    sets = (
        "data.heldout.minimum=2000",
        "evaluation.times=1",
        "model.size=tiny",
        "tokenizer.vocabulary=320",
        "training.phases=[{share: 1.0, length: 64, rows: 8}]",
    )
    options = [part for s in sets for part in ("--set", s)]
    python("-m", "cloze", "pretrain", "block", "--data", str(corpus), "--budget", "2steps", *options)
    summary = json.loads((tmp_path / "runs" / "block" / "summary.json").read_text("utf-8"))
    assert summary["choices"]["masking"] == "one block of tokens, 30%"


def test_the_list_of_settings_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))["page"]()
    written = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    assert page == written, "run python docs/make_configuration.py"


def test_the_list_of_settings_has_every_field() -> None:
    """The control: the page is compared with the fields of a resolved recipe, not with its own generator."""
    from cloze.recipes.load import list_recipes

    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")

    def fields(tree: dict[str, Any]) -> set[str]:
        named = tree.get("variants") or {}  # by names that a recipe chooses, as `use` of a stage is
        values = [*(v for k, v in tree.items() if k not in ("variants", "use")), *named.values()]
        below = [v for value in values for v in (value if isinstance(value, list) else [value])]
        return set(tree).union(*(fields(v) for v in below if isinstance(v, dict)))

    for recipe in list_recipes():
        for name in fields(recipe.model_dump(mode="json")):
            assert f"| `{name}` |" in page


def test_every_recipe_and_policy_has_a_card() -> None:
    from cloze.masking import POLICIES
    from cloze.recipes.load import shipped

    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    cards = {part.partition("\n")[0]: part for part in text.split("\n### ")[1:]}
    assert set(cards) == {
        *shipped(),
        *(f"policy: {kind}" for kind in POLICIES),
        "replace",
        "generator, clusters",
    }
    for name, card in cards.items():
        if name == "generator, clusters":
            continue
        wanted = ("What:", "Paper:", "Choices:", "Unbiased for:", "Cost:", "Settings:")
        assert all(f"- **{point}**" in card for point in wanted), name
        assert "- **Helps" in card and ("- **Hurts:**" in card or "- **Helps, hurts:**" in card), name


def test_the_files_of_a_run_are_all_described(trained: Any) -> None:
    page = (ROOT / "docs" / "files.md").read_text("utf-8")
    metrics = (trained.folder / "metrics.jsonl").read_text("utf-8")
    samples = json.loads((trained.folder / "samples.json").read_text("utf-8"))
    trees = [trained.summary, samples, *map(json.loads, metrics.splitlines())]
    trees += [value for value in trained.summary.values() if isinstance(value, dict)]
    trees += [samples["words"][0], samples["frequency"][0], samples["examples"][0]]
    missing = {key for tree in trees for key in tree if f"`{key}`" not in page}
    files = {path.name for path in trained.folder.iterdir()}
    files |= {path.name for path in next((trained.folder / "checkpoints").iterdir()).iterdir()}
    missing |= {name for name in files if not re.search(rf"\b{re.escape(name)}\b", page)}
    assert not missing


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?s)```.*?```", "", page.read_text("utf-8"))):
            place, _, anchor = link.partition("#")
            if "://" in place:
                continue
            target = (page.parent / place).resolve() if place else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.name}: {link}")
    assert not broken


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_pages_name_no_machine() -> None:
    for page in PAGES:
        found = re.findall(r"(?<![\w.])/(?:work|tmp|home|root|Users)/\S*|—", page.read_text("utf-8"))
        assert not found, (page.name, found)
