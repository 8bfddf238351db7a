"""From the four choices to a method, and from several methods to one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from cloze.corruption.clusters import Clusters, ClusterTable, clusters_of
from cloze.corruption.generator import Generator
from cloze.corruption.replace import Replace, Vocabulary
from cloze.corruption.sentinels import Sentinels
from cloze.data.tokenizers import ids_of, sentinels_of
from cloze.errors import ClozeError
from cloze.masking.base import Masking, Networks
from cloze.masking.uniform import Uniform
from cloze.methods.base import Method
from cloze.methods.composite import MAIN, Composite
from cloze.methods.detection import Detection
from cloze.methods.electra import Electra
from cloze.methods.infilling import Infilling
from cloze.methods.objectives import (
    DetectionObjective,
    InfillObjective,
    MlmObjective,
    ObjectiveChoice,
    StructureObjective,
)
from cloze.methods.pair_prediction import PairPrediction
from cloze.methods.token_prediction import TokenPrediction
from cloze.methods.visibility import AllVisible, EncoderDecoderVisible, Visible
from cloze.models.encoder import Encoder
from cloze.models.encoder_decoder import EncoderDecoder
from cloze.models.twins import check_twin

_BLANK = " \t\r\n▁ĠĊĉč"  # white space as texts have it, and as tokenizers write it


@dataclass(frozen=True, slots=True)
class Choices:
    """The four choices of a method."""

    masking: Masking = field(default_factory=Uniform)
    corruption: Replace | Generator | Clusters | Sentinels = field(default_factory=Replace)
    visibility: Visible = field(default_factory=AllVisible)
    objective: ObjectiveChoice = field(default_factory=MlmObjective)


def vocabulary_of(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    """What corruptions need of a tokenizer: random replacements come from all ids but the specials."""
    specials = set(tokenizer.all_special_ids)
    ordinary = sorted(set(tokenizer.get_vocab().values()) - specials)
    end = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
    names = tokenizer.convert_ids_to_tokens(ordinary)
    blank = [i for i, name in zip(ordinary, names, strict=True) if not name.strip(_BLANK)]
    return Vocabulary(
        ids_of(tokenizer),
        tokenizer.mask_token_id,
        torch.tensor(ordinary),
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        torch.tensor(blank, dtype=torch.int64),
        sentinels_of(tokenizer),
        end or 0,
    )


def build_method(
    choices: Choices,
    encoder: Encoder | EncoderDecoder,
    vocabulary: Vocabulary,
    counts: Tensor | None = None,
    seed: int = 0,
    vectors: Tensor | None = None,
) -> Method[Any]:
    """The method of four choices.

    Args:
        encoder: the model that is trained.
        counts: [vocabulary], how often each token occurs in the text; None: all as often.
        seed: of masks, replacements and prefixes.
        vectors: [vocabulary, any], by which tokens are clustered; None: the model's own embeddings.

    Errors: a visibility that the model cannot have, a tokenizer without the special tokens that are needed.
    """
    visibility = choices.visibility
    if isinstance(visibility, EncoderDecoderVisible) != isinstance(encoder, EncoderDecoder):
        is_one = "an" if isinstance(encoder, EncoderDecoder) else "no"
        raise ClozeError(
            f"visibility.kind={visibility.kind}: {type(encoder.model).__name__} is {is_one} encoder-decoder; "
            "model.family=t5 goes with visibility.kind=enc_dec, and nothing else does"
        )
    if visibility.kind != "all" and not encoder.isolates:
        raise ClozeError(
            f"visibility.kind={visibility.kind}: {type(encoder.model).__name__} cannot be run so "
            "that tokens see only what is before them; use model.family=modernbert or bert"
        )
    if isinstance(choices.corruption, Sentinels):
        return Infilling(encoder, choices.masking, choices.corruption, visibility.kind, vocabulary, seed)
    assert isinstance(encoder, Encoder)
    if isinstance(choices.objective, StructureObjective):
        return PairPrediction(encoder, choices.objective, vocabulary, seed)
    assert not isinstance(visibility, EncoderDecoderVisible)
    assert not isinstance(choices.objective, InfillObjective)
    table = cast(nn.Embedding, encoder.model.get_input_embeddings())

    def embed(ids: Tensor) -> Tensor:
        return table.weight.detach()[ids]

    often = torch.ones(encoder.vocabulary.weight.shape[0]) if counts is None else counts
    networks = Networks(embed, table.weight.shape[1], often, seed)
    masking = choices.masking.build(networks)
    objective, corruption = choices.objective, choices.corruption
    if isinstance(objective, DetectionObjective):
        if isinstance(corruption, Generator):
            return Electra(encoder, masking, corruption, objective, vocabulary, seed)
        if isinstance(corruption, Clusters):
            known = table.weight.detach() if vectors is None else vectors
            cluster = clusters_of(known.cpu(), corruption, vocabulary, seed)
            made = ClusterTable(corruption, cluster, vocabulary)
            return Detection(encoder, masking, made, objective, vocabulary, seed)
        return Detection(encoder, masking, corruption, objective, vocabulary, seed)
    assert isinstance(corruption, Replace)
    return TokenPrediction(
        encoder,
        masking,
        corruption,
        visibility,
        objective,
        vocabulary,
        seed,
    )


def compose(
    methods: Mapping[str, Method[Any]], uses: Sequence[tuple[float, Mapping[str, float]]]
) -> Method[Any]:
    """One method from {name: method}: the main one itself where there is no other; `uses` as in `Composite`.

    Errors: one of several wants masked copies of rows; no stock class can read the model afterwards.
    """
    made = methods[MAIN] if len(methods) == 1 else Composite(_checked(methods), uses)
    if made.reading is None:
        raise ClozeError(
            "objective and visibility: no class of transformers reads such a model, so it could not go out; "
            "mlm goes with visibility all, next_token with causal or prefix, in the recipe or in one of its "
            "variants"
        )
    if made.reading == "causal":
        check_twin(next(m.model for m in made.modules() if isinstance(m, Encoder)))
    return made


def _checked(methods: Mapping[str, Method[Any]]) -> Mapping[str, Method[Any]]:
    for name, method in methods.items():
        if method.copies != 1:
            raise ClozeError(
                f"{name}: {method.copies} masked copies of a row in one step cannot be combined with "
                "variants: use masking.same_step=1"
            )
    return methods
