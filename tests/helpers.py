"""Small batches, models and tokenizers, and the checks that several tests share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    EuroBertConfig,
    EuroBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    MPNetConfig,
    MPNetForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from cloze.corruption.replace import Vocabulary
from cloze.data.batch import Batch
from cloze.masking.base import Networks
from cloze.models.families import MosaicBertConfig, MosaicBertForMaskedLM

PAD, UNK, CLS, SEP, MASK, FIRST = 0, 1, 2, 3, 4, 5  # FIRST: the first ordinary token
SIZE = 96


@dataclass(frozen=True)
class Sample:
    """Text tokens of one sample; specials are added by `pack`."""

    key: int
    ids: tuple[int, ...]
    units: tuple[int, ...]
    visit: int = 0
    fixed: frozenset[int] = field(default_factory=frozenset)
    """Token indices that are not maskable although they are text."""


def make_samples(sizes: Sequence[int], seed: int = 0, size: int = SIZE) -> list[Sample]:
    """Samples of the given numbers of tokens, in words of one to three tokens."""
    draw = np.random.default_rng(seed)
    samples = []
    for i, n in enumerate(sizes):
        words = np.repeat(np.arange(n), draw.integers(1, 4, n))[:n] if n else np.zeros(0, int)
        ids = tuple(draw.integers(FIRST, size, n).tolist())
        samples.append(Sample(1000 * seed + 17 * i + 3, ids, tuple(words.tolist())))
    return samples


def pack(rows: Sequence[Sequence[Sample]], length: int) -> Batch:
    """Rows of samples, each between CLS and SEP."""
    shape = len(rows), length
    ids, segments = torch.full(shape, PAD), torch.full(shape, -1)
    index, units, maskable = segments.clone(), segments.clone(), torch.zeros(shape, dtype=torch.bool)
    samples = [sample for row in rows for sample in row]
    number = 0
    for r, row in enumerate(rows):
        at = 0
        for sample in row:
            n = len(sample.ids)
            assert at + n + 2 <= length
            text = slice(at + 1, at + 1 + n)
            ids[r, at], ids[r, at + 1 + n] = CLS, SEP
            ids[r, text], units[r, text] = torch.tensor(sample.ids).long(), torch.tensor(sample.units).long()
            index[r, text] = torch.arange(n)
            maskable[r, text] = torch.tensor([i not in sample.fixed for i in range(n)], dtype=torch.bool)
            segments[r, at : at + n + 2] = number
            number, at = number + 1, at + n + 2
    keys, visits = (torch.tensor([getattr(s, name) for s in samples]).long() for name in ("key", "visit"))
    return Batch(ids, segments, index, units, maskable, keys, visits)


def tile(batch: Batch, visits: int) -> Batch:
    """The batch at `visits` visits in a row, [visits · rows, length]: for frequencies."""
    samples = batch.samples
    shift = torch.arange(visits).repeat_interleave(batch.ids.shape[0])[:, None] * samples
    segments = batch.segments.repeat(visits, 1)
    return replace(
        batch,
        **{name: getattr(batch, name).repeat(visits, 1) for name in ("ids", "index", "units", "maskable")},
        segments=torch.where(segments >= 0, segments + shift, -1),
        keys=batch.keys.repeat(visits),
        visits=torch.arange(visits).repeat_interleave(samples),
    )


def rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch, in the given order, with their samples numbered anew."""
    segments = batch.segments[list(rows)]
    old = list(dict.fromkeys(segments[segments >= 0].tolist()))
    new = torch.full((batch.samples + 1,), -1)
    new[old] = torch.arange(len(old))
    tensors = {n: getattr(batch, n)[list(rows)] for n in ("ids", "index", "units", "maskable")}
    return Batch(
        segments=new[segments], keys=batch.keys[old].clone(), visits=batch.visits[old].clone(), **tensors
    )


def by_sample(batch: Batch, values: Tensor) -> dict[int, list[Any]]:
    """{sample key: values at its text tokens, in order}, from [rows, length]."""
    found = {}
    for number, key in enumerate(batch.keys.tolist()):
        found[key] = values[(batch.segments == number) & (batch.index >= 0)].tolist()
    return found


def vocabulary(size: int = SIZE) -> Vocabulary:
    """All ids from FIRST on are ordinary."""
    return Vocabulary(size, MASK, torch.arange(FIRST, size))


def networks(size: int = SIZE, width: int = 16) -> Networks:
    """What a policy that learns gets: random embeddings, and counts that fall with the token's id."""
    table = torch.randn(size, width, generator=torch.Generator().manual_seed(0))
    return Networks(lambda ids: table[ids], width, 1000.0 / (1.0 + torch.arange(size).double()), seed=0)


def word_tokenizer(size: int = SIZE) -> PreTrainedTokenizerFast:
    """Words w5, w6, …, one token each, with the specials of this module."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(FIRST, size))]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece that knows the letters a to h, alone and inside of words; 64 tokens with unused ones."""
    letters = "abcdefgh"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    names += [f"[unused{i}]" for i in range(64 - len(names))]
    inner = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), names, strict=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, **{f"{name}_token": token for name, token in special.items()}
    )


_FAMILIES: dict[str, tuple[type, type[PreTrainedModel], dict[str, Any]]] = {
    "bert": (BertConfig, BertForMaskedLM, {}),
    "roberta": (RobertaConfig, RobertaForMaskedLM, {"pad_token_id": 1}),
    "roberta-prelayernorm": (
        RobertaPreLayerNormConfig,
        RobertaPreLayerNormForMaskedLM,
        {"pad_token_id": 1},
    ),
    "electra": (ElectraConfig, ElectraForMaskedLM, {"embedding_size": 16}),
    # 3 layers: one global, two local with a window of 64 tokens.
    "modernbert": (ModernBertConfig, ModernBertForMaskedLM, {"local_attention": 64, "num_hidden_layers": 3}),
    "eurobert": (EuroBertConfig, EuroBertForMaskedLM, {"num_key_value_heads": 1}),
    "deberta-v2": (
        DebertaV2Config,
        DebertaV2ForMaskedLM,
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    ),
    "mosaicbert": (MosaicBertConfig, MosaicBertForMaskedLM, {"hidden_dropout_prob": 0.0}),
    "mpnet": (MPNetConfig, MPNetForMaskedLM, {"pad_token_id": 1}),
}


def tiny_model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """An untrained model of a family, two layers × 32, in evaluation mode; weights large enough to matter."""
    config, model, special = _FAMILIES[family]
    base = {
        "vocab_size": SIZE,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 322,
        "pad_token_id": PAD,
        "bos_token_id": CLS,
        "eos_token_id": SEP,
        "cls_token_id": CLS,
        "sep_token_id": SEP,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    made = model(config(**(base | special | changes))).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
    return made


def tiny_t5(seed: int = 0, size: int = SIZE) -> PreTrainedModel:
    """An untrained T5 of two layers × 32 in each stack, in evaluation mode; large weights."""
    torch.manual_seed(seed)
    special: dict[str, Any] = {"pad_token_id": PAD, "eos_token_id": SEP, "decoder_start_token_id": PAD}
    shape: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    more: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "n_positions": 64}
    return T5ForConditionalGeneration(T5Config(vocab_size=size, **shape, **special, **more)).eval()


class _Recorder(TorchDispatchMode):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.rows = width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor) and x.dim() > 1 and x.shape[-1] == self.width:
                self.rows = max(self.rows, x.numel() // self.width)
        return out


@contextmanager
def widest(vocabulary_size: int) -> Iterator[_Recorder]:
    """Records, as `.rows`, the most rows of any tensor that is as wide as the vocabulary."""
    recorder = _Recorder(vocabulary_size)
    with recorder:
        yield recorder


def chi_square(counts: Tensor, expected: Tensor | float | None = None) -> float:
    """Pearson's statistic in standard deviations above its mean: above 6 is impossible by chance."""
    counts = counts.double().flatten()
    want = counts.mean() if expected is None else expected
    freedom = counts.numel() - 1
    return float((((counts - want) ** 2 / want).sum() - freedom) / (2 * freedom) ** 0.5)
