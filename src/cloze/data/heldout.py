"""Which sections are held out: a share by the hash of their text, never less than a minimum."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from pydantic import Field

from cloze.config import Config
from cloze.errors import ClozeError


class HeldOut(Config):
    """Text that is never trained on.

    Attributes:
        share: share of the sections (about 4,000 characters each) that is held out, by hash of their
            text: where the share decides, adding text or another order changes nothing for the rest.
        minimum: at least so many tokens, even if that is more than the share; where it decides (below
            minimum / share tokens), more text may move held-out sections to the training text.
        path: held-out text of its own (any `--data` value); then nothing of the training text is.
    """

    share: float = Field(0.02, gt=0.0, lt=0.5)
    minimum: int = Field(20_000, ge=1)
    path: str | None = None


def threshold(sections: Iterable[tuple[np.ndarray, np.ndarray]], config: HeldOut) -> int:
    """The hash up to which (inclusive) a section is held out.

    Args:
        sections: (hashes uint64 [n], tokens int64 [n]) of each part of a store; memory stays flat.
        config: share and minimum.

    Errors: a corpus that is too small to hold out the minimum and train on as much again.
    """
    smallest = np.zeros(0, np.uint64)
    sizes = np.zeros(0, np.int64)
    total = shared = 0
    by_share = int(config.share * 2**64)
    for hashes, tokens in sections:
        total += int(tokens.sum())
        shared += int(tokens[hashes <= np.uint64(by_share)].sum())
        if int(sizes.sum()) >= config.minimum:  # what is greater cannot be among the smallest any more
            near = hashes <= smallest[-1]
            hashes, tokens = hashes[near], tokens[near]
        smallest, sizes = np.concatenate([smallest, hashes]), np.concatenate([sizes, tokens])
        order = smallest.argsort(kind="stable")
        smallest, sizes = smallest[order], sizes[order]
        last = smallest[: int(np.searchsorted(sizes.cumsum(), config.minimum)) + 1][-1:]
        enough = int(np.searchsorted(smallest, last, side="right").sum())  # equal texts go together
        smallest, sizes = smallest[:enough], sizes[:enough]
    by_minimum = int(smallest[-1]) if smallest.size else 0
    held = max(shared, int(sizes.sum()))
    if held < config.minimum or total - held < config.minimum:
        raise ClozeError(
            f"the text is too short: {total:,} tokens, of which data.heldout.minimum={config.minimum:,} are "
            "to be held out and as many trained on; give more text, a smaller minimum, or data.heldout.path"
        )
    return max(by_share, by_minimum)
