"""Word units: which tokens together make one word.

The tokenizer's own word ids are right for nearly every tokenizer, offsets are not (a byte-level tokenizer
that does not trim its offsets leaves no gap between words, and whole sequences pass for one word). Where word
ids do not separate words either, markers in the vocabulary do. Which of the two holds is found once per
tokenizer, on a probe.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from tokenizers import Encoding, Tokenizer

MAX_UNIT = 32
_PROBE = "the old house was near to the river and she had been there with them before"
_PUNCTUATION = frozenset(string.punctuation + "\n\tĊĉ")  # the last two: a byte-level line end and tab


@dataclass(frozen=True)
class UnitRule:
    """How one tokenizer's words are found.

    `way` is "word_ids", "prefix" (a marker such as Ġ or ▁ opens a word), "suffix" (## continues one) or
    "tokens" (nothing tells words apart: each token is a unit). `opens` and `punctuation` are one flag per
    vocabulary entry, used by "prefix" and "suffix" only.
    """

    way: Literal["word_ids", "prefix", "suffix", "tokens"]
    opens: np.ndarray
    punctuation: np.ndarray

    @classmethod
    def probe(cls, tokenizer: Tokenizer) -> UnitRule:
        """Find the rule for a tokenizer by encoding a plain sentence (lower case, no punctuation)."""
        none = np.zeros(0, dtype=bool)
        encoding = tokenizer.encode(_PROBE, add_special_tokens=False)
        words = len(_PROBE.split())
        # A tokenizer for another alphabet may know none of the letters, yet still sees the words.
        if len({word for word in encoding.word_ids if word is not None}) >= words:
            return cls("word_ids", none, none)
        tokens = _vocabulary(tokenizer)
        marked = sum(token[:1] in "Ġ▁" for token in encoding.tokens if token)
        if marked >= words - 1:
            opens = [token[:1] in ("Ġ", "▁") for token in tokens]
            return cls("prefix", np.array(opens), _is_punctuation(tokens, "Ġ▁"))
        if any(token.startswith("##") for token in tokens):
            opens = [not token.startswith("##") for token in tokens]
            return cls("suffix", np.array(opens), _is_punctuation(tokens, "#"))
        return cls("tokens", none, none)

    def starts(self, encodings: Sequence[Encoding], ids: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """True where a unit starts, for encodings laid end to end.

        `ids` are all their token ids, `bounds` the offsets of the encodings in them (one more than
        encodings). No unit spans two encodings or more than 32 tokens.
        """
        start = np.ones(len(ids), dtype=bool)
        if self.way == "word_ids":
            words = _word_ids(encodings, len(ids))
            start[1:] = (words[1:] != words[:-1]) | (words[1:] < 0)
        elif self.way != "tokens":
            punctuation = self.punctuation[ids]
            start[1:] = self.opens[ids[1:]] | (punctuation[1:] != punctuation[:-1])
        start[bounds[:-1][np.diff(bounds) > 0]] = True
        places = np.arange(len(ids))
        start |= (places - np.maximum.accumulate(np.where(start, places, 0))) % MAX_UNIT == 0
        return start


def unit_starts(rule: UnitRule, encoding: Encoding) -> np.ndarray:
    """True where a word unit starts, for an encoding made with `add_special_tokens=False`."""
    ids = np.array(encoding.ids, dtype=np.int64)
    return rule.starts([encoding], ids, np.array([0, len(ids)]))


def _word_ids(encodings: Sequence[Encoding], count: int) -> np.ndarray:
    try:
        return np.fromiter(chain.from_iterable(e.word_ids for e in encodings), dtype=np.int32, count=count)
    except TypeError:  # None, for a token that belongs to no word
        flat = (-1 if word is None else word for e in encodings for word in e.word_ids)
        return np.fromiter(flat, dtype=np.int32, count=count)


def _vocabulary(tokenizer: Tokenizer) -> list[str]:
    entries = tokenizer.get_vocab(with_added_tokens=True)
    tokens = [""] * (max(entries.values(), default=-1) + 1)
    for token, index in entries.items():
        tokens[index] = token
    return tokens


def _is_punctuation(tokens: Sequence[str], markers: str) -> np.ndarray:
    bare = (token.lstrip(markers) for token in tokens)
    return np.array([bool(token) and _PUNCTUATION.issuperset(token) for token in bare], dtype=bool)
