"""Pretrain encoders by fill-in-the-blank (masked language modelling), with low-variance gradients."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cloze.errors import ClozeError

if TYPE_CHECKING:
    from cloze.comparison.result import Comparison
    from cloze.comparison.run import compare
    from cloze.diagnosis.result import Diagnosis
    from cloze.diagnosis.run import diagnose
    from cloze.evaluation.results import Evaluation
    from cloze.evaluation.run import evaluate
    from cloze.reading import Reader, load
    from cloze.run import Run, pretrain

__all__ = [
    "ClozeError",
    "Comparison",
    "Diagnosis",
    "Evaluation",
    "Reader",
    "Run",
    "compare",
    "diagnose",
    "evaluate",
    "load",
    "pretrain",
]
__version__ = "0.1.0"


_PLACES = {
    "Comparison": "cloze.comparison.result",
    "Diagnosis": "cloze.diagnosis.result",
    "Evaluation": "cloze.evaluation.results",
    "Reader": "cloze.reading",
    "Run": "cloze.run",
    "compare": "cloze.comparison.run",
    "diagnose": "cloze.diagnosis.run",
    "evaluate": "cloze.evaluation.run",
    "load": "cloze.reading",
    "pretrain": "cloze.run",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:  # torch and transformers take seconds to import
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'cloze' has no attribute {name!r}")
