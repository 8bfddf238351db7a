"""YAML that a stranger may have written: plain values only, of a size that a recipe can have.

YAML's own risks are Python objects (the safe loader knows none), nesting that exhausts the interpreter, and
aliases that write out a short file as billions of values.
"""

from __future__ import annotations

from typing import Any

import yaml

from cloze.errors import ClozeError

CHARACTERS, VALUES, DEPTH = 1_000_000, 20_000, 50
BITS = 10_000  # of a whole number; one of 4,300 digits cannot be written out, not even in a message


def parse(text: str, where: str) -> Any:
    """The value that a YAML text spells; `where` opens the message of errors.

    Errors: not YAML, or larger than `CHARACTERS`, `VALUES` (keys too, aliases written out), `DEPTH` (nesting)
    or `BITS`.
    """
    if len(text) > CHARACTERS:
        raise ClozeError(f"{where}: {len(text):,} characters are no recipe")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ClozeError(f"{where}: not valid YAML{place}: {getattr(error, 'problem', error)}") from error
    except (ValueError, TypeError, OverflowError) as error:  # such as a 13th month, or a surrogate
        raise ClozeError(f"{where}: not valid YAML: {error}") from error
    except RecursionError:
        raise ClozeError(f"{where}: nested too deeply for a recipe") from None
    _count(value, where)
    return value


def _count(value: Any, where: str) -> None:
    """Refuse what is too large once it is written out. Errors: see `parse`."""
    number, layers = 0, [(0, value)]
    while layers:
        depth, part = layers.pop()
        number += 1
        if depth > DEPTH or number > VALUES:
            raise ClozeError(
                f"{where}: {'nested too deeply' if depth > DEPTH else 'too many values'} for a recipe"
            )
        if isinstance(part, int) and part.bit_length() > BITS:
            raise ClozeError(f"{where}: a number of {part.bit_length():,} bits is too large for a recipe")
        if isinstance(part, dict):
            layers += [(depth + 1, x) for pair in part.items() for x in pair]
        elif isinstance(part, list | tuple | set):
            layers += [(depth + 1, x) for x in part]
