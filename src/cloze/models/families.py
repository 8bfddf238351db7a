"""Our own model classes, made known to transformers: import this file, and `AutoModel…` loads them.

Without it, or without cloze, their folders load as remote code (`trust_remote_code=True`).
"""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from cloze.models.mosaicbert import (
    MosaicBertConfig,
    MosaicBertForMaskedLM,
    MosaicBertForSequenceClassification,
    MosaicBertForTokenClassification,
    MosaicBertModel,
)

OURS = frozenset({"mosaicbert"})
"""Families that are not classes of transformers."""

AutoConfig.register("mosaicbert", MosaicBertConfig, exist_ok=True)
for auto, ours in (
    (AutoModel, MosaicBertModel),
    (AutoModelForMaskedLM, MosaicBertForMaskedLM),
    (AutoModelForSequenceClassification, MosaicBertForSequenceClassification),
    (AutoModelForTokenClassification, MosaicBertForTokenClassification),
):
    auto.register(MosaicBertConfig, ours, exist_ok=True)
