"""Pseudo-log-likelihood: how probable a masked language model finds a text, one masked token at a time.

Each token is predicted in a copy of its sequence in which it is masked. Copies of equal length go through the
encoder together, so that nothing is padded and attention needs no mask; logits exist at the one place that is
predicted in each copy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cloze.corruption.view import View
from cloze.data.loader import special_tokens
from cloze.data.units import UnitRule
from cloze.models.encoder import Encoder
from cloze.models.vocabulary_loss import vocabulary_loss
from cloze.random import Stream, uniform

SEED = 0  # of what replaces a hidden token; the same for all models
FORWARD_TOKENS = {"cpu": 2048, "cuda": 65_536}
_AT_ONCE = 1024  # sentences whose encodings, which are large, are alive at a time


@dataclass(frozen=True, slots=True)
class Tokens:
    """A sequence as the model gets it.

    Attributes:
        ids: [length] int64, special tokens included.
        units: [length] int64, number of the token's word; -1: the token is not scored.
    """

    ids: np.ndarray
    units: np.ndarray


@dataclass(frozen=True, slots=True)
class PseudoLikelihoods:
    """Scores of S sequences, in nats.

    Attributes:
        plain: [S] float64, Σ log p(token | all other tokens): PLL, Salazar et al. 2020 (1910.14659).
        word_l2r: [S] float64, the same with the later tokens of the token's own word masked too, so that they
            do not give it away: PLL-word-l2r, Kauf and Ivanova 2023 (2305.10588).
    """

    plain: Tensor
    word_l2r: Tensor


class Splitter:
    """Makes `Tokens` of sentences: with the tokenizer's special tokens around them, which are not scored."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.prefix, self.suffix = special_tokens(tokenizer)
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # a "[MASK]" that is written in a sentence is text
        self._rule = UnitRule.probe(self._backend)

    def __call__(self, sentences: Sequence[str]) -> list[Tokens]:
        """The tokens of each sentence; one of white space has none that are scored."""
        parts = (sentences[start : start + _AT_ONCE] for start in range(0, len(sentences), _AT_ONCE))
        return [tokens for part in parts for tokens in self._split(part)]

    def _split(self, sentences: Sequence[str]) -> Iterator[Tokens]:
        encodings = self._backend.encode_batch(sentences, add_special_tokens=False)
        bounds = np.cumsum([0, *map(len, encodings)])
        ids = np.concatenate([np.array(encoding.ids, np.int64) for encoding in encodings])
        starts = self._rule.starts(encodings, ids, bounds)
        for first, last in pairwise(bounds.tolist()):
            units = np.full(len(self.prefix) + last - first + len(self.suffix), -1)
            units[len(self.prefix) : len(self.prefix) + last - first] = starts[first:last].cumsum() - 1
            yield Tokens(np.concatenate([self.prefix, ids[first:last], self.suffix]).astype(np.int64), units)


@torch.no_grad()
def pseudo_log_likelihoods(
    encoder: Encoder,
    mask: int | Tensor,
    sequences: Sequence[Tokens],
    tell: Callable[[int, int], None] = lambda done, total: None,
    shift: int = 0,
) -> PseudoLikelihoods:
    """Score sequences by both variants at once.

    A token that is the last one of its word is predicted in the same copy for both. So the corrected variant
    costs one more copy for each token that is not.

    Args:
        encoder: in evaluation mode.
        mask: id of the mask token; or [n] int64 ids, one of which stands for a hidden token, drawn by its
            place and the length of the sequence, so that like sentences get the same ones.
        sequences: in any order and of any lengths that the model takes.
        tell: is told how many tokens went through the encoder, and of how many.
        shift: how many places before a token the output lies that predicts it; a token with fewer places
            before it is not scored.
    """
    layer = encoder.vocabulary
    device = layer.weight.device
    plain, word_l2r = torch.zeros(2, len(sequences), dtype=torch.float64)
    groups = _groups(sequences, shift)
    done, total = 0, sum(group.size for group in groups)
    for group in groups:
        for copies in group.copies(mask, FORWARD_TOKENS.get(device.type, FORWARD_TOKENS["cpu"])):
            features = encoder(copies.view.to(device), copies.places.to(device)).features
            found = vocabulary_loss(features, layer.weight, layer.bias, copies.labels.to(device))
            log_p = -found.loss.double().cpu()
            plain.index_add_(0, copies.owner, log_p * copies.plain)
            word_l2r.index_add_(0, copies.owner, log_p * copies.word_l2r)
            done += copies.view.ids.numel()
            tell(done, total)
    return PseudoLikelihoods(plain, word_l2r)


@dataclass(frozen=True, slots=True)
class _Copies:
    """Masked copies of sequences of one length, and what is predicted in each.

    Attributes:
        view: [copies, length]. places, labels: [copies] int64, of the output that predicts; the token.
        owner: [copies] int64, number of the sequence.
        plain, word_l2r: [copies] bool, whether it counts for this variant.
    """

    view: View
    places: Tensor
    labels: Tensor
    owner: Tensor
    plain: Tensor
    word_l2r: Tensor


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences of one length, and the copies that they need.

    Attributes:
        number: [S] int64, which of all sequences they are.
        ids, units: [S, length] int64.
        row, place: [copies] int64, of the predicted token.
        plain, word_l2r: [copies] bool. shift: of the output that predicts.
    """

    number: Tensor
    ids: Tensor
    units: Tensor
    row: Tensor
    place: Tensor
    plain: Tensor
    word_l2r: Tensor
    shift: int

    @classmethod
    def of(cls, number: list[int], sequences: Sequence[Tokens], shift: int) -> _Group:
        ids, units = (
            torch.from_numpy(np.stack([getattr(sequences[n], name) for n in number]))
            for name in ("ids", "units")
        )
        row, place = (units[:, shift:] >= 0).nonzero().unbind(1)
        place = place + shift
        following = torch.nn.functional.pad(units, (0, 1), value=-1)[row, place + 1]
        inside = following == units[row, place]  # more of its word follows
        again = inside.nonzero().squeeze(1)
        return cls(
            torch.tensor(number),
            ids,
            units,
            torch.cat([row, row[again]]),
            torch.cat([place, place[again]]),
            torch.arange(row.numel() + again.numel()) < row.numel(),
            torch.cat([~inside, torch.ones_like(again, dtype=torch.bool)]),
            shift,
        )

    @property
    def size(self) -> int:
        """Tokens of all copies."""
        return self.row.numel() * self.ids.shape[1]

    def copies(self, mask: int | Tensor, tokens: int) -> Iterator[_Copies]:
        """The copies, about so many tokens at a time."""
        length = self.ids.shape[1]
        at = torch.arange(length)
        step = max(1, tokens // length)
        fill = _fill(mask, length)
        for start in range(0, self.row.numel(), step):
            row, place, plain, word_l2r = (
                x[start : start + step] for x in (self.row, self.place, self.plain, self.word_l2r)
            )
            clean = self.ids[row]
            own = self.units[row] == self.units[row, place, None]
            hidden = torch.where(plain[:, None], at == place[:, None], own & (at >= place[:, None]))
            flat = torch.arange(clean.numel()).view_as(clean)
            view = View(
                torch.where(hidden, fill, clean),
                torch.arange(row.numel())[:, None].expand_as(clean),
                at.expand_as(clean),
                flat,
                dense=True,
                runs=row.numel(),
            )
            places = flat.gather(1, place[:, None] - self.shift).squeeze(1)
            labels = clean.gather(1, place[:, None]).squeeze(1)
            yield _Copies(view, places, labels, self.number[row], plain, word_l2r)


def _fill(mask: int | Tensor, length: int) -> Tensor:
    """[length] int64, what stands at each place if its token is hidden."""
    if isinstance(mask, int):
        return torch.full((length,), mask)
    drawn = uniform(SEED, Stream.TOKEN, torch.tensor(length), torch.arange(length))
    return mask[(drawn * mask.numel()).to(torch.int64)]


def _groups(sequences: Sequence[Tokens], shift: int) -> list[_Group]:
    """By length, the longest first: memory that does not suffice is found out at once."""
    by_length: dict[int, list[int]] = {}
    for number, sequence in enumerate(sequences):
        by_length.setdefault(sequence.ids.size, []).append(number)
    return [_Group.of(numbers, sequences, shift) for _, numbers in sorted(by_length.items(), reverse=True)]
