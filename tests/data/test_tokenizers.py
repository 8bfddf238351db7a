"""Loading and checking tokenizers."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cloze.data.sources import Document
from cloze.data.tokenizer_training import train_tokenizer
from cloze.data.tokenizers import check_tokenizer, load_tokenizer
from cloze.errors import ClozeError


def words_only(words: list[str], **names: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **names)


def test_a_tokenizer_without_mask_needs_one(tmp_path: Path) -> None:
    words_only(["a", "b"]).save_pretrained(tmp_path)
    with pytest.raises(ClozeError, match=r"tokenizer.add_mask_token=true"):
        load_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path, add_mask_token=True)
    assert tokenizer.mask_token == "[MASK]"
    assert tokenizer.mask_token_id == 3
    assert tokenizer("a [MASK]")["input_ids"] == [1, 3]


def test_a_mask_token_is_kept(tmp_path: Path) -> None:
    words_only(["a", "<m>"], mask_token="<m>").save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), add_mask_token=True).mask_token == "<m>"


def test_a_padding_token_is_added_too(tmp_path: Path) -> None:
    words_only(["a", "<m>"], mask_token="<m>").save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token is None
    assert load_tokenizer(tmp_path, add_mask_token=True).pad_token == "[PAD]"


def test_no_tokenizer_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloze.data.tokenizers.offline", lambda: True)
    with pytest.raises(ClozeError, match="no such folder, and the hub, where it may be, cannot be reached"):
        load_tokenizer("some-organisation/tokenizer")
    with pytest.raises(ClozeError, match="no tokenizer could be loaded") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"[PAD]": 0, "[UNK]": 1, "|": 2, "A": 3}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Wav2Vec2CTCTokenizer"}))
    with pytest.raises(ClozeError, match="slow tokenizer"):
        load_tokenizer(tmp_path)


def test_report(bpe: PreTrainedTokenizerFast, stories: list[Document]) -> None:
    report = check_tokenizer(bpe, ["The Jungle Book of the man", stories[0].text[:3_000]])
    assert report.vocabulary == 1024
    assert report.sample == "The| Jungle| Book| of| the| man"
    assert report.unknown_rate == 0
    assert 1 < report.units_per_word < 1.6
    assert 1.2 < report.fertility < 3
    assert report.characters_per_token > 2
    assert not report.warnings
    assert len(report.lines()) == 2
    assert all(len(line) <= 80 for line in report.lines())


def test_the_tokenizer_itself_is_left_alone(bpe: PreTrainedTokenizerFast) -> None:
    before = bpe.backend_tokenizer.to_str(), bpe.encode("[MASK]")
    check_tokenizer(bpe, ["one [MASK]"])
    assert (bpe.backend_tokenizer.to_str(), bpe.encode("[MASK]")) == before


def test_warnings() -> None:
    unknown = check_tokenizer(words_only(["a", "b"]), ["a b c", "a"])
    assert unknown.unknown_rate == 0.25
    assert "25.0% of the tokens are unknown" in unknown.warnings[0]
    assert unknown.lines()[-1].startswith("warning: ")
    characters = train_tokenizer(["abcdefg hijklmnop"], "characters", 64)
    assert not check_tokenizer(characters, ["abcdefgh ijklmnop"]).warnings
    foreign = train_tokenizer(["zz " * 9], "bpe", 261)
    assert "tokens a word" in check_tokenizer(foreign, ["unbelievable words"]).warnings[0]
    marks = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, " ": 2}, merges=[]))
    report = check_tokenizer(PreTrainedTokenizerFast(tokenizer_object=marks), ["ab a"])
    assert report.warnings == ["words cannot be told apart, every token is a unit"]


def test_nothing_to_check(bpe: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ClozeError, match="no words or no tokens"):
        check_tokenizer(bpe, ["  "])
