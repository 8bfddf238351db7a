"""A Hugging Face masked-LM as a method sees it: hidden states, and head features at chosen places only.

The head runs on gathered positions and stops just before the vocabulary, for any model that transformers
loads with `AutoModelForMaskedLM`, without model code: the body's output is exchanged on its way to the
head, and the layer that would make logits hands its input through.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from cloze.corruption.view import View
from cloze.errors import ClozeError
from cloze.models.attention import NAME, check_attention, register
from cloze.models.gathering import Body, Chosen, same
from cloze.models.leaks import leaks
from cloze.models.twins import is_encoder_decoder
from cloze.models.visibility import Visibility

log = logging.getLogger("cloze")

# RoBERTa-like embeddings number their positions from padding_idx + 1.
_OFFSET_FAMILIES = {
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert", "data2vec-text",
    "longformer", "mpnet", "ibert", "luke",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Encoded:
    """Output of an encoder.

    Attributes:
        hidden: [rows, length, width], final hidden states of the body.
        features: [N, width'], what the head gives before the vocabulary, at the N places asked for.
    """

    hidden: Tensor
    features: Tensor


class Encoder(nn.Module):
    """Wraps a masked-LM model; owns all of its parameters under `model`."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        register()
        self.model = model
        self.training = model.training  # or the probes would switch dropout on
        if model.get_output_embeddings() is None:
            raise ClozeError(f"{type(model).__name__}: has no vocabulary layer; cloze cannot pretrain it")
        self.offset = position_offset(model.config)
        self._body = Body(model.base_model.forward)
        self._sparse = False
        self.isolates = _takes_our_attention(model)
        """Whether packed samples are kept apart; if not, rows must hold one sample each."""

    @property
    def vocabulary(self) -> nn.Linear:
        """The layer from features to logits: `.weight` [vocabulary, width'] and perhaps `.bias`."""
        return cast(nn.Linear, self.model.get_output_embeddings())

    def longest(self) -> int:
        """Greatest number of positions that a sample may have."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return 2**31 if limit is None else limit - self.offset

    def forward(self, view: View, places: Tensor) -> Encoded:
        """Run `view`; `places` [N] are flat indices into its [rows × length] tokens."""
        if not self._sparse:
            return self._run_alone(view, places)
        chosen = Chosen(places)
        if self.isolates and torch.compiler.is_compiling():
            output = self._run(view, chosen=chosen)
        else:
            output = self._run_aside(view, chosen)
        assert chosen.hidden is not None
        return Encoded(chosen.hidden, output.logits[0])

    def hidden(self, view: View) -> Tensor:
        """[rows, length, width], final hidden states of the body, for heads that are not the model's own."""
        return cast(Tensor, self._body.whole(**self._inputs(view))[0])

    @torch.compiler.disable
    def _run_alone(self, view: View, places: Tensor) -> Encoded:
        with sparse(self):
            return self.forward(view, places)

    def _run(self, view: View, **keywords: Any) -> Any:
        return self.model(**self._inputs(view), **keywords)

    def _inputs(self, view: View) -> dict[str, Any]:
        found = {"input_ids": view.ids, "return_dict": True}
        if self.isolates:
            check_attention(self.model.config)
            visibility = Visibility(view.segments, view.causal, view.dense, view.runs, view.open)
            return found | {"visibility": visibility, "position_ids": view.positions + self.offset}
        if view.causal:
            raise ClozeError(f"{type(self.model).__name__}: cannot be run causally by cloze")
        return found | {"attention_mask": (view.segments >= 0).long()}

    @torch.compiler.disable
    def _run_aside(self, view: View, chosen: Chosen) -> Any:
        """For models that may drop keywords: the probes have to find them, and they are not compiled."""
        self._body.chosen = chosen
        try:
            return self._run(view)
        finally:
            self._body.chosen = None


@contextmanager
def sparse(module: nn.Module) -> Iterator[None]:
    """While it lasts, the heads of all encoders in `module` get the chosen places and stop before the logits.

    An encoder does this by itself in each call. Around compiled code it is to be done from outside: there,
    neither hooks (they break the graph) nor other changes of modules (torch does not always undo them) are
    safe.
    """
    encoders = [m for m in module.modules() if isinstance(m, Encoder) and not m._sparse]
    for encoder in encoders:
        for part, forward in ((encoder.model.base_model, encoder._body), (encoder.vocabulary, same)):
            part.forward = forward
        encoder._sparse = True
    try:
        yield
    finally:
        for encoder in encoders:
            del encoder.model.base_model.forward, encoder.vocabulary.forward
            encoder._sparse = False


def _takes_our_attention(model: PreTrainedModel) -> bool:
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # some refuse with a warning, some say nothing: see `leaks`
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, ImportError):
        return False
    finally:
        hf_logging.set_verbosity(level)
    return bool(model.config._attn_implementation == NAME)


def isolate(model: PreTrainedModel) -> Encoder:
    """An encoder whose packed samples are known to be apart, or that takes one sample a row.

    Runs the leak probe (`models/leaks.py`); a model that ignores our attention, or that computes something
    else with it than with its own, goes back to its own, with `isolates` False.

    Errors: a model that cannot be run, or whose logits are more than a linear layer.
    """
    if is_encoder_decoder(model.config):
        raise ClozeError(f"{type(model).__name__}: an encoder-decoder cannot be read as an encoder here")
    own = model.config._attn_implementation
    encoder = Encoder(model)
    name = type(model).__name__
    if encoder.isolates:
        try:
            encoder.isolates = not (leaks(encoder) or differs(encoder))
        except Exception:  # somebody else's code; such as a mask that it makes by itself
            encoder.isolates = False
    if encoder.isolates:
        return encoder
    model.set_attn_implementation(own)
    try:
        padding, other = leaks(encoder), differs(encoder)
    except Exception as error:  # likewise
        first = " ".join(str(error).split())
        raise ClozeError(f"{name}: cannot be run by cloze ({type(error).__name__}: {first})") from error
    if other:
        raise ClozeError(f"{name}: its logits are no linear layer of its head; cloze cannot pretrain it")
    if padding:
        log.warning("%s: padding changes what it makes of a text", name)
    return encoder


def position_offset(config: PreTrainedConfig) -> int:
    """Number of the first position: 0, or padding_idx + 1 in the RoBERTa family."""
    return int(config.pad_token_id) + 1 if config.model_type in _OFFSET_FAMILIES else 0


@torch.no_grad()
def differs(encoder: Encoder, length: int = 16) -> bool:
    """Probe whether logits of one sample differ from the stock model's: other positions, or another head."""
    training = encoder.training
    encoder.eval()
    model, layer = encoder.model, encoder.vocabulary
    device, size = layer.weight.device, layer.weight.shape[0]
    place = torch.arange(min(length, encoder.longest()), device=device)
    ids = (place * 7919 + 13) % size
    pad = getattr(model.config, "pad_token_id", None)
    ids = torch.where(ids == (-1 if pad is None else pad), (ids + 1) % size, ids)[None]
    try:
        if encoder.isolates:
            model.set_attn_implementation("eager")
        stock = model(input_ids=ids, return_dict=True).logits[0]
        if encoder.isolates:
            model.set_attn_implementation(NAME)
        view = View(ids, torch.zeros_like(ids), place[None], place[None])
        ours = nn.functional.linear(encoder(view, place).features, layer.weight, getattr(layer, "bias", None))
    except RuntimeError:  # shapes that do not fit
        return True
    finally:
        encoder.train(training)
    return not torch.allclose(ours, stock, rtol=1e-3, atol=1e-3)
