"""Minimal pairs: the scorer against one mask at a time through the stock model, and how files are read."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CLS, MASK, SEP, SIZE, tiny_model, widest, word_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import cloze.evaluation.pseudo_likelihood as scoring
from cloze.errors import ClozeError
from cloze.evaluation.pseudo_likelihood import Splitter, Tokens, pseudo_log_likelihoods
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites.base import Options
from cloze.evaluation.suites.minimal_pairs import SUITE, read
from cloze.models.encoder import isolate

WORDS = [[2, 1, 1], [1], [3], [1, 2, 4, 1, 1, 1], [1, 1], [2, 2]]  # tokens of each word of each sequence


def sequences(seed: int = 0) -> list[Tokens]:
    """Sequences of random tokens in words of the lengths above, between CLS and SEP."""
    draw = np.random.default_rng(seed)
    found = []
    for lengths in WORDS:
        text = draw.integers(5, SIZE, sum(lengths))
        units = np.repeat(np.arange(len(lengths)), lengths)
        found.append(Tokens(np.array([CLS, *text, SEP]), np.array([-1, *units, -1])))
    return found


def brute_force(stock: PreTrainedModel, tokens: Tokens, word: bool) -> float:
    """One forward pass and one masked token at a time; `word`: with the rest of its word masked too."""
    total = 0.0
    for place in np.flatnonzero(tokens.units >= 0):
        masked = torch.from_numpy(tokens.ids.copy())
        masked[place] = MASK
        later = place + 1
        while word and tokens.units[later] == tokens.units[place]:
            masked[later] = MASK
            later += 1
        with torch.no_grad():
            logits = stock(input_ids=masked[None]).logits[0, place]
        total += float(logits.double().log_softmax(0)[tokens.ids[place]])
    return total


@pytest.mark.parametrize("family", ["bert", "modernbert", "roberta", "deberta-v2"])
def test_scores_are_those_of_one_mask_at_a_time(family: str) -> None:
    net = tiny_model(family)
    stock = copy.deepcopy(net)
    encoder = isolate(net)
    assert encoder.isolates == (family != "deberta-v2")
    given = sequences()
    found = pseudo_log_likelihoods(encoder, MASK, given)
    for word, values in ((False, found.plain), (True, found.word_l2r)):
        wanted = torch.tensor([brute_force(stock, tokens, word) for tokens in given])
        assert (values - wanted).abs().max() < 1e-4
    several = torch.tensor([max(lengths) > 1 for lengths in WORDS])
    apart = (found.plain - found.word_l2r).abs()
    assert (apart[several] > 1e-3).all() and (apart[~several] == 0).all()
    other = pseudo_log_likelihoods(isolate(tiny_model(family, seed=1)), MASK, given)
    assert (other.plain - found.plain).abs().max() > 0.1  # the control


def test_long_sequences_in_which_windows_matter() -> None:
    net = tiny_model("modernbert")
    stock = copy.deepcopy(net)
    text = np.random.default_rng(0).integers(5, SIZE, 200)
    units = np.full(202, -1)
    units[[3, 90, 91, 199]] = [0, 1, 1, 2]  # only some tokens are scored
    tokens = Tokens(np.array([CLS, *text, SEP]), units)
    found = pseudo_log_likelihoods(isolate(net), MASK, [tokens])
    for word, values in ((False, found.plain), (True, found.word_l2r)):
        assert float(values[0]) == pytest.approx(brute_force(stock, tokens, word), abs=1e-4)


def test_the_way_copies_are_batched_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = isolate(tiny_model("bert"))
    whole = pseudo_log_likelihoods(encoder, MASK, sequences())
    told: list[tuple[int, int]] = []
    monkeypatch.setitem(scoring.FORWARD_TOKENS, "cpu", 10)
    cut = pseudo_log_likelihoods(encoder, MASK, sequences(), lambda done, total: told.append((done, total)))
    assert (cut.plain - whole.plain).abs().max() < 1e-4
    assert (cut.word_l2r - whole.word_l2r).abs().max() < 1e-4
    copies = sum(sum(words) + sum(words) - len(words) for words in WORDS)  # and one more for all but the last
    assert len(told) <= copies and told[-1][0] == told[-1][1]
    turned = pseudo_log_likelihoods(encoder, MASK, sequences()[::-1])
    assert (turned.plain.flip(0) - whole.plain).abs().max() < 1e-4


def test_logits_exist_at_the_predicted_places_only() -> None:
    encoder = isolate(tiny_model("bert", vocab_size=331))
    text = np.random.default_rng(0).integers(5, SIZE, 60)
    given = [Tokens(np.array([CLS, *text, SEP]), np.array([-1, *range(60), -1]))]
    with widest(331) as recorder:
        pseudo_log_likelihoods(encoder, MASK, given)
    assert recorder.rows == scoring.FORWARD_TOKENS["cpu"] // 62 == 33  # copies, of 62 tokens each


# -- words ------------------------------------------------------------------------------------------------


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece over a few words, as BERT has it: "un" + "##do"."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##do", "##ing", "the", "knot", ".", "Do"]
    inner = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    special = {f"{name.strip('[]').lower()}_token": name for name in names[:5]}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def test_words_are_told_apart_and_specials_are_not_scored() -> None:
    split = Splitter(piece_tokenizer())
    one, two, none = split(["undoing the knot.", "Do [MASK]", "  "])
    assert one.ids.tolist() == [CLS, 5, 6, 7, 8, 9, 10, SEP]
    assert one.units.tolist() == [-1, 0, 0, 0, 1, 2, 3, -1]
    assert MASK not in two.ids  # written in a sentence, it is text
    assert none.units.tolist() == [-1, -1]


def test_a_tokenizer_that_cuts_and_pads_does_neither_here() -> None:
    tokenizer = piece_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=16)
    [tokens] = Splitter(tokenizer)(["undoing the knot."])
    assert tokens.ids.size == 8


# -- files ------------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def pair(good: str = "w5 w6", bad: str = "w6 w5", **keys: str) -> dict[str, str]:
    return {"sentence_good": good, "sentence_bad": bad} | keys


def test_tasks_have_their_groups_in_their_names(tmp_path: Path) -> None:
    blimp = {"linguistics_term": "binding", "UID": "principle_A"}
    write(tmp_path / "all" / "blimp" / "a.jsonl.gz", [pair(field="syntax/semantics", **blimp)])
    write(tmp_path / "all" / "blimp" / "b.jsonl", [pair(field="syntax_semantics", **blimp | {"UID": "b"})])
    write(tmp_path / "all" / "supplement" / "turn_taking.jsonl", [pair(), pair()])
    write(tmp_path / "all" / "zorro" / "filler-gap-wh_question.jsonl", [pair()])
    (tmp_path / "all" / "README.md").write_text("about", encoding="utf-8")
    tasks = [p.task for p in read(str(tmp_path / "all"))]
    assert tasks == [
        "all/blimp/syntax_semantics/binding/principle_A",
        "all/blimp/syntax_semantics/binding/b",
        "all/supplement/turn_taking",
        "all/supplement/turn_taking",
        "all/zorro/filler-gap/wh_question",
    ]
    alone = tmp_path / "all" / "zorro" / "filler-gap-wh_question.jsonl"
    assert [p.task for p in read(str(alone))] == ["filler-gap/wh_question"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "bert"
    tiny_model("bert").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def test_accuracy_is_the_share_that_is_strictly_better(model: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    texts = [[" ".join(f"w{i}" for i in draw.integers(5, SIZE, 4)) for _ in range(2)] for _ in range(20)]
    rows = [pair(good, bad) for good, bad in texts]
    rows += [pair("w5 w6 unheard", "w5 w6 unseen")] * 20  # the same to the tokenizer: never right
    write(tmp_path / "pairs" / "x.jsonl", rows)
    subject = Subject(model)
    found = SUITE.run(subject, Options(data=str(tmp_path / "pairs")))
    stock = tiny_model("bert")
    split = Splitter(word_tokenizer())
    scores = [[brute_force(stock, tokens, False) for tokens in split(two)] for two in texts]
    wanted = sum(good > bad for good, bad in scores) / 40
    assert 0.05 < wanted < 0.45
    assert found == {"pairs/x": {"accuracy": [wanted], "accuracy_word_l2r": [wanted]}}  # words of one token
    swapped = write(tmp_path / "swapped.jsonl", [pair(bad, good) for good, bad in texts])
    [(_, other)] = SUITE.run(subject, Options(data=str(swapped))).items()
    assert other["accuracy"][0] == pytest.approx(1 - 2 * wanted)


def test_tasks_and_groups_can_be_chosen(model: Path, tmp_path: Path) -> None:
    for name in ("case-a", "case-b", "island-c"):
        write(tmp_path / "zorro" / f"{name}.jsonl", [pair()])
    subject = Subject(model)

    def tasks(*wanted: str) -> set[str]:
        return set(SUITE.run(subject, Options(data=str(tmp_path / "zorro"), tasks=wanted)))

    assert tasks() == {"zorro/case/a", "zorro/case/b", "zorro/island/c"}
    assert tasks("case") == {"zorro/case/a", "zorro/case/b"}
    assert tasks("b", "zorro/island/c") == {"zorro/case/b", "zorro/island/c"}
    with pytest.raises(ClozeError, match=r"--tasks iland: .*did you mean island"):
        tasks("case", "iland")


def test_columns_may_have_other_names(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"yes": "w5 w6", "no": "w7 w8"}])
    assert SUITE.run(Subject(model), Options(data=str(path), columns=("yes", "no"))).keys() == {"x"}


@pytest.mark.parametrize(
    ("row", "options", "wanted"),
    [
        ({"sentence_good": "w5"}, {}, "x.jsonl: row 2 has no 'sentence_bad' but sentence_good: .*--columns"),
        (pair(bad=" "), {}, "x.jsonl: row 2: 'sentence_bad' is no sentence, but ' '"),
        ({**pair(), "sentence_good": 3}, {}, "row 2: 'sentence_good' is no sentence, but 3"),
        (pair("w5 " * 400), {}, "row 2: a sentence of 402 tokens, the model takes 322"),
        (pair("w5 w6 w7"), {"length": 4}, "row 2: a sentence of 5 tokens, the model takes 4"),
        (pair(), {"columns": ("a",)}, "--columns a: give two"),
    ],
)
def test_rows_that_are_no_pairs(
    model: Path, tmp_path: Path, row: dict[str, Any], options: dict[str, Any], wanted: str
) -> None:
    path = write(tmp_path / "x.jsonl", [pair(), row])
    with pytest.raises(ClozeError, match=wanted):
        SUITE.run(Subject(model), Options(data=str(path), **options))


def test_a_sentence_without_tokens(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [pair(), pair("w5", "\u200b")])
    subject = Subject(model)
    subject.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(ClozeError, match="row 2: the tokenizer makes no token"):
        SUITE.run(subject, Options(data=str(path)))


def test_places_without_pairs(model: Path, tmp_path: Path) -> None:
    subject = Subject(model)
    with pytest.raises(ClozeError, match="use --data FOLDER"):
        SUITE.run(subject, Options())
    with pytest.raises(ClozeError, match="nowhere: no such file or folder"):
        SUITE.run(subject, Options(data=str(tmp_path / "nowhere")))
    (tmp_path / "notes.txt").write_text("text", encoding="utf-8")
    with pytest.raises(ClozeError, match=r"no sentence pairs: \.jsonl or \.ndjson files"):
        SUITE.run(subject, Options(data=str(tmp_path / "notes.txt")))
    (tmp_path / "binary.jsonl").write_bytes(b"\0\1\2")
    with pytest.raises(ClozeError, match="binary data"):
        SUITE.run(subject, Options(data=str(tmp_path / "binary.jsonl")))
