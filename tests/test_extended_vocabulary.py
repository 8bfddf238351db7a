"""Runs with new tokens: they begin better than with random rows, resume, export, and say what cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from cloze.data.tokenizers import identity, ids_of
from cloze.data.vocabulary_extension import pieces_of_new
from cloze.errors import ClozeError
from cloze.export import export_model
from cloze.models import build
from cloze.models.build import PretrainedModelChoice
from cloze.run import Run

NEW = 60
EXTEND = f"tokenizer.extend={NEW}"


@pytest.fixture(scope="module")
def general(train: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that has learnt something about the pieces of the words in `corpus`."""
    out = tmp_path_factory.mktemp("general") / "run"
    return train(out, "training.budget=200steps", "evaluation.variance=false").folder / "model"


@pytest.fixture(scope="module")
def extended(train: Callable[..., Run], general: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on that model with new tokens."""
    out = tmp_path_factory.mktemp("extended") / "run"
    return train(out, EXTEND, recipe="adapt", model=str(general))


@pytest.fixture(scope="module")
def random_rows(train: Callable[..., Run], general: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The control: the same run, but new rows stay as transformers makes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "start_from_pieces", lambda model, pieces: None)
        out = tmp_path_factory.mktemp("random") / "run"
        return train(out, EXTEND, recipe="adapt", model=str(general))


def test_the_first_loss_is_better_than_with_random_rows(extended: Run, random_rows: Run) -> None:
    """The same tokens and masks in both, so nats a token compare, as bits a character would."""
    ours, control = (run.summary["heldout_loss_initial"] for run in (extended, random_rows))
    assert identity(extended.tokenizer) == identity(random_rows.tokenizer)
    assert ours < control - 0.2
    assert ours < torch.tensor(float(ids_of(extended.tokenizer))).log() - 0.5


@torch.no_grad()
def test_a_new_token_is_seen_like_its_pieces(
    general: Path, extended: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hidden state, against the mean of those of its pieces; rows of transformers are the control."""
    old, tokenizer = AutoTokenizer.from_pretrained(general), extended.tokenizer
    base = AutoModelForMaskedLM.from_pretrained(general).base_model.eval()
    choice = PretrainedModelChoice(path=str(general))
    models = {"pieces": build.build_model(choice, tokenizer, seed=0).base_model.eval()}
    monkeypatch.setattr(build, "start_from_pieces", lambda model, pieces: None)
    models["random"] = build.build_model(choice, tokenizer, seed=0).base_model.eval()
    likeness: dict[str, list[float]] = {"pieces": [], "random": []}
    words = {i: tokenizer.decode([i]) for i in pieces_of_new(old, tokenizer)}
    whole = {i: word for i, word in words.items() if word.startswith(" ") and len(word) > 6}
    assert len(whole) >= 6
    for new, word in whole.items():
        before = [old(part, add_special_tokens=False)["input_ids"] for part in ("The old", word, " at dawn")]
        start, stop = len(before[0]), len(before[0]) + len(before[1])
        wanted = (
            base(torch.tensor([[*before[0], *before[1], *before[2]]]))
            .last_hidden_state[0, start:stop]
            .mean(0)
        )
        for name, model in models.items():
            ids = torch.tensor([[*before[0], new, *before[2]]])
            found = model(ids).last_hidden_state[0, start]
            likeness[name].append(torch.cosine_similarity(wanted, found, dim=0).item())
    ours, control = (sum(values) / len(values) for values in likeness.values())
    assert ours > 0.8
    assert ours > control + 0.1


def test_the_model_grows_and_loads_with_stock_transformers(
    general: Path, extended: Run, tmp_path: Path
) -> None:
    export_model([extended.folder], tmp_path / "out")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(general)) + NEW
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings
    assert model.config.vocab_size == -(-len(tokenizer) // 64) * 64
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    text = "The old lantern followed the silver harbour."
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert torch.isfinite(model(**tokenizer(text, return_tensors="pt")).logits).all()


def test_new_tokens_come_from_the_text_that_is_trained_on(
    train: Callable[..., Run], general: Path, corpus: Path, tmp_path: Path
) -> None:
    """Weights count: words of a small text that is repeated often come first."""
    rare = tmp_path / "rare.txt"
    rare.write_text("\n\n".join(f"Naloxone {i} and clonidine {i * 7}." for i in range(900)), "utf-8")
    found = {}
    for weight in ("0.9", "0.001"):
        run = train(
            tmp_path / weight,
            "tokenizer.extend=12",
            recipe="adapt",
            model=str(general),
            data=[f"rare={weight}:{rare}", str(corpus)],
            budget="1steps",
        )
        found[weight] = len(run.tokenizer(" clonidine", add_special_tokens=False)["input_ids"])
    assert found["0.9"] < found["0.001"]


def test_what_is_made_is_a_model_like_any_other(
    train: Callable[..., Run], cloze: Callable[..., Any], extended: Run, corpus: Path, tmp_path: Path
) -> None:
    """It is evaluated, trained on with its own tokenizer, and extended once more."""
    model = str(extended.folder / "model")
    printed = []
    for name, folder in (("run", extended.folder), ("model", model)):
        out = tmp_path / f"scores-{name}"
        done = cloze("evaluate", folder, "--suite", "heldout", "--data", corpus, "--out", out)
        assert done.code == 0, done.err
        printed.append([line for line in done.out.splitlines() if "bits_per_character_word_l2r" in line])
    assert printed[0] == printed[1] != []
    same = train(tmp_path / "same", recipe="adapt", model=model)
    assert identity(same.tokenizer) == identity(extended.tokenizer)
    more = train(tmp_path / "more", "tokenizer.extend=5", recipe="adapt", model=model)
    assert ids_of(more.tokenizer) == ids_of(extended.tokenizer) + 5


def test_a_mask_token_is_added_as_well(train: Callable[..., Run], corpus: Path, tmp_path: Path) -> None:
    """To a tokenizer as those of language models are: byte-level, with neither a mask nor padding."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    backend.train([str(corpus)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "bytes")
    choice = f"tokenizer={{kind: load, path: {tmp_path / 'bytes'}, add_mask_token: true, extend: 20}}"
    run = train(tmp_path / "run", choice)
    assert len(run.tokenizer) == 300 + 2 + 20
    text = "The old lantern followed [MASK] harbour."
    assert run.tokenizer(text)["input_ids"].count(run.tokenizer.mask_token_id) == 1
    again = train(tmp_path / "run", choice, budget="8steps", resume=True)
    assert again.summary["steps"] == 8


# -- resume -----------------------------------------------------------------------------------------------


def test_a_run_with_new_tokens_resumes(
    train: Callable[..., Run], general: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without the cache: the same text gives the same tokens again."""
    first = train(tmp_path / "run", EXTEND, recipe="adapt", model=str(general))
    before = identity(first.tokenizer)
    monkeypatch.setenv("CLOZE_CACHE", str(tmp_path / "cache"))
    again = train(tmp_path / "run", EXTEND, recipe="adapt", model=str(general), budget="8steps", resume=True)
    assert again.summary["steps"] == 8
    assert identity(again.tokenizer) == before
    with pytest.raises(ClozeError, match="made by another recipe"):
        train(tmp_path / "run", recipe="adapt", model=str(general), budget="9steps", resume=True)


def test_changed_text_goes_on_with_the_tokens_of_the_run(
    train: Callable[..., Run], general: Path, corpus: Path, tmp_path: Path
) -> None:
    """What the error advises works."""
    text = tmp_path / "text.txt"
    text.write_text(corpus.read_text("utf-8"), "utf-8")
    options: dict[str, Any] = {"recipe": "adapt", "model": str(general), "data": text}
    run = train(tmp_path / "run", EXTEND, **options)
    text.write_text(corpus.read_text("utf-8") + "\n\n" + "Intravenous clonidine. " * 5000, "utf-8")
    with pytest.raises(ClozeError, match="gives another tokenizer") as error:
        train(tmp_path / "run", EXTEND, **options, budget="8steps", resume=True)
    advice = str(error.value).partition("--force --set ")[2]
    again = train(tmp_path / "run", advice, **options, budget="8steps", resume=True, force=True)
    assert again.summary["steps"] == 8
    assert identity(again.tokenizer) == identity(run.tokenizer)


# -- the command ------------------------------------------------------------------------------------------


def test_the_option(cloze: Callable[..., Any], general: Path, corpus: Path, tmp_path: Path) -> None:
    sets = (
        "data.heldout={share: 0.05, minimum: 2000}",
        "training.phases=[{share: 1.0, length: 64, rows: 8}]",
    )
    options = [part for s in sets for part in ("--set", s)]
    command = ("pretrain", "adapt", "--model", general, "--data", corpus, *options)
    start = (*command, "--out", tmp_path / "run", "--budget", "1steps")
    done = cloze(*start, "--extend-vocabulary", 25)
    assert done.code == 0, done.err
    assert "25 new tokens (" in done.err
    assert "% fewer tokens" in done.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert summary["data"]["vocabulary"] == len(AutoTokenizer.from_pretrained(general)) + 25
    plain, more = (cloze(*command, "--dry-run", *extra) for extra in ((), ("--extend-vocabulary", 1000)))
    assert (plain.code, more.code) == (0, 0)
    assert plain.out.splitlines()[0] != more.out.splitlines()[0]  # the parameters


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("adapt", "--model", "MODEL", "--extend-vocabulary", -3), "tokenizer.extend"),
        (("adapt", "--model", "MODEL", "--set", "tokenizer.extend=many"), "tokenizer.extend"),
        (("mlm", "--extend-vocabulary", 9), "unknown field tokenizer.extend"),
        (("adapt", "--extend-vocabulary", 9), "use --model"),
        (
            ("adapt", "--model", "MODEL", "--data", "STORE", "--extend-vocabulary", 9),
            "give the original text",
        ),
        (("adapt", "--model", "MODEL", "--data", "SHORT", "--extend-vocabulary", 9), "give more text"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[Any, ...],
    said: str,
    cloze: Callable[..., Any],
    general: Path,
    corpus: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "short.txt").write_text("The river and the stone.", "utf-8")
    if "STORE" in arguments:
        assert (
            cloze("prepare", "--data", corpus, "--tokenizer", general, "--out", tmp_path / "store").code == 0
        )
    places = {"MODEL": general, "STORE": tmp_path / "store", "SHORT": tmp_path / "short.txt"}
    given = [places.get(a, a) for a in arguments]
    given += [] if "--data" in arguments else ["--data", corpus]
    done = cloze("pretrain", *given, "--out", tmp_path / "run", "--budget", "1steps")
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) <= 2
