"""Cloze's masks in the Trainer of transformers (docs/hugging-face.md)."""

from __future__ import annotations

from cloze.integrations.transformers.collator import MaskingCollator
from cloze.integrations.transformers.trainer import EpochCallback, MaskingTrainer
from cloze.integrations.transformers.words import with_word_ids

__all__ = ["EpochCallback", "MaskingCollator", "MaskingTrainer", "with_word_ids"]
