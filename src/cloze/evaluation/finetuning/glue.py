"""The GLUE tasks by name: their official metrics, and what is odd about their official files."""

from __future__ import annotations

import re

HUB = "nyu-mll/glue"

# The first metric is the official one, or all are; the others are told besides.
METRICS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews", "accuracy"),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
}
COLA_COLUMNS = ("source", "label", "star", "sentence")  # the official files of CoLA have no header


def plain(name: str) -> str:
    """A task's name as it is compared: "SST-2" and "sst2" are the same."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
