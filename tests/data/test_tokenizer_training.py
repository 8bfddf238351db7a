"""Trained tokenizers: sizes, special tokens, spans, and what they keep of the text."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cloze.data.sources import Document
from cloze.data.tokenizer_training import SPECIAL, Algorithm, train_tokenizer
from cloze.errors import ClozeError

ALGORITHMS: list[Algorithm] = ["bpe", "wordpiece", "characters"]
SENTENCE = "The Jungle Book, isn't it?"


def train(stories: list[Document], algorithm: Algorithm, size: int) -> PreTrainedTokenizerFast:
    return train_tokenizer((story.text[:5_000] for story in stories), algorithm, size)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [640, 100_000])
def test_vocabulary_is_a_multiple_of_64_and_survives_saving(
    stories: list[Document], algorithm: Algorithm, size: int, tmp_path: Path
) -> None:
    tokenizer = train(stories, algorithm, size)
    assert len(tokenizer) % 64 == 0
    assert len(tokenizer) == 640 or algorithm == "characters" or size > 640
    assert len(tokenizer) < 64_000
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2, 3, 4]
    unused = [token for token in tokenizer.get_vocab() if token.startswith("[unused")]
    assert len(unused) < 64
    assert set(tokenizer.all_special_tokens) == {*SPECIAL, *unused}
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == len(tokenizer)
    assert set(loaded.all_special_ids) == set(tokenizer.all_special_ids)
    assert loaded(SENTENCE)["input_ids"] == tokenizer(SENTENCE)["input_ids"]
    assert loaded(SENTENCE)["input_ids"][0] == loaded.cls_token_id
    assert loaded("a", "b")["input_ids"].count(loaded.sep_token_id) == 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_text_gives_the_same_tokenizer(stories: list[Document], algorithm: Algorithm) -> None:
    first, second = (train(stories, algorithm, 512).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("algorithm", ["bpe", "characters"])
def test_byte_level_and_characters_keep_the_text(stories: list[Document], algorithm: Algorithm) -> None:
    tokenizer = train(stories, algorithm, 512)
    text = stories[0].text[:2_000]
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_byte_level_keeps_any_text_and_its_spans_leave_spaces_out(bpe: PreTrainedTokenizerFast) -> None:
    text = "  😀👩‍👩‍👧 مرحبا בעולם\t\n e\u0301 \u2028"
    assert bpe.decode(bpe.encode(text, add_special_tokens=False)) == text
    encoding = bpe("The Book", return_offsets_mapping=True, add_special_tokens=False)
    assert "".join("The Book"[start:stop] for start, stop in encoding["offset_mapping"]) == "TheBook"


def test_the_mask_takes_the_space_before_it_in_byte_level(bpe: PreTrainedTokenizerFast) -> None:
    filled = bpe.tokenize("The [MASK] of")
    assert [token.strip() for token in filled] == ["The", "[MASK]", "Ġof"]
    ids = bpe.encode("The [MASK] of", add_special_tokens=False)
    book = bpe.encode(" book", add_special_tokens=False)
    place = ids.index(bpe.mask_token_id)
    assert bpe.decode([*ids[:place], *book, *ids[place + 1 :]]) == "The book of"


def test_characters_are_single_tokens_and_unseen_ones_unknown() -> None:
    tokenizer = train_tokenizer(["ACGT ACGT\nAC"], "characters", 64)
    assert tokenizer.tokenize("AC\nGZ") == ["A", "C", "\n", "G", "[UNK]"]
    assert len(tokenizer) == 64


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_lowercase(stories: list[Document], algorithm: Algorithm) -> None:
    tokenizer = train_tokenizer([stories[0].text], algorithm, 320, lowercase=True)
    assert tokenizer.tokenize("THE Mole") == tokenizer.tokenize("the mole")


def test_mistakes_are_told_in_one_line() -> None:
    with pytest.raises(ClozeError, match="choose one of bpe, wordpiece, characters"):
        train_tokenizer(["a"], "unigram", 64)  # type: ignore[arg-type]
    with pytest.raises(ClozeError, match="200 is too small for bpe; it needs at least 261"):
        train_tokenizer(["a"], "bpe", 200)
    for algorithm in ALGORITHMS:
        with pytest.raises(ClozeError, match="no text to train"):
            train_tokenizer([], algorithm, 320)
