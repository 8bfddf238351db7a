"""The base of every configuration class: frozen, and an unknown key is an error."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of the configuration classes, each of which stands beside what it configures."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True)
