"""Every command of docs/adapt.md runs, in the order of the page, on tiny text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_readme import ROOT, commands, quick, split
from transformers import AutoTokenizer

from cloze.run import Run

__all__ = ["quick"]
PAGE = ROOT / "docs" / "adapt.md"


@pytest.fixture
def files(trained: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with what the page names."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.folder / "model", "encoder")
    texts = corpus.read_text("utf-8").split("\n\n")
    Path("general.txt").write_text("\n\n".join(texts[:400]), "utf-8")
    Path("general-valid.txt").write_text("\n\n".join(texts[400:500]), "utf-8")
    drugs = [t.replace("lantern", "clonidine").replace("harbour", "naloxone") for t in texts]
    Path("papers.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in drugs[100:]), "utf-8")
    Path("valid.txt").write_text("\n\n".join(drugs[:100]), "utf-8")
    Path("labelled").mkdir()
    for name, part in (("train", texts[:120]), ("test", texts[120:160])):
        rows = [f"{' '.join(text.split())[:200]}\t{'river' in text[:200]}" for text in part]
        Path(f"labelled/{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", "utf-8")


@pytest.mark.usefixtures("files", "quick")
def test_the_commands_of_the_guide_run(cloze: Callable[..., Any]) -> None:
    done = []
    for line in commands(PAGE):
        arguments, _ = split(line)
        result = cloze(*arguments)
        assert result.code == 0, f"{line}\n{result.err}"
        assert result.out
        done.append(arguments[0])
    assert {"diagnose", "export"} <= set(done)
    assert (done.count("pretrain"), done.count("evaluate")) == (6, 6)
    summary = json.loads(Path("runs/extended/summary.json").read_text("utf-8"))
    assert summary["steps"] == 3  # it was resumed with a larger budget
    tokens = [len(AutoTokenizer.from_pretrained(f)) for f in ("encoder", "my-encoder", "runs/mixed/model")]
    assert tokens[1] > tokens[0] == tokens[2]
