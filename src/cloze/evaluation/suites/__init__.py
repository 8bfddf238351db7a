"""The suites by name."""

from __future__ import annotations

from cloze.evaluation.suites import heldout, minimal_pairs
from cloze.evaluation.suites.base import Suite
from cloze.evaluation.suites.finetuning import CLASSIFY, PAIR, TAG

_ALL: tuple[Suite, ...] = (heldout.SUITE, minimal_pairs.SUITE, CLASSIFY, PAIR, TAG)
SUITES: dict[str, Suite] = {suite.name: suite for suite in _ALL}
