"""Training a tokenizer for masked language modelling on the user's own text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from cloze.data.sections import split_paragraphs
from cloze.errors import ClozeError

Algorithm = Literal["bpe", "wordpiece", "characters"]

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MULTIPLE = 64
_BYTES = 256


def train_tokenizer(
    texts: Iterable[str], algorithm: Algorithm, vocab_size: int, lowercase: bool = False
) -> PreTrainedTokenizerFast:
    """Train a tokenizer whose vocabulary is a multiple of 64, `vocab_size` rounded up.

    "bpe" is byte-level and loses nothing; "wordpiece" is BERT's, and keeps the text in memory while it
    learns; "characters" takes every character as a token (the most frequent ones; others are unknown). Ids 0
    to 4 are [PAD] [UNK] [CLS] [SEP] [MASK]. Where the text is too small for the size, special tokens
    "[unused0]", … fill up what was learnt to a multiple of 64: the size is `len(tokenizer)`. The same text
    gives the same tokenizer.

    Raises ClozeError for an unknown algorithm, a size too small for it, or text without a character.
    """
    builders = {"bpe": _bpe, "wordpiece": _wordpiece, "characters": _characters}
    if algorithm not in builders:
        raise ClozeError(f"no tokenizer algorithm {algorithm!r}; choose one of {', '.join(builders)}")
    least = len(SPECIAL) + (_BYTES if algorithm == "bpe" else 1)
    if vocab_size < least:
        raise ClozeError(
            f"a vocabulary of {vocab_size} is too small for {algorithm}; it needs at least {least}"
        )
    size = -(-vocab_size // MULTIPLE) * MULTIPLE
    counted = _Counted(texts)
    tokenizer = builders[algorithm](counted, size, lowercase)
    if not counted.characters:
        raise ClozeError("no text to train a tokenizer on")
    return _finish(tokenizer, keeps_spaces=algorithm == "bpe")


class _Counted:
    """Paragraphs of the texts, cut as the store cuts them, with their characters counted."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts, self.characters = texts, 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.characters += len(text)
            yield from split_paragraphs(text)


def _bpe(texts: Iterable[str], size: int, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _wordpiece(texts: Iterable[str], size: int, lowercase: bool) -> Tokenizer:
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    paragraphs = list(texts)
    counts: Counter[str] = Counter()
    for character, count in _count(paragraphs).items():
        counts.update({part: count for part in normalizer.normalize_str(character) if not part.isspace()})
    # A character may take two entries, alone and as a continuation; half of the vocabulary is left for words.
    alphabet = _most_frequent(counts, max(1, size // 4))
    inside = [
        c for c in alphabet if len(pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(f"a{c}"))) == 1
    ]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        # Numbered in advance: else their numbers, and with them ties, follow the order of a hash map.
        special_tokens=[*SPECIAL, *(f"##{character}" for character in inside)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(paragraphs, trainer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    trained = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizer
    trained.decoder = decoders.WordPiece()
    return trained


def _characters(texts: Iterable[str], size: int, lowercase: bool) -> Tokenizer:
    normalizer = normalizers.Lowercase() if lowercase else None
    counts = _count(normalizer.normalize_str(text) if normalizer else text for text in texts)
    frequent = _most_frequent(counts, size - len(SPECIAL))
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *frequent])}
    # Without merges BPE is a character model, and the words of its pre-tokenizer remain the units.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r" ?[\p{L}\p{N}_]+| ?[^\s\p{L}\p{N}_]+|\s"), "isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _count(texts: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return counts


def _most_frequent(counts: Counter[str], limit: int) -> list[str]:
    return sorted(counts, key=lambda character: (-counts[character], character))[:limit]


def _finish(tokenizer: Tokenizer, keeps_spaces: bool) -> PreTrainedTokenizerFast:
    """Fill the vocabulary up, frame sequences with [CLS] and [SEP], and name the special tokens."""
    unused = [f"[unused{index}]" for index in range(-tokenizer.get_vocab_size() % MULTIPLE)]
    # Spaces belong to words in a byte-level vocabulary, so the mask takes the one before it.
    mask = AddedToken("[MASK]", lstrip=keeps_spaces, special=True, normalized=False)
    tokenizer.add_special_tokens([*SPECIAL[:-1], mask, *unused])
    frame = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    before = tokenizer.post_processor
    tokenizer.post_processor = processors.Sequence([before, frame]) if before else frame
    pad, unknown, cls, sep, _ = SPECIAL
    names = {"pad_token": pad, "unk_token": unknown, "cls_token": cls, "sep_token": sep, "mask_token": mask}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=unused,
        clean_up_tokenization_spaces=False,
        **names,
    )
