"""Examples as token ids, and sequences of like length as batches."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cloze.models.opened import OpenedDecoder

_FORWARD_TOKENS = 8192  # of a batch without gradients
_BUCKET = 50  # batches whose sequences are sorted by length together


@dataclass(frozen=True, slots=True)
class Sequences:
    """Token ids of sequences, and what of them is labelled.

    Attributes:
        ids: of each sequence, special tokens included.
        types: token types (first or second text) of pairs, for models that have them.
        places: for each sequence the first token of each of its words; None: sequences have one label.
    """

    ids: list[list[int]]
    types: list[list[int]] | None = None
    places: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def items(self) -> np.ndarray:
        """[sequences]: how many labels each has."""
        sizes = [1] * len(self.ids) if self.places is None else [len(p) for p in self.places]
        return np.array(sizes, np.int64)


def encode(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[tuple[str, ...]], length: int, types: bool
) -> Sequences:
    """Tokenise texts or pairs, cut to `length` tokens (the longer text of a pair first).

    `types`: whether the model tells the texts of a pair apart by token types (`has_types`).
    """
    columns = [list(column) for column in zip(*texts, strict=True)]
    paired = len(columns) == 2
    found = tokenizer(
        *columns,
        truncation=True,
        max_length=length,
        return_attention_mask=False,
        return_token_type_ids=paired,
    )
    ids = [i or [tokenizer.mask_token_id] for i in found["input_ids"]]
    return Sequences(ids, found["token_type_ids"] if paired and types else None)


def has_types(body: PreTrainedModel | OpenedDecoder) -> bool:
    """Whether a model tells the two texts of a pair apart by token types."""
    known = "token_type_ids" in inspect.signature(body.forward).parameters
    return known and (getattr(body.config, "type_vocab_size", 0) or 0) > 1


def encode_words(
    tokenizer: PreTrainedTokenizerFast, sentences: Sequence[tuple[str, ...]], length: int
) -> Sequences:
    """Tokenise sentences given as words; one of more than `length` tokens becomes several sequences.

    The words are joined by spaces and tokenised as running text, as the model met them in pretraining; a
    word's place is the first token that has one of its characters.
    """
    ids: list[list[int]] = []
    places: list[list[int]] = []
    for start in range(0, len(sentences), 1000):
        some = sentences[start : start + 1000]
        for words, (tokens, at) in zip(some, _tokenise(tokenizer, some), strict=True):
            for piece, where in _fitting(tokenizer, words, tokens, at, length):
                ids.append(piece)
                places.append(where)
    return Sequences(ids, places=places)


def _fitting(
    tokenizer: PreTrainedTokenizerFast, words: Sequence[str], ids: list[int], places: list[int], length: int
) -> Iterator[tuple[list[int], list[int]]]:
    if len(ids) <= length:
        yield ids, places
    elif len(words) == 1:
        yield ids[:length], places
    else:
        halves = words[: len(words) // 2], words[len(words) // 2 :]
        for half, (own, at) in zip(halves, _tokenise(tokenizer, halves), strict=True):
            yield from _fitting(tokenizer, half, own, at, length)


def _tokenise(
    tokenizer: PreTrainedTokenizerFast, sentences: Sequence[Sequence[str]]
) -> Iterator[tuple[list[int], list[int]]]:
    found = tokenizer(
        [" ".join(words) for words in sentences],
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        verbose=False,  # it warns of sequences that are longer than the model takes
    )
    for words, ids, offsets in zip(sentences, found["input_ids"], found["offset_mapping"], strict=True):
        yield ids or [tokenizer.mask_token_id], _places(words, offsets)


def _places(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The first token of each word; 0 for a word that the tokenizer drops."""
    places, token, start = [], 0, 0
    for word in words:
        stop = start + len(word)
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        inside = token < len(offsets) and offsets[token][0] < stop
        places.append(token if inside else 0)
        start = stop + 1
    return places


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch: inputs of the model by name, each [rows, length], and where the labelled words are.

    Attributes:
        inputs: input_ids, attention_mask and perhaps token_type_ids.
        words: (row, token) of each labelled word, [items] each; None: whole sequences.
    """

    inputs: dict[str, Tensor]
    words: tuple[Tensor, Tensor] | None

    def states(self, body: nn.Module) -> Tensor:
        """[items, width]: final states of words, or the mean over a sequence's tokens."""
        hidden: Tensor = body(**self.inputs).last_hidden_state
        if self.words is not None:
            return hidden[self.words]
        mask = self.inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


def collate(sequences: Sequences, chosen: Sequence[int], pad: int, device: torch.device) -> Rows:
    """Some sequences, padded to the longest of them."""
    longest = max(len(sequences.ids[i]) for i in chosen)

    def padded(lists: list[list[int]], value: int) -> Tensor:
        return torch.tensor([lists[i] + [value] * (longest - len(lists[i])) for i in chosen], device=device)

    sizes = torch.tensor([len(sequences.ids[i]) for i in chosen], device=device)
    mask = (torch.arange(longest, device=device) < sizes[:, None]).long()
    inputs = {"input_ids": padded(sequences.ids, pad), "attention_mask": mask}
    if sequences.types is not None:
        inputs["token_type_ids"] = padded(sequences.types, 0)
    if sequences.places is None:
        return Rows(inputs, None)
    places = [sequences.places[i] for i in chosen]
    rows = torch.arange(len(places)).repeat_interleave(torch.tensor([len(p) for p in places]))
    return Rows(inputs, (rows.to(device), torch.tensor([t for p in places for t in p], device=device)))


def training_batches(sequences: Sequences, size: int, draw: np.random.Generator) -> Iterator[list[int]]:
    """One epoch in random order; sequences of like length are together, so that little is padding."""
    lengths = np.array([len(i) for i in sequences.ids])
    order = draw.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), size * _BUCKET):
        bucket = order[start : start + size * _BUCKET]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    for number in draw.permutation(len(batches)):
        yield batches[number].tolist()


@torch.no_grad()
def run_all(forward: Any, sequences: Sequences, pad: int, device: torch.device) -> np.ndarray:
    """`forward` of batches of all sequences, [items, outputs] in the order of the sequences."""
    lengths = np.array([len(i) for i in sequences.ids])
    order = np.argsort(-lengths, kind="stable")
    starts = [0, *accumulate(sequences.items().tolist())]
    found: np.ndarray | None = None
    at = 0
    while at < len(order):
        chosen = order[at : at + max(1, _FORWARD_TOKENS // int(lengths[order[at]]))].tolist()
        output = forward(collate(sequences, chosen, pad, device)).float().cpu().numpy()
        if found is None:
            found = np.empty((starts[-1], output.shape[1]), np.float32)
        found[np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen])] = output
        at += len(chosen)
    assert found is not None
    return found
