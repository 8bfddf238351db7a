"""Log-likelihood: how probable a model that predicts next tokens finds a text, in one forward pass.

Sequences of one length go through the model together, so that nothing is padded; logits exist at the
predicted places only, a chunk of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cloze.corruption.view import View
from cloze.evaluation.pseudo_likelihood import FORWARD_TOKENS, Tokens
from cloze.models.encoder import Encoder
from cloze.models.vocabulary_loss import CHUNK_BYTES, vocabulary_loss


def framed(sequences: Sequence[Tokens], begin: int | None) -> list[Tokens]:
    """The sequences with `begin` before those that start with text: their first token is predicted too."""
    if begin is None:
        return list(sequences)
    return [
        Tokens(np.insert(s.ids, 0, begin), np.insert(s.units, 0, -1)) if s.units[0] >= 0 else s
        for s in sequences
    ]


def prefix_of(tokens: Tokens) -> int:
    """Number of places up to the middle of a text, special tokens before it counted."""
    places = np.flatnonzero(tokens.units >= 0)
    return int(places[0]) + places.size // 2 if places.size else 0


@torch.no_grad()
def log_likelihoods(
    model: Encoder | PreTrainedModel,
    sequences: Sequence[Tokens],
    prefix: bool = False,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[Tensor]:
    """log p(token | what is before it) of the scored tokens of each sequence, in nats.

    Args:
        model: in evaluation mode; an `Encoder` is run causally, another model as it is.
        sequences: in any order and of any lengths that the model takes. A token at the very beginning has
            nothing before it and gets 0.
        prefix: the first half of each text is seen from both sides by all; its own tokens, which a visible
            prefix cannot be asked for, are predicted from left to right. So the sum is a log-probability of
            the whole text in either case (2204.05832, §3.1). Needs an `Encoder`.
        tell: is told how many tokens went through the model, and of how many.

    Returns:
        A float64 tensor for each sequence, in the order of its scored tokens.
    """
    found: list[Tensor] = [torch.zeros(0, dtype=torch.float64)] * len(sequences)
    by_length: dict[int, list[int]] = {}
    for number, sequence in enumerate(sequences):
        by_length.setdefault(sequence.ids.size, []).append(number)
    device = next(model.parameters()).device
    at_once = FORWARD_TOKENS.get(device.type, FORWARD_TOKENS["cpu"])
    if not isinstance(model, Encoder):
        at_once = min(at_once, CHUNK_BYTES // (4 * model.config.get_text_config().vocab_size))
    done, total = 0, sum(sequence.ids.size for sequence in sequences)
    for length, numbers in sorted(by_length.items(), reverse=True):  # the longest first
        step = max(1, at_once // length)
        for start in range(0, len(numbers), step):
            part = [sequences[n] for n in numbers[start : start + step]]
            ids, units = (
                torch.from_numpy(np.stack([getattr(s, name) for s in part])).to(device)
                for name in ("ids", "units")
            )
            log_p = _left_to_right(model, ids, units >= 0)
            if prefix:
                assert isinstance(model, Encoder)
                ends = torch.tensor([prefix_of(s) for s in part], device=device)
                open = torch.arange(length, device=device) < ends[:, None]
                log_p = torch.where(open, log_p, _of_encoder(model, ids, (units >= 0) & ~open, open))
            for number, own, scored in zip(numbers[start : start + step], log_p, units >= 0, strict=True):
                found[number] = own[scored].cpu()
            done += ids.numel()
            tell(done, total)
    return found


def _left_to_right(model: Encoder | PreTrainedModel, ids: Tensor, wanted: Tensor) -> Tensor:
    """[sequences, length] float64, log-probabilities of the wanted tokens, 0 elsewhere."""
    if isinstance(model, Encoder):
        return _of_encoder(model, ids, wanted, None)
    log_p = model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    own = torch.zeros_like(ids, dtype=torch.float64)
    own[:, 1:] = log_p.gather(2, ids[:, 1:, None]).squeeze(2).double()
    return own.where(wanted, 0.0)


def _of_encoder(encoder: Encoder, ids: Tensor, wanted: Tensor, open: Tensor | None) -> Tensor:
    """The same of an encoder under causal visibility; `open`: tokens that their whole sequence sees."""
    rows, length = ids.shape
    place = torch.arange(length, device=ids.device).expand_as(ids)
    flat = torch.arange(ids.numel(), device=ids.device).view_as(ids)
    view = View(ids, flat // length, place, flat, causal=True, dense=True, runs=rows)
    targets = (wanted & (place > 0)).flatten().nonzero().squeeze(1)
    layer = encoder.vocabulary
    features = encoder(replace(view, open=open), targets - 1).features
    loss = vocabulary_loss(features, layer.weight, layer.bias, ids.flatten()[targets]).loss
    own = torch.zeros(ids.numel(), dtype=torch.float64, device=ids.device)
    return own.index_copy(0, targets, -loss.double()).view_as(ids)
