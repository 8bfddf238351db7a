"""Vectors of texts from any encoder: the mean of its last hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cloze.errors import ClozeError
from cloze.evaluation.subject import Subject

LENGTH = 256
BATCH_TOKENS = 8192  # padding included
_TOKENIZED_AT_ONCE = 1000

_Tokens: TypeAlias = tuple[Tensor, Tensor]
"""[n] int32, the ids of a text; [n] bool, which of them count in the mean."""


class Embedder:
    """Turns texts into vectors by mean pooling (Reimers and Gurevych 2019, 1908.10084, section 3).

    The vector of a text is the mean of the last hidden states over its tokens; padding never counts.
    Nothing is trained and no head is used. Everything is float32.

    Args:
        subject: the model.
        length: most tokens of a text, special tokens included, the rest is cut off; None: 256, or as many
            as the model takes.
        meter: is told how many texts are done, over all calls.

    Errors: a length that the model does not take or that leaves no token of text; a model with a decoder.
    """

    def __init__(
        self, subject: Subject, length: int | None = None, meter: Callable[[int], None] = lambda done: None
    ):
        self._tokenizer, self._model, self._device = subject.tokenizer, subject.body(), subject.device
        least = self._tokenizer.num_special_tokens_to_add() + 1
        if length is not None and not least <= length <= subject.longest:
            raise ClozeError(f"--length {length}: {subject.name} takes {least} to {subject.longest:,} tokens")
        if self._model.config.is_encoder_decoder:
            raise ClozeError(f"{subject.name}: has a decoder; vectors are taken from encoders only")
        self.length = min(LENGTH, subject.longest) if length is None else length
        self._name, self._meter, self._done = subject.name, meter, 0

    def encode(self, texts: Sequence[str], specials: bool = True, inputs: bool = False) -> np.ndarray:
        """[N, width] float32; equal texts are encoded once and have equal vectors.

        Args:
            texts: N of them.
            specials: whether special tokens such as [CLS] count in the mean, as they do in
                sentence-transformers. A text without any other token is their mean in either case.
            inputs: take the input embeddings in place of the last hidden states.

        Errors: the model's numbers are not finite.
        """
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        tokens = self._tokens(list(distinct), specials)
        vectors: np.ndarray | None = None
        for batch in _batches([ids.numel() for ids, _ in tokens]):
            means = self._means([tokens[i] for i in batch], inputs)
            if vectors is None:
                vectors = np.empty((len(distinct), means.shape[1]), np.float32)
            vectors[batch] = means
            self._done += len(batch)
            self._meter(self._done)
        if vectors is None:
            raise ClozeError("there is no text to encode")
        if not np.isfinite(vectors).all():
            raise ClozeError(f"{self._name}: the model gives vectors that are not finite numbers")
        return vectors[[distinct[text] for text in texts]]

    def _tokens(self, texts: list[str], specials: bool) -> list[_Tokens]:
        # A tokenizer that frames nothing may make nothing of a text, but a mean needs a token.
        names = (self._tokenizer.unk_token_id, self._tokenizer.pad_token_id, 0)
        nothing = next(i for i in names if i is not None)
        found = []
        for start in range(0, len(texts), _TOKENIZED_AT_ONCE):
            encoded = self._tokenizer(
                texts[start : start + _TOKENIZED_AT_ONCE],
                truncation=True,
                max_length=self.length,
                padding=False,
                return_special_tokens_mask=True,
            )
            for ids, frame in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
                own = torch.tensor(frame or [0]) == 0
                counted = own if own.any() and not specials else torch.ones_like(own)
                found.append((torch.tensor(ids or [nothing], dtype=torch.int32), counted))
        return found

    @torch.no_grad()
    def _means(self, tokens: list[_Tokens], inputs: bool) -> np.ndarray:
        pad = self._tokenizer.pad_token_id or 0
        ids = pad_sequence([i.long() for i, _ in tokens], batch_first=True, padding_value=pad)
        counted = pad_sequence([c for _, c in tokens], batch_first=True).to(self._device)
        sizes = torch.tensor([i.numel() for i, _ in tokens])
        attended = (torch.arange(ids.shape[1]) < sizes[:, None]).long().to(self._device)
        ids = ids.to(self._device)
        if inputs:
            states = self._model.get_input_embeddings()(ids)
        else:
            states = self._model(input_ids=ids, attention_mask=attended).last_hidden_state
        weights = counted[..., None].to(states.dtype)
        return ((states * weights).sum(1) / weights.sum(1)).float().cpu().numpy()


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[N] float64, cosine similarity of the rows of two [N, width] arrays; 0 for a vector of zeros."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(1) / np.maximum(norms, 1e-300)


def _batches(sizes: list[int]) -> Iterator[list[int]]:
    """Indices of texts, the longest first, so many at once as fit into BATCH_TOKENS."""
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    while order:
        count = max(1, BATCH_TOKENS // sizes[order[0]])
        yield order[:count]
        order = order[count:]
