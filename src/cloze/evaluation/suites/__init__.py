"""The suites by name."""

from __future__ import annotations

from cloze.evaluation.suites import heldout, minimal_pairs
from cloze.evaluation.suites.base import Suite
from cloze.evaluation.suites.finetuning import CLASSIFY, PAIR, TAG
from cloze.evaluation.suites.retrieve import RETRIEVE
from cloze.evaluation.suites.sentences import SENTENCES
from cloze.evaluation.suites.words import WORDS

_ALL: tuple[Suite, ...] = (
    heldout.SUITE,
    minimal_pairs.SUITE,
    CLASSIFY,
    PAIR,
    TAG,
    SENTENCES,
    WORDS,
    RETRIEVE,
)
SUITES: dict[str, Suite] = {suite.name: suite for suite in _ALL}
