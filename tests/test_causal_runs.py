"""Runs whose models read from left to right: what goes out, what it computes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, pipeline

import cloze
from cloze import ClozeError, Run, load
from cloze.estimate import estimate
from cloze.evaluation.examples import in_words
from cloze.evaluation.readings import readable
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites.base import Options
from cloze.evaluation.suites.minimal_pairs import SUITE
from cloze.fill import fill_blanks
from cloze.run import resolve

Train = Callable[..., Run]
Cloze = Callable[..., Any]
MODERN = "model={kind: new, family: modernbert, layers: 3, width: 32, heads: 2, longest: 200}"
LONG = "training.phases=[{share: 1.0, length: 192, rows: 16}]"  # beyond ModernBERT's window
LEFT = ["perplexity", "causal_bits_per_character"]
MASKED = ["pseudo_perplexity", "pseudo_bits_per_character", "pseudo_bits_per_character_word_l2r"]
CAUSAL = ("causal", "prefix", "meap", "gpt-bert")


@pytest.fixture(scope="module")
def runs(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """`runs(recipe)`: a finished run, made once."""
    made: dict[str, Run] = {}

    def run(name: str) -> Run:
        if name not in made:
            out = tmp_path_factory.mktemp("runs") / name
            shape = (MODERN, LONG) if name in ("gpt-bert", "meap") else ()
            made[name] = train(out, *shape, recipe=name, budget="4steps")
        return made[name]

    return run


@pytest.mark.parametrize(
    ("name", "measures", "family"),
    [
        ("causal", "next tokens", "bert"),
        ("prefix", "tokens after a prefix", "bert"),
        ("meap", "next tokens", "modernbert-decoder"),
        ("gpt-bert", "masked tokens", "modernbert-decoder"),
    ],
)
def test_a_causal_run_leaves_a_decoder(
    name: str, measures: str, family: str, runs: Callable[[str], Run]
) -> None:
    run = runs(name)
    summary = run.summary
    assert summary["heldout_of"] == measures
    assert (summary["model"]["family"], summary["model"]["reading"]) == (family, "causal")
    assert summary["heldout_loss"] < summary["heldout_loss_initial"]
    assert type(run.model).__name__ == summary["model"]["class"]
    for folder in (run.folder / "model", max((run.folder / "checkpoints").iterdir())):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        assert type(model) is type(run.model)
        assert "pipeline_tag: text-generation" in (folder / "README.md").read_text("utf-8")
    # It computes what was trained: the run's own reading, on a text longer than the window.
    text = "The old river carried the silver lantern beyond the hill. " * 8
    longest = min(180, model.config.max_position_embeddings)
    ids = torch.tensor(run.tokenizer(text)["input_ids"][:longest])
    reader = cloze.load(run.folder)
    with torch.no_grad():
        stock = model(input_ids=ids[None]).logits[0]
    ours = reader.logits(ids, "causal")
    assert (ours - stock).abs().max() < 1e-4
    for other in (reader.logits(ids), reader.logits(ids, "prefix", 9)):
        assert (other - ours).abs().max() > 1e-3
    # Nothing was lost on the way out and back.
    trained = load_file(max((run.folder / "checkpoints").iterdir()) / "training.safetensors")
    mine = {n.split("encoder.", 1)[1]: t for n, t in trained.items() if n.startswith("model.")}
    assert all(torch.equal(p, mine[f"model.{n}"]) for n, p in reader.encoder.model.named_parameters())


def test_it_generates_in_a_pipeline(runs: Callable[[str], Run]) -> None:
    run = runs("causal")
    generate = pipeline("text-generation", model=str(run.folder / "model"))
    start = run.tokenizer.cls_token + "The old"
    (made,) = generate(start, max_new_tokens=5, do_sample=False, add_special_tokens=False)
    ids = torch.tensor(run.tokenizer(start, add_special_tokens=False)["input_ids"])
    assert ids[0] == run.tokenizer.cls_token_id
    reader = cloze.load(run.folder)
    for _ in range(5):
        ids = torch.cat([ids, reader.logits(ids, "causal")[-1].argmax()[None]])
    assert made["generated_text"].endswith(run.tokenizer.decode(ids, skip_special_tokens=True)[-8:])


@pytest.mark.parametrize("name", ["causal", "prefix"])
def test_samples_are_continuations(name: str, runs: Callable[[str], Run]) -> None:
    run = runs(name)
    (shown,) = in_words(json.loads((run.folder / "samples.json").read_text("utf-8"))["examples"])
    assert shown[0] == "continued" and ">>>" in shown[1]
    samples = json.loads((run.folder / "samples.json").read_text("utf-8"))
    assert samples["words"] and samples["frequency"]
    assert len(samples["examples"]) > 1
    for example in samples["examples"]:
        assert example.keys() == {"tokens", "continuation", "truth"}
        assert example["continuation"] and example["truth"]
    report = (run.folder / "report.html").read_text("utf-8")
    assert "Beginnings, continued" in report
    assert "Blanks, filled in" not in report
    assert "masks" not in report.partition("Learning curves")[0].partition("</head>")[2]
    assert f"per {run.summary['heldout_of'].replace('tokens', 'token')}" in report


def test_a_hybrid_fills_its_blanks_in_the_report(runs: Callable[[str], Run]) -> None:
    run = runs("gpt-bert")
    samples = json.loads((run.folder / "samples.json").read_text("utf-8"))
    assert any(t.get("masked") for e in samples["examples"] for t in e["tokens"])
    (_, filled), (_, continued) = in_words(samples["examples"])  # and it goes on with beginnings
    assert "[" in filled and ">>>" in continued
    report = (run.folder / "report.html").read_text("utf-8")
    assert "Beginnings, continued" in report and "Blanks, filled in" in report
    assert run.summary["variants"]["causal"]["visibility"] == "causal"
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    last = [line for line in lines if line["kind"] == "step"][-1]
    assert last["losses"].keys() == {"causal/next_token", "main/next_token"}


@pytest.mark.parametrize("name", ["causal", "prefix", "meap", "gpt-bert/model"])
def test_fill_is_refused_in_one_line(name: str, runs: Callable[[str], Run], cloze: Cloze) -> None:
    recipe, _, inner = name.partition("/")  # a folder without its recipe does not say that masks were seen
    result = cloze("fill", runs(recipe).folder / inner, "The old [MASK].")
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert "a causal language model" in line and "fills no blanks" in line


def test_fill_reads_a_hybrid_from_both_sides(runs: Callable[[str], Run], cloze: Cloze) -> None:
    run = runs("gpt-bert")
    text = "The old [MASK] mended the stone."
    assert cloze("fill", run.folder, text).code == 0
    ((guess,),) = fill_blanks(str(run.folder), text, 1)
    reader = load(run.folder)
    before = run.tokenizer(text)["input_ids"].index(run.tokenizer.mask_token_id) - 1
    read, alone = (reader.logits(text, sees)[before].softmax(-1).max().item() for sees in ("all", "causal"))
    assert guess.probability == pytest.approx(read, rel=1e-5)
    assert guess.probability != pytest.approx(alone, rel=1e-5)  # the control


def test_fill_goes_on_with_a_beginning(runs: Callable[[str], Run], cloze: Cloze) -> None:
    run = runs("causal")
    result = cloze("fill", run.folder, "The old")
    assert result.code == 0
    ids = torch.tensor(run.tokenizer("The old")["input_ids"][:-1])
    reader = load(run.folder)
    for _ in range(30):
        ids = torch.cat([ids, reader.logits(ids, "causal")[-1].argmax()[None]])
    expected = run.tokenizer.decode(ids, skip_special_tokens=True)
    assert result.out.split() == expected.split()


@pytest.mark.parametrize("name", [*CAUSAL, "slm"])
def test_heldout_is_measured_as_in_the_run(name: str, runs: Callable[[str], Run], tmp_path: Path) -> None:
    run = runs(name)
    found = cloze.evaluate(run.folder, "heldout", out=tmp_path).scores()["heldout"]["held-out text"]
    more = {
        "slm": [],
        "causal": LEFT,
        "meap": LEFT,
        "prefix": ["prefix_perplexity", *LEFT],
        "gpt-bert": [*MASKED, *LEFT, "prefix_perplexity"],
    }
    assert list(found) == ["loss", "accuracy", "bits_per_character", *more[name]]
    assert found["loss"]["mean"] == pytest.approx(run.summary["heldout_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "readings"),
    [
        ("causal", {"causal": 1}),
        ("meap", {"causal": 1}),
        ("prefix", {"prefix": 1, "causal": 1}),
        ("gpt-bert", {"masked": 1, "causal": 1, "prefix": 1}),
        ("slm", {"replaced": 0}),
        ("clm-then-mlm", {"masked": 0}),  # its causal stage is over
    ],
)
def test_minimal_pairs_are_scored_by_every_reading(
    name: str, readings: dict[str, int], runs: Callable[[str], Run], tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    row = {
        "sentence_good": "The old river carried the lantern.",
        "sentence_bad": "River lantern old the the.",
    }
    pairs.write_text(json.dumps(row) + "\n")
    assert dict(readable(Subject(runs(name).folder)).shifts) == readings
    suite = {"data": str(pairs)}
    (found,) = SUITE.run(Subject(runs(name).folder), Options(**suite)).values()
    first, *others = readings
    own = ["accuracy", *(["accuracy_word_l2r"] if first in ("masked", "replaced") else [])]
    assert list(found) == [*own, *(f"accuracy_{other}" for other in others)]
    for reading in readings:
        (one,) = SUITE.run(Subject(runs(name).folder), Options(**suite, reading=reading)).values()
        assert one["accuracy"] == found["accuracy" if reading == first else f"accuracy_{reading}"]
    with pytest.raises(ClozeError, match=r"^--reading (masked|replaced): .* is read "):
        wrong = "masked" if name == "slm" else "replaced"
        SUITE.run(Subject(runs(name).folder), Options(**suite, reading=wrong))


def test_a_causal_reading_sees_no_future_and_the_others_do(runs: Callable[[str], Run]) -> None:
    """gpt-bert: one checkpoint, three readings; what comes later changes the causal one not by a bit."""
    run = runs("gpt-bert")
    reader = cloze.load(run.folder)
    ids = torch.tensor(
        run.tokenizer("The old river carried the silver lantern beyond the hill.")["input_ids"]
    )
    later = ids.clone()
    later[9:] = later[9:].flip(0)
    same = [torch.equal(*(reader.logits(x, "causal")[:9] for x in (ids, later)))]
    same += [torch.equal(*(reader.logits(x, "prefix", n)[:9] for x in (ids, later))) for n in (4, 12)]
    same += [torch.equal(*(reader.logits(x)[:9] for x in (ids, later)))]
    assert same == [True, True, False, False]  # the prefix of 12 holds what was changed


def test_fine_tuning_reads_a_decoder_as_an_encoder(runs: Callable[[str], Run]) -> None:
    run = runs("gpt-bert")
    body = Subject(run.folder).body()
    assert type(body).__name__ == "ModernBertModel"
    ids = torch.tensor(run.tokenizer("The old river carried the lantern.")["input_ids"])[None]
    other = ids.clone()
    other[0, -2] += 1
    with torch.no_grad():
        before, after = (body(input_ids=x).last_hidden_state[0, 0] for x in (ids, other))
    assert (before - after).abs().max() > 1e-5  # the first token sees the last ones


def test_export_names_the_class_that_loads_it(
    runs: Callable[[str], Run], cloze: Cloze, tmp_path: Path
) -> None:
    result = cloze("export", runs("causal").folder, "--to", tmp_path / "decoder")
    assert result.code == 0
    assert "AutoModelForCausalLM.from_pretrained" in result.out
    AutoModelForCausalLM.from_pretrained(tmp_path / "decoder")


@pytest.mark.parametrize("name", ["causal", "meap", "prefix", "gpt-bert", "slm"])
def test_a_causal_run_can_be_diagnosed(
    name: str, runs: Callable[[str], Run], cloze: Cloze, tmp_path: Path
) -> None:
    out = tmp_path / "diagnosis"
    sizes = ("--sequences", 4, "--masks", 4, "--length", 24, "--out", out)
    result = cloze("diagnose", runs(name).folder, *sizes)
    assert (result.code, "Traceback" in result.err) == (0, False)
    found = json.loads((out / "diagnosis.json").read_text("utf-8"))
    nothing = name == "causal"
    assert found["drawn"] == {"causal": "", "prefix": "prefixes"}.get(name, "masks")
    assert (found["rate"] == 0.0) == (name in ("causal", "prefix"))
    assert (found["mask_share"]["value"] == 0.0) == nothing
    assert bool(found["score_savings"]) == (name in ("gpt-bert", "slm"))
    assert ("so that the mask term is 0" in result.out) == nothing
    assert bool(found["hamming"]) == (name not in ("causal", "prefix"))  # no distance between prefixes
    if nothing:
        refused = cloze("diagnose", runs(name).folder, *sizes, "--rate", 0.2)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert "hides nothing" in refused.err


@pytest.mark.parametrize("name", [*CAUSAL, "clm-then-mlm", "slm"])
def test_a_dry_run_knows_all_methods(name: str, corpus: Path, tiny: tuple[str, ...]) -> None:
    phases = "training.phases=[{share: 1.0, length: 64, rows: 16}]"
    recipe, _ = resolve(name, corpus, overrides=[*tiny, phases])
    lines = estimate(recipe)
    number, unit = lines["masking"].partition(": ")[2].split()[:2]
    predicted = float(number) * (1000 if unit == "k" else 1)
    shares = {"slm": 0.15, "gpt-bert": 1 / 16 + 15 / 16 * 0.225, "clm-then-mlm": 0.25 + 0.75 * 0.3}
    if name == "prefix":  # on average half of each sample
        assert 300 < predicted < 750
    else:
        assert predicted == pytest.approx(shares.get(name, 1.0) * 1024, rel=0.05)


def test_a_causal_checkpoint_goes_on_as_a_masked_one(
    runs: Callable[[str], Run], train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = runs("gpt-bert")
    caplog.set_level("INFO", logger="cloze")
    run = train(tmp_path / "run", recipe="adapt", model=str(before.folder), budget="2steps")
    assert "is a causal language model: its weights go on as an encoder's" in caplog.text
    assert type(run.model).__name__ == "ModernBertForMaskedLM"
    assert run.summary["heldout_of"] == "masked tokens"
    # And a masked one as a causal one.
    model = f"model={{kind: pretrained, path: {run.folder / 'model'}}}"
    back = train(tmp_path / "back", "tokenizer={kind: load}", model, recipe="causal", budget="2steps")
    assert type(back.model).__name__ == "ModernBertDecoderForCausalLM"


def test_a_family_without_a_decoder_is_refused_at_the_start(train: Train, tmp_path: Path) -> None:
    from helpers import tiny_model, word_tokenizer

    tiny_model("eurobert").save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    model = f"model={{kind: pretrained, path: {tmp_path / 'model'}}}"
    with pytest.raises(ClozeError, match=r"eurobert: .* goes out as a decoder, and this family has none"):
        train(tmp_path / "run", "tokenizer={kind: load}", model, recipe="causal")
    assert not (tmp_path / "run" / "model").exists()


def test_a_masked_model_after_a_causal_stage_is_a_stock_masked_lm(runs: Callable[[str], Run]) -> None:
    run = runs("clm-then-mlm")
    assert type(run.model).__name__ == "BertForMaskedLM"
    fill = pipeline("fill-mask", model=str(run.folder / "model"))
    assert len(fill(f"The old {run.tokenizer.mask_token} mended the stone.")) == 5
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    rates = [line["rate"] for line in lines if line["kind"] == "step"]
    assert rates[-1] == 0.3
