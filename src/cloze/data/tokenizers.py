"""Loading tokenizers, and looking at what one makes of a text before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cloze.data.hub import offline
from cloze.data.units import UnitRule, unit_starts
from cloze.errors import ClozeError

_MAX_UNKNOWN = 0.01
_MAX_FERTILITY = 3.0
_SAMPLE_CHARS = 60
SENTINEL, SENTINELS = "<extra_id_{}>", 100  # as T5 names them


def load_tokenizer(
    path: str | Path, add_mask_token: bool = False, needs_mask: bool = True
) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder or the hub. `add_mask_token` adds "[MASK]" and "[PAD]" to
    one that lacks them.

    Raises ClozeError if there is none, if it is not a fast (Rust) tokenizer, or if it lacks a mask token that
    it needs.
    """
    local = Path(path).is_dir()
    unreachable = not local and offline()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path), local_files_only=local or unreachable, trust_remote_code=False
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if unreachable:
            reason = "no such folder, and the hub, where it may be, cannot be reached"
        raise ClozeError(f"{path}: no tokenizer could be loaded, {reason}") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ClozeError(
            f"{path}: {type(tokenizer).__name__} is a slow tokenizer; a tokenizer.json is needed"
        )
    if tokenizer.mask_token is None and (needs_mask or add_mask_token):
        if not add_mask_token:
            raise ClozeError(
                f"{path}: this tokenizer has no mask token; --set tokenizer.add_mask_token=true adds one "
                "(prepare: --add-mask-token)"
            )
        tokenizer.add_special_tokens({"mask_token": AddedToken("[MASK]", lstrip=True, special=True)})
    if add_mask_token and tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer's files. Errors: OSError, also for a full disk that Rust tells of by an Exception."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(f"{error}") from error


def identity(tokenizer: PreTrainedTokenizerFast) -> str:
    """The whole tokenizer as JSON, without truncation and padding, which come and go with its use."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend.to_str()


def ids_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """Rows that an embedding needs: the greatest id + 1, more than `len` where ids have holes."""
    return max(tokenizer.get_vocab().values()) + 1


@dataclass(frozen=True)
class TokenizerReport:
    """What a tokenizer makes of some texts.

    `fertility` is tokens per white-space word, `unknown_rate` the share of tokens that are unknown,
    `units_per_word` word units per white-space word (a little over 1, for punctuation), `sample` the first
    words with a bar at each unit's end, `warnings` what the user should look at.
    """

    vocabulary: int
    fertility: float
    characters_per_token: float
    unknown_rate: float
    units_per_word: float
    sample: str
    warnings: list[str]

    def lines(self) -> list[str]:
        """The report in at most three lines of 80 columns."""
        numbers = f"vocabulary of {self.vocabulary:,}, {self.fertility:.2f} tokens a word, "
        numbers += f"{self.characters_per_token:.2f} characters each, {self.unknown_rate:.1%} unknown"
        lines = [numbers, f"words: {self.sample}"]
        if self.warnings:
            lines.append(f"warning: {'; '.join(self.warnings)}")
        return [line if len(line) <= 80 else f"{line[:79]}…" for line in lines]


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> TokenizerReport:
    """Measure a tokenizer on some texts (a few thousand characters are enough).

    Raises ClozeError if the texts have no words or give no tokens.
    """
    # A copy: what is set here must not change how the user's tokenizer behaves.
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    rule = UnitRule.probe(backend)
    words = sum(len(text.split()) for text in texts)
    encodings = [backend.encode(text, add_special_tokens=False) for text in texts]
    ids = np.array([token for encoding in encodings for token in encoding.ids], dtype=np.int64)
    if not words or not len(ids):
        raise ClozeError("the texts to check the tokenizer on give no words or no tokens")
    unknown = float((ids == tokenizer.unk_token_id).mean()) if tokenizer.unk_token_id is not None else 0.0
    units = sum(int(unit_starts(rule, encoding).sum()) for encoding in encodings)
    letters = all(len(token) == 1 for token in backend.get_vocab(with_added_tokens=False) if token[:1] != "[")
    report = TokenizerReport(
        vocabulary=len(tokenizer),
        fertility=len(ids) / words,
        characters_per_token=sum(map(len, texts)) / len(ids),
        unknown_rate=unknown,
        units_per_word=units / words,
        sample=_sample(backend, rule, next(text for text in texts if text.split())),
        warnings=[],
    )
    report.warnings.extend(_warnings(report, rule, letters))
    return report


def _warnings(report: TokenizerReport, rule: UnitRule, letters: bool) -> list[str]:
    warnings = []
    if report.unknown_rate > _MAX_UNKNOWN:
        warnings.append(f"{report.unknown_rate:.1%} of the tokens are unknown")
    if report.fertility > _MAX_FERTILITY and not letters:
        warnings.append(f"{report.fertility:.1f} tokens a word, it was made for other text")
    if rule.way == "tokens":
        warnings.append("words cannot be told apart, every token is a unit")
    elif report.units_per_word < 0.9:
        warnings.append(f"only {report.units_per_word:.2f} units a word, words run together")
    return warnings


def _sample(backend: Tokenizer, rule: UnitRule, text: str) -> str:
    """The beginning of a text, a bar where one unit ends and the next begins."""
    text = " ".join(text.split())[:_SAMPLE_CHARS]
    encoding = backend.encode(text, add_special_tokens=False)
    places = [encoding.offsets[token][0] for token in np.flatnonzero(unit_starts(rule, encoding))]
    pieces = (text[start:stop] for start, stop in pairwise([*places, len(text)]))
    return "|".join(piece for piece in pieces if piece).replace(" |", "| ")


def add_sentinels(tokenizer: PreTrainedTokenizerFast, number: int = SENTINELS) -> None:
    """Give the tokenizer the special tokens <extra_id_0>, <extra_id_1>, …, as far as it lacks them."""
    known = tokenizer.get_vocab()
    new = [name for i in range(number) if (name := SENTINEL.format(i)) not in known]
    if new:
        tokenizer.add_special_tokens({"extra_special_tokens": new}, replace_extra_special_tokens=False)


def sentinels_of(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Ids of the sentinels that the tokenizer has, in their order."""
    known = tokenizer.get_vocab()
    names = (SENTINEL.format(i) for i in range(len(known)))
    return tuple(known[name] for name in takewhile(known.__contains__, names))
