"""The base of every configuration class: frozen, and an unknown key is an error; and paths in them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Config(BaseModel):
    """Base of the configuration classes, each of which stands beside what it configures."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=False, validate_default=True, allow_inf_nan=False
    )


def _nameable(path: str) -> str:
    try:
        os.stat(Path(path).expanduser())
    except (ValueError, RuntimeError) as error:  # a NUL or half a surrogate pair; a user that is not there
        raise ValueError(f"no file can have this name ({error})") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise ValueError(f"no file can have this name ({error.strerror})") from None
    return path


PathText = Annotated[str, AfterValidator(_nameable)]
