"""New tokens for a tokenizer that exists, learnt from the user's text.

A tokenizer made for other text cuts the words of a domain into many pieces. Here frequent ones become
entries of the tokenizer's own model, behind all ids that exist. `add_tokens` would be simpler, but what it
adds is also found inside of other words, and is looked for in every text before the model is asked.

How an entry comes to be used depends on the model:

- WordPiece takes the longest entry that a word begins with, so whole words are added, those first that save
  most tokens: occurrences × (pieces - 1). Longer words that begin with a new one change with it.
- BPE joins pairs by its list of merges, so its training goes on (arXiv:2512.03989): the most frequent pair of
  present tokens becomes the next merge. It stands behind all old merges and sees only what they have left.
- Unigram takes the cut with the highest sum of scores, so a word gets the sum of its own pieces and a trifle
  for each token saved: it stands where these pieces stood, and no other cut wins or loses.
"""

from __future__ import annotations

import heapq
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from cloze.data.sections import split_paragraphs
from cloze.data.tokenizers import ids_of, load_tokenizer, save_tokenizer
from cloze.errors import ClozeError

MIN_COUNT = 5
"""Rarer words get no token: so few occurrences do not train an embedding."""

_MARKS = "Ġ▁"  # before a word, in byte-level and in SentencePiece vocabularies
_SPACES = "ĠĊĉč▁"  # space, line end, tab, carriage return
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_TRIFLE = 1e-6  # of a score, a natural logarithm: far below the differences between scores
_NEVER = 1000.0  # a score so much below all others is not chosen


def count_words(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs, as the tokenizer's model gets it: normalised, with the mark of a space.

    Errors: a tokenizer that does not cut text into words before its model sees it.
    """
    backend = tokenizer.backend_tokenizer
    if backend.pre_tokenizer is None:
        raise ClozeError(f"tokenizer.extend: {type(tokenizer).__name__} does not cut text into words first")
    words: Counter[str] = Counter()
    for text in chain.from_iterable(map(split_paragraphs, texts)):  # as the store cuts them
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    return words


def mix(counts: Sequence[Counter[str]], weights: Sequence[float]) -> dict[str, float]:
    """Words of several sources, as often as they come while the most repeated source comes once."""
    rates = [weight / count.total() if count else 0.0 for count, weight in zip(counts, weights, strict=True)]
    most = max(rates) or 1.0
    words: dict[str, float] = defaultdict(float)
    for count, rate in zip(counts, rates, strict=True):
        for word, times in count.items():
            words[word] += times * rate / most
    return words


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerFast, words: Mapping[str, float], size: int, folder: Path
) -> tuple[list[str], float]:
    """Save a tokenizer with `size` more tokens to a folder; fewer, where the words do not give so many.

    All ids of the old one stay what they are; the new tokens have the ids behind them.

    Returns:
        The new tokens, the best ones first, and the share of the words' tokens that they save.

    Errors: a tokenizer of another kind than WordPiece, BPE or Unigram; words that give no token.
    """
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    model, first = tree["model"], ids_of(tokenizer)
    if model["type"] not in ("WordPiece", "BPE", "Unigram"):
        raise ClozeError(
            f"tokenizer.extend: a {model['type']} tokenizer cannot be extended: only WordPiece, BPE, Unigram"
        )
    cuts = [(_cut(tokenizer, word), times) for word, times in words.items() if _has_letter(word)]
    new = _add_merges(model, cuts, size) if model["type"] == "BPE" else _best_words(model, cuts, size)
    if not new:
        raise ClozeError(
            f"tokenizer.extend: no word that occurs {MIN_COUNT} times is cut into pieces: leave it out, or "
            "give more text"
        )
    _enter(model, new, {token["id"]: token["content"] for token in tree["added_tokens"]}, first)
    save_tokenizer(tokenizer, folder)
    (folder / "tokenizer.json").write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
    extended = load_tokenizer(folder)
    ids = list(range(first, first + len(new)))
    if extended.convert_tokens_to_ids(list(new)) != ids or not pieces_of_new(tokenizer, extended):
        raise ClozeError(f"tokenizer.extend: {type(tokenizer).__name__} does not keep new tokens")
    before, after = (
        sum(len(t.backend_tokenizer.model.tokenize(word)) * times for word, times in words.items())
        for t in (tokenizer, extended)
    )
    return list(new), 1 - after / before


def pieces_of_new(old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast) -> dict[int, list[int]]:
    """For each id of `new` that `old` lacks, the ids that `old` cuts its token into; no special tokens.

    Empty where `new` is not an extension of `old`: where an old token is missing or has another id.
    """
    known, tokens = old.get_vocab(), new.get_vocab()
    if any(tokens.get(token) != index for token, index in known.items()):
        return {}
    aside, special = new.get_added_vocab(), set(new.all_special_ids)
    pieces = {}
    for token, index in tokens.items():
        if token in known or index in special:
            continue
        if token in aside:
            pieces[index] = old.encode(token, add_special_tokens=False)
        else:
            pieces[index] = [piece.id for piece in old.backend_tokenizer.model.tokenize(token)]
    return pieces


def _cut(tokenizer: PreTrainedTokenizerFast, word: str) -> list[str]:
    """The pieces of a word; none where a part of it is unknown or made of bytes."""
    pieces = tokenizer.backend_tokenizer.model.tokenize(word)
    if any(piece.id == tokenizer.unk_token_id or _BYTE.fullmatch(piece.value) for piece in pieces):
        return []
    return [piece.value for piece in pieces]


def _has_letter(word: str) -> bool:
    return any(character.isalpha() for character in word.lstrip(_SPACES))


def _best_words(
    model: Mapping[str, Any], cuts: Iterable[tuple[list[str], float]], size: int
) -> dict[str, float | None]:
    """The words that save most tokens, with their scores (None for WordPiece)."""
    prefix = model["continuing_subword_prefix"] if model["type"] == "WordPiece" else None
    scores: dict[str, float] = {} if prefix is not None else dict(model["vocab"])
    known = model["vocab"] if prefix is not None else scores
    runs: dict[str, list[str]] = {}
    counts: dict[str, float] = defaultdict(float)
    for pieces, times in cuts:
        for run in [pieces] if prefix is not None else _runs(pieces):
            token = "".join([*run[:1], *(piece.removeprefix(prefix or "") for piece in run[1:])])
            if len(run) > 1 and token not in known:
                runs[token] = run
                counts[token] += times
    often = [token for token, times in counts.items() if times >= MIN_COUNT]
    best = sorted(often, key=lambda token: (-counts[token] * (len(runs[token]) - 1), token))[:size]
    if prefix is not None:
        return dict.fromkeys(best)
    return {t: sum(scores[p] for p in runs[t]) + _TRIFLE * (len(runs[t]) - 1) for t in best}


def _runs(pieces: Sequence[str]) -> Iterator[list[str]]:
    """The words in pieces that may have punctuation among them: "▁(", "neuro", "n", ")," holds "neuron"."""
    run: list[str] = []
    for piece in pieces:
        plain = all(unicodedata.category(c)[0] in "LMN" for c in piece.lstrip(_MARKS))
        if run and (not plain or piece[0] in _MARKS):
            yield run
            run = []
        if plain:
            run.append(piece)
    if run:
        yield run


def _add_merges(
    model: dict[str, Any], cuts: Iterable[tuple[list[str], float]], size: int
) -> dict[str, float | None]:
    """Goes on with the training of a BPE model: its merges are added to, and their tokens returned."""
    prefix = model.get("continuing_subword_prefix") or ""
    words = [(pieces, times) for pieces, times in cuts if len(pieces) > 1]
    counts: dict[tuple[str, str], float] = defaultdict(float)
    places: dict[tuple[str, str], set[int]] = defaultdict(set)
    for number, (pieces, times) in enumerate(words):
        for pair in pairwise(pieces):
            counts[pair] += times
            places[pair].add(number)
    queue = [(-times, pair) for pair, times in counts.items()]
    heapq.heapify(queue)
    new: dict[str, float | None] = {}
    while queue and len(new) < size:
        times, pair = heapq.heappop(queue)
        if -times != counts[pair]:
            continue  # the pair has been counted anew since
        if -times < MIN_COUNT:
            break
        token = pair[0] + pair[1].removeprefix(prefix)
        if token in model["vocab"] or token in new:
            continue  # that other merges lead to
        model["merges"].append(list(pair))
        new[token] = None
        changed = set()
        for number in places.pop(pair):
            pieces, times = words[number]
            for old in pairwise(pieces):
                counts[old] -= times
                changed.add(old)
            pieces = _join(pieces, pair, token)
            words[number] = pieces, times
            for now in pairwise(pieces):
                counts[now] += times
                places[now].add(number)
                changed.add(now)
        for other in changed - {pair}:
            heapq.heappush(queue, (-counts[other], other))
    return new


def _join(pieces: Sequence[str], pair: tuple[str, str], token: str) -> list[str]:
    """The pieces of a word after a merge."""
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] = token
        else:
            joined.append(piece)
    return joined


def _enter(
    model: dict[str, Any], new: Mapping[str, float | None], aside: Mapping[int, str], first: int
) -> None:
    """Put new tokens into the vocabulary, from the id `first` on.

    Tokens that stood aside of the vocabulary come into it: else they would be numbered anew, behind it. No
    text is cut into them: there are no merges to them, or their scores are too low (unless it is unknown).
    """
    vocabulary = model["vocab"]
    if model["type"] == "Unigram":
        lowest = min(score for _, score in vocabulary) - _NEVER
        for index in range(len(vocabulary), first):
            vocabulary.append([aside.get(index, f"[unused{index}]"), lowest])
        vocabulary.extend([token, score] for token, score in new.items())
        return
    for index, token in aside.items():
        vocabulary.setdefault(token, index)
    vocabulary.update({token: first + number for number, token in enumerate(new)})
