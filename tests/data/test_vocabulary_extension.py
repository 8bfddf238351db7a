"""New tokens for tokenizers of every kind: old ids stay, and text without new tokens is cut as before."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import pytest
from helpers import letter_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from cloze.data.sources import Document
from cloze.data.tokenizer_training import train_tokenizer
from cloze.data.tokenizers import identity, ids_of, load_tokenizer
from cloze.data.vocabulary_extension import (
    MIN_COUNT,
    count_words,
    extend_tokenizer,
    mix,
    pieces_of_new,
)
from cloze.errors import ClozeError

# The classes with names build their backend anew when they are loaded, from the vocabulary and the merges.
KINDS = ("wordpiece", "BertTokenizer", "bpe", "RobertaTokenizer", "unigram", "XLMRobertaTokenizer")
SIZE = 200
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
DRUGS = ("clonidine", "naloxone", "lidocaine", "haloperidol", "methyldopa", "asystole", "glioblastoma")
FRAMES = (
    "{} reverses the antihypertensive effect of {}.",
    "In hypertensive rats {} was inhibited ({} alone did not).",
    "Intravenous {}, after {}s and the man in the jungle",
)


def abstract(number: int) -> str:
    """A made-up text with words that the books do not have."""
    draw = random.Random(number)
    return " ".join(draw.choice(FRAMES).format(*draw.choices(DRUGS, k=2)) for _ in range(20))


DOMAIN = [abstract(i) for i in range(30)]


def make(kind: str, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A small tokenizer for general text."""
    if kind in ("wordpiece", "BertTokenizer"):
        trained = train_tokenizer(texts, "wordpiece", 1024, lowercase=True)
        return trained if kind == "wordpiece" else BertTokenizer(vocab=trained.get_vocab())
    if kind == "bpe":
        return train_tokenizer(texts, "bpe", 512)
    if kind == "RobertaTokenizer":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
        model = json.loads(backend.to_str())["model"]
        # Its <mask> is not in the vocabulary but behind it.
        return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    split = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    backend.pre_tokenizer = pre_tokenizers.Sequence(split)
    backend.decoder = decoders.Metaspace()
    texts = [*texts, "<>"]  # that special tokens are spelt with
    unigram = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(texts, unigram)
    if kind == "XLMRobertaTokenizer":
        entries = json.loads(backend.to_str())["model"]["vocab"]
        return XLMRobertaTokenizer(vocab=[tuple(entry) for entry in entries])
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@dataclass(frozen=True)
class Pair:
    """A tokenizer, the same one extended, its folder, and what `extend_tokenizer` gave."""

    base: PreTrainedTokenizerFast
    extended: PreTrainedTokenizerFast
    folder: Path
    new: list[str]
    saved: float

    @property
    def longest_match(self) -> bool:
        return isinstance(self.base.backend_tokenizer.model, models.WordPiece)

    def back(self, ids: Sequence[int]) -> list[int]:
        """Ids of the extended tokenizer, new ones put back into their pieces."""
        pieces = pieces_of_new(self.base, self.extended)
        return [piece for i in ids for piece in pieces.get(i, [i])]


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, stories: list[Document], tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    base, folder = make(request.param, [s.text for s in stories]), tmp_path_factory.mktemp("extended")
    new, saved = extend_tokenizer(base, count_words(base, DOMAIN), SIZE, folder)
    return Pair(base, load_tokenizer(folder), folder, new, saved)


def plain(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_new_ids_follow_the_old_ones_which_stay(pair: Pair) -> None:
    base, extended = pair.base, pair.extended
    pieces = pieces_of_new(base, extended)
    assert len(DRUGS) <= len(set(pair.new)) == len(pair.new) <= SIZE
    first = ids_of(base)
    assert extended.convert_tokens_to_ids(pair.new) == list(range(first, first + len(pair.new)))
    assert sorted(pieces) == list(range(first, first + len(pair.new)))
    assert all(len(p) >= 2 for p in pieces.values())
    old = base.get_vocab()
    assert {t: i for t, i in extended.get_vocab().items() if t in old} == old
    for name in ("pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
        assert getattr(extended, name) == getattr(base, name)
    assert extended(f"rats {base.mask_token} of")["input_ids"].count(base.mask_token_id) == 1


def test_words_of_the_domain_become_single_tokens(pair: Pair) -> None:
    for drug in DRUGS:
        before, after = (
            len(plain(t, f"of {drug}")) - len(plain(t, "of")) for t in (pair.base, pair.extended)
        )
        assert before > after == 1
    count = sum(len(plain(pair.extended, t)) for t in DOMAIN) / sum(len(plain(pair.base, t)) for t in DOMAIN)
    assert pair.saved == pytest.approx(1 - count)
    assert pair.saved > 0.2


def same_where_nothing_is_new(pair: Pair, text: str) -> None:
    before, after = plain(pair.base, text), plain(pair.extended, text)
    assert pair.extended.decode(after) == pair.base.decode(before)
    if not pair.longest_match:  # a new token stands where its pieces stood, all else is as it was
        assert pair.back(after) == before
        return
    for word in count_words(pair.base, [text]):
        old, now = (
            [p.id for p in t.backend_tokenizer.model.tokenize(word)] for t in (pair.base, pair.extended)
        )
        if word in pair.new:
            assert now == [pair.extended.convert_tokens_to_ids(word)]
        elif not word.startswith(tuple(pair.new)):
            assert now == old
        else:
            assert pair.base.unk_token_id not in now


def test_text_is_cut_as_before_where_nothing_is_new(pair: Pair, stories: list[Document]) -> None:
    general = list(chain.from_iterable(s.text[:6000].split("\n\n") for s in stories))
    for text in (*DOMAIN, *general):
        same_where_nothing_is_new(pair, text)
    assert all(plain(pair.base, t) != plain(pair.extended, t) for t in DOMAIN)


PARTS = [*"abcdeghilmnoprstuy .,()-é中", *DRUGS, " rats", " antihypertensive", "[MASK]", "<mask>"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from(PARTS), max_size=20))
def test_any_text_is_cut_as_before_where_nothing_is_new(pair: Pair, parts: list[str]) -> None:
    same_where_nothing_is_new(pair, "".join(parts))


def test_a_special_token_spelt_out_in_text_stays_text(pair: Pair) -> None:
    """As the store reads text: the entries that came into the vocabulary are not found in it."""
    backends = [Tokenizer.from_str(identity(t)) for t in (pair.base, pair.extended)]
    for backend in backends:
        backend.encode_special_tokens = True
    for text in (f"the {pair.base.mask_token} here", f"a{pair.base.mask_token}b"):
        before, after = (backend.encode(text, add_special_tokens=False).ids for backend in backends)
        assert before == after


def test_stock_transformers_loads_the_folder_and_cuts_the_same(pair: Pair, tmp_path: Path) -> None:
    stock = AutoTokenizer.from_pretrained(pair.folder)
    stock.save_pretrained(tmp_path)
    bare = Tokenizer.from_file(str(pair.folder / "tokenizer.json"))
    for again in (stock, AutoTokenizer.from_pretrained(tmp_path)):
        assert type(again) is type(pair.extended)
        for text in DOMAIN[:5]:
            assert again(text)["input_ids"] == pair.extended(text)["input_ids"]
            assert bare.encode(text, add_special_tokens=False).ids == plain(again, text)


def test_it_can_be_extended_again(pair: Pair, tmp_path: Path) -> None:
    words = count_words(pair.extended, ["the neuroleptic drug, the neuroleptic drugs"] * MIN_COUNT)
    new, _ = extend_tokenizer(pair.extended, words, 50, tmp_path)
    again = load_tokenizer(tmp_path)
    assert len(plain(again, "the neuroleptic")) == len(plain(again, "the")) + 1
    assert sorted(pieces_of_new(pair.extended, again)) == again.convert_tokens_to_ids(new)


# -- what is chosen ---------------------------------------------------------------------------------------


def test_whole_words_are_ranked_by_the_tokens_that_they_save(tmp_path: Path) -> None:
    base = letter_tokenizer()
    words = {"ab": 30.0, "abcd": 11.0, "hgfedcba": 4.9, "gh": 32.0, "a": 99.0}
    assert extend_tokenizer(base, words, 2, tmp_path / "two")[0] == ["abcd", "gh"]  # 33, 32, 30
    new, saved = extend_tokenizer(base, words, 9, tmp_path / "all")
    assert new == ["abcd", "gh", "ab"]  # the long word is too rare, and one letter cannot be shorter
    total = 30 * 2 + 11 * 4 + 4.9 * 8 + 32 * 2 + 99
    assert saved == pytest.approx((33 + 32 + 30) / total)


def naive_merges(words: dict[str, float], size: int) -> list[str]:
    """Training of BPE by the book: count all pairs, join the most frequent one, begin again."""
    cuts = {word: list(word) for word in words}
    new: list[str] = []
    while len(new) < size:
        counts: Counter[tuple[str, str]] = Counter()
        for word, pieces in cuts.items():
            for both in pairwise(pieces):
                counts[both] += words[word]
        fresh = [p for p in counts if "".join(p) not in new and counts[p] >= MIN_COUNT]
        if not fresh:
            break
        best = min(fresh, key=lambda p: (-counts[p], p))
        new.append("".join(best))
        for pieces in cuts.values():
            at = 0
            while at < len(pieces) - 1:
                if (pieces[at], pieces[at + 1]) == best:
                    pieces[at : at + 2] = ["".join(best)]
                at += 1
    return new


@pytest.mark.parametrize("seed", range(4))
def test_merges_are_those_of_training_by_the_book(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    base = train_tokenizer(["abcdefgh"], "characters", 64)
    words = {
        "".join(draw.choices("abcd", k=draw.randint(1, 9))): float(draw.randint(1, 20)) for _ in range(40)
    }
    new, _ = extend_tokenizer(base, words, 25, tmp_path)
    assert len(new) == 25
    assert new == naive_merges(words, 25)
    extended = load_tokenizer(tmp_path)
    for word in words:  # and the merges do what they did while they were learnt
        assert "".join(extended.tokenize(word)) == word
    assert [len(extended.tokenize(token)) for token in new] == [1] * 25


def test_punctuation_and_numbers_give_no_tokens(stories: list[Document], tmp_path: Path) -> None:
    text = "1987 -------- clonidine, (clonidine) 'clonidine' 3.14159 ..... "
    for kind in ("wordpiece", "RobertaTokenizer", "XLMRobertaTokenizer"):
        base = make(kind, [s.text for s in stories])
        new, _ = extend_tokenizer(base, count_words(base, [text * 20]), 50, tmp_path / kind)
        assert all(any(c.isalpha() for c in t.strip("Ġ▁")) for t in new)
        assert not any(c in t for t in new for c in "-,.()'123")


def test_sources_count_as_often_as_they_come() -> None:
    rare, big = Counter({"clonidine": 2, "the": 8}), Counter({"the": 70, "house": 30})
    assert mix([rare, big], [0.7, 0.3]) == pytest.approx(
        {"clonidine": 2, "the": 8 + 70 * 0.003 / 0.07, "house": 30 * 0.003 / 0.07}
    )
    assert mix([rare, Counter()], [1.0, 1.0]) == rare
    assert mix([Counter()], [1.0]) == {}


# -- mistakes ---------------------------------------------------------------------------------------------


def test_text_that_gives_nothing(tmp_path: Path) -> None:
    base = letter_tokenizer()
    for words in ({}, {"a": 50.0}, {"ab": MIN_COUNT - 0.1}, {"xyz": 50.0}):
        with pytest.raises(ClozeError, match=r"tokenizer\.extend: no word that occurs 5 times is cut"):
            extend_tokenizer(base, words, 3, tmp_path)


def test_tokenizers_that_cannot_be_extended(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<m>": 1}, unk_token="<unk>"))
    names = {"unk_token": "<unk>", "mask_token": "<m>"}
    with pytest.raises(ClozeError, match="a WordLevel tokenizer cannot be extended"):
        extend_tokenizer(PreTrainedTokenizerFast(tokenizer_object=words, **names), {"a": 9.0}, 3, tmp_path)
    with pytest.raises(ClozeError, match="does not cut text into words"):
        count_words(PreTrainedTokenizerFast(tokenizer_object=words, **names), ["a b"])


def test_another_tokenizer_is_no_extension(stories: list[Document]) -> None:
    books, domain = (train_tokenizer(texts, "bpe", 512) for texts in ([s.text for s in stories], DOMAIN))
    assert pieces_of_new(books, domain) == {}
    assert pieces_of_new(books, books) == {}
