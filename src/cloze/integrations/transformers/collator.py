"""A collator whose masks are a function of (seed, content of the row, epoch).

The stock collator draws masks from a generator, so that a resumed run sees others, short texts get none,
and no policy can weight its tokens. Rows are named by their content here, since a collator knows neither
their place nor their number; so rows of equal content have equal masks within an epoch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from cloze.corruption.replace import Replace, replace
from cloze.data.batch import Batch
from cloze.errors import ClozeError
from cloze.evaluation.heldout import SEED
from cloze.masking import POLICIES, Masking
from cloze.masking.base import Networks, Policy
from cloze.masking.rate import RateSchedule, rate_at
from cloze.masking.uniform import Uniform
from cloze.methods.build import vocabulary_of
from cloze.random import Stream, bits

IGNORED = -100  # label of a token that is not predicted, in all of transformers
_ENDLESS = 2**31  # epochs of a data set without a length: Trainer says sys.maxsize


class MaskingCollator:
    """Drop-in for `DataCollatorForLanguageModeling`: pads rows, draws their masks, makes inputs and labels.

    Rows are mappings with `input_ids` and what else the tokenizer pads (`attention_mask`, `token_type_ids`,
    `special_tokens_mask`), or bare lists of ids. A policy that hides words or spans also needs `word_ids`
    (see `with_word_ids`). Special tokens and padding are never masked; a row with other tokens has a mask.

    The epoch has to be told, by `EpochCallback`, or by `set_epoch` before the first batch of an epoch. It is
    the visit of the samples, and lies in shared memory, where worker processes see it.

    Args:
        tokenizer: with a mask and a padding token.
        policy: of `cloze.masking`, its `kind`, or a mapping of its fields; none that learns from a model.
        corruption: what stands in the place of hidden tokens; None is 80/10/10.
        seed: of masks and replacements, the same in all processes.
        pad_to_multiple_of: as in the stock collator.
        counts: [vocabulary], how often each token occurs in the text, for policies that ask for it.
        weights: also return `token_weights` [rows, length], p/π, and `reference_mass` [rows], Σp, for a
            loss that uses them. `MaskingTrainer` sets it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        policy: Masking | Policy | Mapping[str, Any] | str = "uniform",
        corruption: Replace | None = None,
        seed: int = 0,
        pad_to_multiple_of: int | None = None,
        counts: Tensor | None = None,
        weights: bool = False,
    ):
        for name in ("mask_token", "pad_token"):
            if getattr(tokenizer, name) is None:
                raise ClozeError(f"the tokenizer has no {name}: add one with tokenizer.add_special_tokens")
        self.tokenizer = tokenizer
        self.policy = _resolve(policy, counts, seed)
        self.corruption = corruption or Replace()
        self.seed = seed
        self.pad_to_multiple_of = pad_to_multiple_of
        self.weights = weights
        self.vocabulary = vocabulary_of(tokenizer)
        self.needs_words = depends_on_words(self.policy)
        self._clock = torch.tensor([-1, 0]).share_memory_()  # epoch, number of epochs

    def set_epoch(self, epoch: int, epochs: int = 0) -> None:
        """Say which epoch comes, from 0; a rate schedule also has to know of how many."""
        self._clock.copy_(torch.tensor([epoch, epochs if epochs < _ENDLESS else 0]))

    def with_weights(self) -> MaskingCollator:
        """The same collator, sharing its epoch, with `weights`."""
        clone = copy.copy(self)
        clone.weights = True
        return clone

    def evaluation(self, rate: float = 0.15) -> MaskingCollator:
        """For held-out text: uniform masks that never change, all of them mask tokens, as in `HeldOutSet`."""
        hidden = Replace(mask=1.0, random=0.0)
        pad = self.pad_to_multiple_of
        fixed = MaskingCollator(self.tokenizer, Uniform(rate=rate), hidden, SEED, pad, weights=self.weights)
        fixed.set_epoch(0)
        return fixed

    def __call__(self, features: Sequence[Any]) -> dict[str, Tensor]:
        """One batch: what the model takes, and `labels`; as many rows for each as the policy has `copies`.

        Errors: an unknown epoch; rows without words where they are needed; weights that would be lost.
        """
        epoch, rate = self._now()
        columns = self._pad(features)
        special = torch.isin(columns["input_ids"], torch.tensor(self.tokenizer.all_special_ids))
        special |= columns.pop("special_tokens_mask", torch.zeros(())).bool()
        attended, words = columns["attention_mask"].bool(), columns.pop("word_ids", None)
        copies = self.policy.copies
        batch = to_batch(columns["input_ids"], attended, special, words, epoch).repeat(copies)
        plan = self.policy.plan(batch, rate, self.seed)
        columns = {name: torch.cat([column] * copies) for name, column in columns.items()}
        columns["input_ids"] = replace(batch, plan, self.corruption, self.vocabulary, self.seed).ids
        columns["labels"] = torch.where(plan.predicted, batch.ids, IGNORED)
        weight = torch.where(plan.predicted, plan.reference / plan.inclusion, 0.0)
        if self.weights:
            columns |= {"token_weights": weight, "reference_mass": plan.reference.sum(dim=1)}
        elif bool((plan.predicted & ((weight - 1.0).abs() > 1e-6)).any()):
            raise ClozeError(
                f"{_name(self.policy)} weights its tokens, a stock Trainer would not: use MaskingTrainer, or "
                "weights=True and token_weights in a loss of your own"
            )
        return columns

    def _now(self) -> tuple[int, float]:
        """The epoch and the rate in it: a schedule moves from epoch to epoch, read at their middles."""
        epoch, epochs = self._clock.tolist()
        if epoch < 0:
            raise ClozeError(
                "the collator does not know the epoch: pass callbacks=[EpochCallback(collator)] to Trainer, "
                "or call collator.set_epoch(epoch) before each epoch"
            )
        if isinstance(self.policy.rate, RateSchedule) and not epochs:
            raise ClozeError(
                "a rate schedule needs the number of epochs: collator.set_epoch(epoch, epochs), or Trainer "
                "with a data set that has a length"
            )
        return epoch, rate_at(self.policy.rate, (epoch + 0.5) / max(1, epochs))

    def _pad(self, features: Sequence[Any]) -> dict[str, Tensor]:
        """Tensors [rows, length] of what the rows carry."""
        rows = [dict(f) if isinstance(f, Mapping) else {"input_ids": f} for f in features]
        words = [row.pop("word_ids") for row in rows if "word_ids" in row]
        columns = self._pad_rows(rows)
        if self.needs_words:
            if len(words) < len(rows):
                raise ClozeError(
                    f"{_name(self.policy)} hides whole words, but rows have no word_ids: tokenize with "
                    "with_word_ids, and use MaskingTrainer or remove_unused_columns=False"
                )
            numbers = [{"input_ids": [-1 if w is None else int(w) for w in row]} for row in words]
            columns["word_ids"] = self._pad_rows(numbers)["input_ids"]
        return columns

    def _pad_rows(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        padded = pad_without_fast_tokenizer_warning(
            self.tokenizer,
            rows,
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return dict(padded)


def to_batch(ids: Tensor, attended: Tensor, special: Tensor, words: Tensor | None, epoch: int) -> Batch:
    """One sample a row, named by its content.

    Args:
        ids: [rows, length] int64. attended, special: [rows, length] bool.
        words: [rows, length] int64, the word of each token, negative: a word of its own; None: all are.
        epoch: the visit of all samples.
    """
    place = attended.cumsum(1) - 1
    text = attended & ~special
    index = torch.where(text, text.cumsum(1) - 1, -1)
    # A sum of random numbers, one for each (place, token): it does not see where the padding is.
    keys = torch.where(attended, bits(0, Stream.KEY, place, ids), 0).sum(dim=1)
    units = index if words is None else torch.where(words < 0, -2 - place, words)
    segments = torch.where(attended, torch.arange(ids.shape[0])[:, None], -1)
    return Batch(ids, segments, index, units, text, keys, torch.full_like(keys, epoch))


def depends_on_words(policy: Masking | Policy) -> bool:
    """Whether its masks depend on where words are: drawn twice on a probe, with other words."""
    ids, place = torch.zeros(1, 64, dtype=torch.int64), torch.arange(64)[None]
    text = torch.ones_like(ids, dtype=torch.bool)
    batches = [to_batch(ids, text, ~text, words, 0) for words in (place, place // 4)]
    first, second = (policy.plan(batch, rate_at(policy.rate, 0.5), 0).hidden for batch in batches)
    return not torch.equal(first, second)


def _resolve(policy: Any, counts: Tensor | None, seed: int) -> Any:
    """The policy that a name, a mapping or an object stands for."""
    if isinstance(policy, str):
        policy = {"kind": policy}
    if isinstance(policy, Mapping):
        kind = policy.get("kind")
        if kind not in POLICIES:
            raise ClozeError(f"masking: unknown kind {kind!r}: known are {', '.join(sorted(POLICIES))}")
        try:
            policy = POLICIES[kind].model_validate(policy)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise ClozeError(f"masking.{field}: {first['msg']} (got {first['input']!r})") from error
    if policy.rate == 0.0:
        raise ClozeError(f"{_name(policy)} hides nothing, and this collator makes labels of hidden tokens")
    if counts is not None:
        policy = policy.build(Networks(_no_model, 1, counts.double(), seed))
    if getattr(policy, "learned", False):
        raise ClozeError(
            f"{_name(policy)} needs a model, or counts= of the tokens, which this collator does not have: "
            "train with cloze.pretrain, or take another policy"
        )
    return policy


def _no_model(ids: Tensor) -> Tensor:
    raise ClozeError("a collator has no model: train with cloze.pretrain")


def _name(policy: object) -> str:
    return f"masking {getattr(policy, 'kind', type(policy).__name__)}"
