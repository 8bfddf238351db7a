"""Words for policies that hide whole ones: they are known where the text is tokenized, not afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from cloze.data.tokenizers import identity
from cloze.data.units import UnitRule
from cloze.errors import ClozeError


def with_word_ids(
    tokenizer: PreTrainedTokenizerFast, column: str = "text", **arguments: Any
) -> Callable[[Mapping[str, list[str]]], dict[str, list[list[int]]]]:
    """A function for `dataset.map(…, batched=True)` that tokenizes and numbers the words, as `word_ids`.

    Words are the tokenizer's own, or found by its markers where it keeps none, so that byte-level BPE and
    SentencePiece have words too. The numbers of neighbours differ where a word ends, special tokens have
    numbers of their own; rows may be joined and cut afterwards, as long as special tokens stay between them.

    Args:
        column: of the texts.
        arguments: for the tokenizer, such as truncation=True, max_length=128.

    Errors: a slow tokenizer.
    """
    if not tokenizer.is_fast:
        raise ClozeError(f"{type(tokenizer).__name__} is a slow tokenizer and keeps no words; use a fast one")
    rule = UnitRule.probe(Tokenizer.from_str(identity(tokenizer)))

    def tokenize(examples: Mapping[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer(examples[column], **arguments)
        encodings = encoded.encodings or []
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), dtype=np.int64)
        bounds = np.cumsum([0, *(len(e.ids) for e in encodings)])
        words = np.cumsum(rule.starts(encodings, ids, bounds))
        kept = (name for name in (*tokenizer.model_input_names, "special_tokens_mask") if name in encoded)
        numbers = [part.tolist() for part in np.split(words, bounds[1:-1])]
        return {name: encoded[name] for name in kept} | {"word_ids": numbers}

    return tokenize
