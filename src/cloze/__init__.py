"""Pretrain encoders by fill-in-the-blank (masked language modelling), with low-variance gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloze.errors import ClozeError

if TYPE_CHECKING:
    from cloze.run import Run, pretrain

__all__ = ["ClozeError", "Run", "pretrain"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("Run", "pretrain"):  # torch and transformers take seconds to import
        from cloze import run

        return getattr(run, name)
    raise AttributeError(f"module 'cloze' has no attribute {name!r}")
