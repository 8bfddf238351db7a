"""The leak probe: tokens are changed, and nobody may notice but those who may see them.

Some families of transformers take our attention and ignore what it is told, some kernels are wrong in one
precision or on one machine. Nothing in a loss shows it but that it is too good. So every network is probed
when it is made (`isolate`, `wrap`), and once more as it is trained (`check_networks`): on its device, in its
precision, in rows of the recipe's length.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cloze.corruption.view import View
from cloze.errors import ClozeError

if TYPE_CHECKING:
    from cloze.models.encoder import Encoder

KINDS = ("all", "causal", "prefix")
LENGTH = 32  # of the probe's rows, where nobody asks for more
LONGEST = 1024  # beyond it there are no other kernels


@torch.no_grad()
def noticed(run: Callable[[Tensor], Tensor], blocks: Tensor, size: int) -> Tensor:
    """[blocks, outputs] bool: which outputs are other bits when the tokens of a block are others.

    All blocks are rows of one batch, and so is what they are compared with: each row stands where it stood,
    for its place in a batch may change its last bits.

    Args:
        run: [rows, length] ids to [rows, outputs, width]. blocks: [length], the block of each token, from 0.
        size: of the vocabulary.
    """
    number = torch.arange(int(blocks.max()) + 1, device=blocks.device)[:, None]
    base = ((torch.arange(blocks.numel(), device=blocks.device) * 7919 + 13) % size).expand(len(number), -1)
    other = torch.where(blocks == number, (base + size // 2) % size, base)
    return (run(base) != run(other)).any(-1)


def leaking(found: Tensor, allowed: Tensor, blocks: Tensor, own: Tensor, segments: Tensor) -> list[str]:
    """What is seen that must not be: of "other samples", "later tokens", "padding".

    Args:
        found: of `noticed`. allowed: [outputs, length] bool, which tokens an output may see.
        blocks: [length]. own: [outputs], the sample of each output. segments: [length], of each token.
    """
    bad = (found.T[:, blocks] & ~_by_block(allowed, blocks)) & (own >= 0)[:, None]
    padding = (segments < 0)[None]
    other = (own[:, None] != segments[None]) & ~padding
    kinds = {"other samples": other, "later tokens": ~other & ~padding, "padding": padding}
    return [name for name, which in kinds.items() if bool((bad & which).any())]


def _by_block(allowed: Tensor, blocks: Tensor) -> Tensor:
    """[outputs, length]: whether an output may see any token of a token's block."""
    same = blocks[:, None] == blocks[None]
    return (allowed.float() @ same.float()) > 0


def leaks(encoder: Encoder, kinds: Collection[str] = KINDS, length: int = LENGTH) -> list[str]:
    """Probe whether a token sees another sample of its row, padding, or what causality or a prefix hides.

    Two samples and padding in a row, each sample in three blocks, of which the first is the prefix. An
    encoder that cannot keep samples apart is probed with one sample in a row.

    Args:
        kinds: of visibility, of `KINDS`. length: of the rows, at most `LONGEST`.

    Returns: what leaks, such as "causal: later tokens"; empty when all is well.
    """
    device, size = encoder.vocabulary.weight.device, encoder.vocabulary.weight.shape[0]
    block = max(1, min(min(length, LONGEST) // 8, encoder.longest() // 3))
    place = torch.arange(8 * block, device=device)
    segments = torch.where(place < 6 * block, place // (3 * block), -1)
    if not encoder.isolates:
        kinds, place = ["all"], place[: 4 * block]
        segments = torch.where(place < 3 * block, 0, -1)
    positions = torch.where(segments < 0, 0, place % (3 * block))
    third = torch.where(segments < 0, 6, place // block)
    training = encoder.training
    encoder.eval()
    found = []
    try:
        for kind in kinds:
            blocks = third if kind != "all" else torch.where(segments < 0, segments.max() + 1, segments)
            blocks = blocks.unique(return_inverse=True)[1]
            open = positions < block if kind == "prefix" else None

            def run(ids: Tensor, causal: bool = kind != "all", open: Tensor | None = open) -> Tensor:
                rows = len(ids)
                shape = [x.expand(rows, -1) for x in (segments, positions)]
                shift = 2 * torch.arange(rows, device=device)[:, None]  # samples are numbered through
                numbered = torch.where(shape[0] < 0, -1, shape[0] + shift)
                view = View(ids, numbered, shape[1], torch.zeros_like(ids), causal)
                view = view if open is None else _opened(view, open.expand(rows, -1))
                return encoder(view, place[:1]).hidden

            seen = segments[:, None] == segments[None]
            if kind != "all":
                past = place[None] <= place[:, None]
                seen &= past if open is None else past | open[None]
            which = leaking(noticed(run, blocks, size), seen, blocks, segments, segments)
            found += [f"{kind}: {what}" for what in which]
    finally:
        encoder.train(training)
    return found


def _opened(view: View, open: Tensor) -> View:
    return View(view.ids, view.segments, view.positions, view.origin, view.causal, open=open)


def check_networks(method: nn.Module, kinds: Collection[str], lengths: Collection[int]) -> None:
    """Probe every network of a method as it is trained; under the caller's autocast.

    Args:
        kinds: of visibility that the method's views have. lengths: of its rows.

    Errors: a network in which something leaks, or one that cannot keep samples apart beside one that can.
    """
    from cloze.models.encoder import Encoder
    from cloze.models.encoder_decoder import EncoderDecoder
    from cloze.models.encoder_decoder import leaks as leaks_between

    networks = [module for module in method.modules() if isinstance(module, Encoder | EncoderDecoder)]
    for network in networks:
        name, weight = type(network.model).__name__, network.vocabulary.weight
        if network.isolates != networks[0].isolates:
            raise ClozeError(f"{name}: cannot keep packed samples apart, as the network beside it does")
        for length in sorted({min(length, LONGEST) for length in lengths}):
            if isinstance(network, EncoderDecoder):
                found = leaks_between(network, length)
            else:
                found = leaks(network, [kind for kind in KINDS if kind in kinds], length)
            if found and network.isolates:
                half = torch.is_autocast_enabled(weight.device.type)
                raise ClozeError(
                    f"{name}: tokens see what they must not ({'; '.join(found)}) in rows of {length} tokens "
                    f"on {weight.device} in {'bf16' if half else 'fp32'}: its losses would be too good. Try "
                    "another training.precision, model.family or torch, and report it"
                )
