"""Words come out right for every kind of tokenizer (a known collator takes whole texts for one word)."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from cloze.data.units import MAX_UNIT, UnitRule, unit_starts

SENTENCE = "The Jungle Book isn't unbelievably short"
TRAINING = [
    SENTENCE,
    "the old house was near to the river and she had been there with them before",
    "a b c",
] * 3
SPECIAL = ["[UNK]", "[CLS]", "[SEP]"]


def frame(tokenizer: Tokenizer) -> processors.PostProcessor:
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    return processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)


def byte_level(template: bool, use_regex: bool = True, trim: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    # Merges must not cross words where the pre-tokenizer keeps the whole text in one piece.
    tokenizer.train_from_iterator([word for text in TRAINING for word in text.split()], trainer)
    if trim:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if template:
        tokenizer.post_processor = frame(tokenizer)
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    tokenizer.post_processor = frame(tokenizer)
    return tokenizer


def unigram(split: bool) -> Tokenizer:
    letters = sorted(set("".join(TRAINING)) - {" "})
    words = ["▁The", "▁Book", "▁", "▁un", "able", "▁short", "▁the", "▁is"]
    entries = [("[UNK]", 0.0), *((word, -2.0) for word in words), *((letter, -6.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(entries, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    return tokenizer


def llama_like() -> Tokenizer:
    tokenizer = unigram(split=True)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def units_of(tokenizer: Tokenizer, text: str) -> tuple[UnitRule, list[str]]:
    rule = UnitRule.probe(tokenizer)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    starts = np.flatnonzero(unit_starts(rule, encoding))
    stops = [*starts[1:], len(encoding)]
    spans = [
        text[encoding.offsets[a][0] : encoding.offsets[b - 1][1]] for a, b in zip(starts, stops, strict=True)
    ]
    return rule, [span.strip() for span in spans]


@pytest.mark.parametrize(
    ("tokenizer", "way", "words"),
    [
        pytest.param(
            byte_level(False), "word_ids", "The|Jungle|Book|isn|'t|unbelievably|short", id="byte-bare"
        ),
        pytest.param(
            byte_level(True), "word_ids", "The|Jungle|Book|isn|'t|unbelievably|short", id="byte-template"
        ),
        pytest.param(
            byte_level(False, trim=True),
            "word_ids",
            "The|Jungle|Book|isn|'t|unbelievably|short",
            id="byte-trim",
        ),
        pytest.param(
            byte_level(True, use_regex=False),
            "prefix",
            "The|Jungle|Book|isn't|unbelievably|short",
            id="byte-one",
        ),
        pytest.param(wordpiece(), "word_ids", "The|Jungle|Book|isn|'|t|unbelievably|short", id="wordpiece"),
        pytest.param(unigram(True), "word_ids", "The|Jungle|Book|isn't|unbelievably|short", id="metaspace"),
        pytest.param(
            unigram(False), "prefix", "The|Jungle|Book|isn|'|t|unbelievably|short", id="metaspace-one"
        ),
        pytest.param(llama_like(), "prefix", "The|Jungle|Book|isn|'|t|unbelievably|short", id="llama"),
    ],
)
def test_words_come_out_right(tokenizer: Tokenizer, way: str, words: str) -> None:
    rule, found = units_of(tokenizer, SENTENCE)
    assert rule.way == way
    assert found == words.split("|")


def test_continuation_marks_tell_words_where_nothing_else_does() -> None:
    tokenizer = wordpiece()
    pieces = tokenizer.encode("unbelievably short", add_special_tokens=False)
    tokenizer.pre_tokenizer = None
    rule = UnitRule.probe(tokenizer)
    assert rule.way == "suffix"
    ids = np.array(pieces.ids)
    assert rule.starts([pieces], ids, np.array([0, len(ids)])).sum() == 2


def test_without_any_mark_every_token_is_a_unit() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"A": 0, "C": 1, "AC": 2}, merges=[("A", "C")]))
    rule = UnitRule.probe(tokenizer)
    encoding = tokenizer.encode("ACCA", add_special_tokens=False)
    assert rule.way == "tokens"
    assert unit_starts(rule, encoding).tolist() == [True, True, True]


def test_units_are_cut_after_32_tokens_and_never_span_encodings() -> None:
    tokenizer = byte_level(False)
    rule = UnitRule.probe(tokenizer)
    encodings = tokenizer.encode_batch(["q" * 70, "qq", "", "q"], add_special_tokens=False)
    bounds = np.cumsum([0, *map(len, encodings)])
    ids = np.concatenate([np.array(encoding.ids, dtype=np.int64) for encoding in encodings])
    assert np.flatnonzero(rule.starts(encodings, ids, bounds)).tolist() == [0, MAX_UNIT, 2 * MAX_UNIT, 70, 72]
    assert rule.starts([], ids[:0], np.zeros(1, dtype=int)).tolist() == []
