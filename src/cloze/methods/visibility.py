"""Who sees whom: the whole sample, the past, or a prefix and the past."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from cloze.config import Config
from cloze.corruption.view import View
from cloze.data.batch import Batch
from cloze.random import Stream, uniform


class AllVisible(Config):
    """Every token sees every token of its own sample, and of no other."""

    kind: Literal["all"] = "all"

    def see(self, view: View, batch: Batch, seed: int) -> View:
        """The view with this visibility."""
        return view


class CausalVisible(Config):
    """Every token sees itself and what is before it in its own sample."""

    kind: Literal["causal"] = "causal"

    def see(self, view: View, batch: Batch, seed: int) -> View:
        """The view with this visibility."""
        return replace(view, causal=True)


class PrefixVisible(Config):
    """The first tokens of a sample see each other, the rest sees what is before it (2204.05832, §3.1).

    How many is drawn for each visit of a sample, uniformly from 0 to all of its text but one token; special
    tokens before the text come on top.
    """

    kind: Literal["prefix"] = "prefix"

    def see(self, view: View, batch: Batch, seed: int) -> View:
        """The view with this visibility."""
        text = batch.index >= 0
        sizes = torch.bincount(batch.segments[text], minlength=batch.samples)
        length = (uniform(seed, Stream.PREFIX, batch.keys, batch.visits) * sizes).to(torch.int64)
        specials = torch.zeros_like(length)
        first = batch.index == 0
        specials = specials.index_copy(0, batch.segments[first], view.positions[first])
        # Padding (-1) reads the 0 that is put behind the last sample.
        end = F.pad(specials + length, (0, 1))[batch.segments]
        return replace(view, causal=True, open=view.positions < end)


class EncoderDecoderVisible(Config):
    """An encoder that sees a whole sample, and a decoder that sees that and its own past (`infill`)."""

    kind: Literal["enc_dec"] = "enc_dec"

    def see(self, view: View, batch: Batch, seed: int) -> View:
        """The view as it is: the corruption makes both of them."""
        return view


Visible = AllVisible | CausalVisible | PrefixVisible | EncoderDecoderVisible
VisibilityChoice = Annotated[Visible, Field(discriminator="kind")]
