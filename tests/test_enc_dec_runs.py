"""Runs of `enc-dec`: what goes out, what it writes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import cloze
from cloze import ClozeError, Run
from cloze.data.tokenizers import sentinels_of
from cloze.estimate import estimate
from cloze.evaluation.examples import in_words
from cloze.evaluation.subject import Subject
from cloze.recipes.load import load_recipe
from cloze.run import resolve

Train = Callable[..., Run]
Cloze = Callable[..., Any]
ONE = "model={kind: new, family: modernbert, layers: 2, width: 32, heads: 2, longest: 200}"


@pytest.fixture(scope="module")
def run(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run."""
    return train(tmp_path_factory.mktemp("runs") / "run", recipe="enc-dec", budget="6steps")


def test_it_goes_out_as_t5_and_writes_spans(run: Run) -> None:
    summary = run.summary
    assert (summary["model"]["class"], summary["model"]["reading"]) == (
        "T5ForConditionalGeneration",
        "seq2seq",
    )
    assert summary["heldout_of"] == "tokens of hidden spans"
    assert summary["heldout_loss"] < summary["heldout_loss_initial"]
    folder = run.folder / "model"
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = run.tokenizer
    assert len(sentinels_of(tokenizer)) == 100
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)
    assert tokenizer.model_max_length == model.config.n_positions == 64
    text = tokenizer(
        "The old <extra_id_0> mended the stone.", return_tensors="pt", return_token_type_ids=False
    )
    assert sentinels_of(tokenizer)[0] in text["input_ids"][0].tolist()
    out = model.generate(**text, max_new_tokens=5)
    assert out[0, 0] == tokenizer.pad_token_id
    card = (folder / "README.md").read_text("utf-8")
    assert "pipeline_tag: text2text-generation" in card and "<extra_id_0>" in card
    assert "uniform masks" not in card


def test_a_terminal_shows_what_stands_for_each_sentinel() -> None:
    tokens = [{"text": text} for text in (" ⟨0⟩", " he", " was", " ⟨1⟩", ",", " and ⟨2⟩")]
    example = {"tokens": tokens, "answer": " ⟨0⟩ Then ⟨1⟩ a thing", "truth": "⟨0⟩ Then ⟨1⟩ far gone ⟨2⟩ died"}
    assert in_words([example]) == [("written", "[Then] he was [a thing, not far gone], and [, not died]")]


def test_spans_are_written_out_in_the_report(run: Run) -> None:
    samples = json.loads((run.folder / "samples.json").read_text("utf-8"))
    assert len(samples["examples"]) > 1
    for example in samples["examples"]:
        assert example.keys() == {"tokens", "answer", "truth"}
        given = "".join(token["text"] for token in example["tokens"])
        assert "⟨0⟩" in given and "⟨0⟩" in example["truth"]
    report = (run.folder / "report.html").read_text("utf-8")
    assert "Spans, written out" in report and "Blanks, filled" not in report


def test_what_fills_blanks_is_refused_in_one_line(run: Run, cloze: Cloze) -> None:
    for command in (("fill", run.folder, "The old [MASK]."), ("diagnose", run.folder)):
        result = cloze(*command)
        assert (result.code, result.err.count("\n")) == (2, 1), result.err
        assert "an encoder-decoder" in result.err


def test_what_reads_an_encoder_gets_t5s(run: Run, tmp_path: Path) -> None:
    assert type(Subject(run.folder).body()).__name__ == "T5EncoderModel"
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"sentence_good": "The old river.", "sentence_bad": "River the old."}\n')
    with pytest.raises(ClozeError, match="no whole text has a probability, for it is an encoder-decoder"):
        cloze.evaluate(run.folder, "minimal-pairs", pairs)
    with pytest.raises(ClozeError, match="cannot be read as an encoder"):
        cloze.load(run.folder)


def test_heldout_is_measured_as_in_the_run(run: Run, tmp_path: Path) -> None:
    found = cloze.evaluate(run.folder, "heldout", out=tmp_path).scores()["heldout"]["held-out text"]
    assert found["loss"]["mean"] == pytest.approx(run.summary["heldout_loss"], abs=1e-5)
    assert "pseudo_perplexity" not in found


def test_export_names_the_class_that_loads_it(run: Run, cloze: Cloze, tmp_path: Path) -> None:
    result = cloze("export", run.folder, "--to", tmp_path / "model")
    assert result.code == 0
    assert "AutoModelForSeq2SeqLM.from_pretrained" in result.out


def test_it_goes_on_from_its_own_checkpoint(run: Run, train: Train, tmp_path: Path) -> None:
    model = f"model={{kind: pretrained, path: {run.folder / 'model'}}}"
    again = train(tmp_path / "run", "tokenizer={kind: load}", model, recipe="enc-dec", budget="2steps")
    assert again.summary["heldout_loss_initial"] == pytest.approx(run.summary["heldout_loss"], abs=1e-5)
    with pytest.raises(
        ClozeError, match=r"visibility\.kind=all: T5ForConditionalGeneration is an encoder-dec"
    ):
        train(tmp_path / "masked", "tokenizer={kind: load}", model, recipe="mlm", budget="2steps")


@pytest.mark.parametrize("visibility", ["causal", "prefix"])
@pytest.mark.parametrize("masking", ["spans", "rest"])
def test_one_network_does_the_same_and_goes_out_as_a_decoder(
    visibility: str, masking: str, train: Train, tmp_path: Path
) -> None:
    more = (f"masking.kind={masking}",) if masking == "rest" else ()
    run = train(
        tmp_path / "run", ONE, f"visibility.kind={visibility}", *more, recipe="enc-dec", budget="3steps"
    )
    assert run.summary["model"]["reading"] == "causal"
    assert run.summary["heldout_loss"] < run.summary["heldout_loss_initial"]
    AutoModelForCausalLM.from_pretrained(run.folder / "model")
    samples = json.loads((run.folder / "samples.json").read_text("utf-8"))
    assert "answer" in samples["examples"][0]


def test_bf16_accumulation_and_a_dry_run(
    corpus: Path, tiny: tuple[str, ...], train: Train, tmp_path: Path
) -> None:
    options = ("training.precision=bf16", "training.micro_tokens=128")
    run = train(tmp_path / "run", *options, recipe="enc-dec", budget="2steps")
    assert run.summary["heldout_loss"] < run.summary["heldout_loss_initial"]
    shape = (t.replace("family: bert", "family: t5") for t in tiny)
    recipe, _ = resolve("enc-dec", corpus, overrides=[*shape])
    assert "T5ForConditionalGeneration" in estimate(recipe)["model"]


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["visibility.kind=all"], "objective writes out what is hidden"),
        (["corruption.kind=replace"], "goes with corruption"),
        (["objective.kind=mlm", "corruption.kind=replace"], "visibility.kind=enc_dec needs"),
        (["masking.kind=mapnet"], "its weights are for single tokens"),
        (["training.compile=true"], "answers differ in length"),
    ],
)
def test_choices_that_do_not_go_together(sets: list[str], words: str) -> None:
    with pytest.raises(ClozeError, match=words):
        load_recipe("enc-dec", sets)
    load_recipe("enc-dec", ["masking={kind: rest}"])
