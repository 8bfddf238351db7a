"""The ways to read a model: from left to right, by one masked token at a time, behind a prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cloze.assembly import method_of
from cloze.data.tokenizers import load_tokenizer
from cloze.errors import ClozeError
from cloze.evaluation.subject import Subject
from cloze.methods.base import Readout
from cloze.methods.build import vocabulary_of
from cloze.models.build import check_head, load_causal_lm, load_masked_lm, reads_causally
from cloze.models.encoder import Encoder, isolate
from cloze.models.encoder_decoder import EncoderDecoder, wrap
from cloze.models.twins import is_decoder, is_encoder_decoder
from cloze.opening import recipe_of


@dataclass(frozen=True)
class Readable:
    """A model with its readings.

    Attributes:
        name: for people. tokenizer: its own.
        model: an encoder; an encoder-decoder; or a stock causal language model that has no encoder twin.
        shifts: {reading: places before a token at which the output lies that predicts it}, the model's own
            reading first.
    """

    name: str
    tokenizer: PreTrainedTokenizerFast
    model: Encoder | EncoderDecoder | PreTrainedModel
    shifts: Mapping[Readout, int]

    def chosen(self, wanted: str | None) -> dict[Readout, int]:
        """All readings, or only the one that is named. Errors: it has none, or not this one."""
        if not self.shifts:
            kind = (
                "it is an encoder-decoder"
                if isinstance(self.model, EncoderDecoder)
                else "it predicts no tokens"
            )
            raise ClozeError(f"{self.name}: no whole text has a probability, for {kind}")
        found = {name: shift for name, shift in self.shifts.items() if wanted in (None, name)}
        if not found:
            why = " (it has never seen the mask token)" if "replaced" in self.shifts else ""
            raise ClozeError(f"--reading {wanted}: {self.name} is read {' or '.join(self.shifts)}{why}")
        return found

    @cached_property
    def encoder(self) -> Encoder:
        """The model as an encoder. Errors: an encoder-decoder, a stock model without an encoder twin."""
        if not isinstance(self.model, Encoder):
            stock = self.model.model if isinstance(self.model, EncoderDecoder) else self.model
            kind = type(stock).__name__
            raise ClozeError(f"{self.name}: {kind} has no encoder twin; only minimal-pairs can read it")
        return self.model

    @cached_property
    def ordinary(self) -> Tensor:
        """[n] int64, the ids that replace a token where that is how the model is read."""
        return vocabulary_of(self.tokenizer).ordinary


def readable(subject: Subject) -> Readable:
    """A subject with its readings: a run's are those of the methods that its last stage trains.

    Of other models a masked one is read by masks, a causal one from left to right.

    Errors: neither; a masked one without its head.
    """
    recipe, _ = recipe_of(subject.name)
    if recipe is not None:
        loaded = load_masked_lm(subject.path, causal=True).eval()
        if not is_encoder_decoder(loaded.config):
            check_head(loaded, subject.name)
        network = wrap(loaded).to(subject.device).eval()
        method = method_of(recipe, network, vocabulary_of(subject.tokenizer))
        return Readable(subject.name, subject.tokenizer, network, method.readings)
    if not reads_causally(subject.path):
        return Readable(subject.name, subject.tokenizer, subject.masked_lm, {"masked": 0})
    tokenizer, stock = load_tokenizer(subject.path, needs_mask=False), load_causal_lm(subject.path)
    model = isolate(load_masked_lm(subject.path, causal=True)) if is_decoder(stock.config) else stock
    return Readable(subject.name, tokenizer, model.eval().to(subject.device), {"causal": 1})
