"""The report is one safe, self-contained page for any run folder, finished or not."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report.fake_run import write_fake_run

from cloze.errors import ClozeError
from cloze.report.page import write_report
from cloze.report.plots import save_loss_plot
from cloze.report.reading import MAX_POINTS, read_run

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """The elements, attributes and visible text of a page; complains about tags that do not match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture
def fake_run(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    return write_fake_run(tmp_path / "run")


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_finished_run_says_what_happened(fake_run: Path) -> None:
    page = page_of(fake_run)
    for words in (
        "mlm-low-variance",
        "4.21",
        "2.30 below unigram (6.51)",
        "31.2%",
        "10 times the probability",
    ):
        assert words in page.text
    for heading in (
        "Learning curves",
        "Which words are learnt",
        "Blanks, filled in",
        "How it was made",
        "Notes",
    ):
        assert heading in page.text
    assert "has not finished" not in page.text
    assert "changes the objective" not in page.text
    assert page.tags.count("svg") == 5
    assert [path.name for path in fake_run.glob("report*")] == ["report.html"]


def test_page_needs_nothing_else(fake_run: Path) -> None:
    source = write_report(fake_run).read_text(encoding="utf-8")
    page = Page(source)
    assert not {"script", "iframe", "img", "object"} & set(page.tags)
    references = [
        value or "" for name, value in page.attributes if name in ("src", "href", "srcset", "action")
    ]
    references += re.findall(r"url\(([^)]*)\)", source)
    assert references and all(reference.startswith(("#", "data:,")) for reference in references)
    assert not re.search(r"@import|https?:", source)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {reference[1:] for reference in references if reference.startswith("#")} <= set(ids)


def test_user_text_is_escaped(fake_run: Path) -> None:
    hostile = "<script>alert(1)</script>\"'&"
    edit(
        fake_run / "summary.json",
        lambda summary: summary.update(recipe=hostile, about=hostile, paper=hostile),
    )
    edit(fake_run / "summary.json", lambda summary: summary["data"].update({hostile: [hostile]}))
    edit(fake_run / "samples.json", lambda samples: samples["frequency"][0].update(label=hostile))
    edit(fake_run / "samples.json", lambda samples: samples["examples"][0]["tokens"][0].update(text=hostile))
    (fake_run / "recipe.yaml").write_text(hostile)
    page = page_of(fake_run)
    assert "script" not in page.tags
    assert page.text.count(hostile) >= 8


def test_unfinished_run_says_so_and_leaves_out_the_rest(fake_run: Path) -> None:
    for name in ("summary.json", "samples.json", "recipe.yaml"):
        (fake_run / name).unlink()
    page = page_of(fake_run)
    assert "This run has not finished" in page.text
    assert "left out here: summary.json, samples.json, recipe.yaml." in page.text
    assert "Blanks, filled in" not in page.text
    assert "held-out loss 4.10 nats" in page.text
    assert "nan" not in page.text


@pytest.mark.parametrize(
    "metrics", ["", '{"kind": "heldout", "step": 0, "tokens": 0, "seconds": 0, "loss": 9}\n', "null\n[]\n"]
)
def test_run_that_only_just_began(tmp_path: Path, metrics: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(metrics)
    page = page_of(tmp_path)
    assert "This run has not finished" in page.text
    assert "Learning curves" not in page.text
    save_loss_plot(tmp_path, tmp_path / "loss.png")


def test_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ClozeError, match="is not a run"):
        write_report(tmp_path)


def test_half_written_files(fake_run: Path) -> None:
    whole = read_run(fake_run)
    with (fake_run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 3010, "tok')
    (fake_run / "summary.json").write_text('{"recipe": ')
    run = read_run(fake_run)
    assert len(run.steps["step"]) == len(whole.steps["step"])
    assert "summary.json (unreadable)" in page_of(fake_run).text


def test_biased_recipe_says_so(fake_run: Path) -> None:
    edit(fake_run / "summary.json", lambda summary: summary.update(unbiased=False))
    assert "This recipe changes the objective" in page_of(fake_run).text


def test_a_model_below_the_baseline_is_not_praised(fake_run: Path) -> None:
    edit(fake_run / "summary.json", lambda summary: summary.update(heldout_loss=6.9))
    text = page_of(fake_run).text
    assert "does not beat the unigram baseline" in text
    assert "0.39 above unigram" in text


def test_training_loss_on_another_scale_gets_its_own_plot(fake_run: Path) -> None:
    lines = [json.loads(line) for line in (fake_run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "step":
            line["loss"] *= 5
    (fake_run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = page_of(fake_run)
    assert "its own plot" in page.text
    assert page.tags.count("svg") == 6


def test_long_run_stays_small(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "long", steps=100_000, every=1)
    assert write_report(folder).stat().st_size < 500_000
    run = read_run(folder)
    assert len(run.steps["loss"]) == MAX_POINTS
    assert run.steps["step"].mean() == pytest.approx(50_000.5)


def test_last_line_of_a_repeated_step_counts_and_gaps_stay_gaps(tmp_path: Path) -> None:
    losses = [(1, 5.0), (2, float("nan")), (3, 4.0), (2, 4.5), (4, None)]
    lines = [{"kind": "step", "step": step, "loss": loss} for step, loss in losses]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    steps = read_run(tmp_path).steps
    assert steps["step"].tolist() == [1, 2, 3, 4]
    assert steps["loss"][:3].tolist() == [5.0, 4.5, 4.0]
    assert steps["loss"][3] != steps["loss"][3]


def test_half_a_surrogate_pair_does_not_stop_the_report(fake_run: Path) -> None:
    edit(fake_run / "samples.json", lambda samples: samples["words"][0].update(word="\ud83d"))
    assert page_of(fake_run).text


def test_loss_plot_is_a_png(fake_run: Path, tmp_path: Path) -> None:
    save_loss_plot(fake_run, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_noise_is_a_table_of_what_was_measured(fake_run: Path) -> None:
    assert "noise comes from" not in page_of(fake_run).text
    first = {"kind": "variance", "step": 300, "rows": 26, "mask_share": 0.5}
    again = first | {"mask_share": 0.91, "mask_share_low": 0.88, "mask_share_high": 0.93}
    last = {"kind": "variance", "step": 900, "noise_scale_low": 40.0}
    with (fake_run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in (first, again, last))
    text = page_of(fake_run).text
    assert "noise comes from" in text
    assert "91% [88%, 93%]" in text
    assert "50%" not in text.split("noise comes from")[1].split("Measured on")[0]  # the first try of step 300
    assert "≥ 40" in text
    assert "proposal saves" not in text
