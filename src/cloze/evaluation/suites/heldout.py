"""Suite `heldout`: how well a language model predicts text that it was not trained on."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cloze.assembly import method_of
from cloze.data.loader import Loader
from cloze.errors import ClozeError
from cloze.evaluation.heldout import HeldOutSet
from cloze.evaluation.likelihood import log_likelihoods, prefix_of
from cloze.evaluation.pseudo_likelihood import Tokens, pseudo_log_likelihoods
from cloze.evaluation.readings import readable
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites.base import Options, Scores, Suite
from cloze.masking.nothing import Nothing
from cloze.methods.base import Readout
from cloze.methods.build import Choices, build_method, vocabulary_of
from cloze.methods.infilling import Infilling
from cloze.methods.objectives import NextTokenObjective
from cloze.methods.token_prediction import TokenPrediction
from cloze.methods.visibility import CausalVisible
from cloze.models.encoder_decoder import EncoderDecoder
from cloze.opening import Opening, choose
from cloze.training.settings import Evaluation

OWN = "held-out text"  # the task's name where the text is the run's own
PSEUDO_TOKENS = 4096  # of text, each of them masked once in its sample
NEXT = Choices(Nothing(), visibility=CausalVisible(), objective=NextTokenObjective())
SHORTEST = 16  # tokens of a row, special tokens included


def run(subject: Subject, options: Options) -> Scores:
    """Loss and accuracy on fixed uniform masks, and the perplexity of each reading, with bits per character.

    On a run's own held-out text, with the settings of its `evaluation`, so that `loss` is that of its
    summary.json; on other text with the defaults of recipes, the same for all models. A run whose method
    predicts something else than masked tokens (`Method.measures`) is measured on that. Perplexities are of
    the readings that the model has (`Method.readings`), or of the one that `options.reading` names.

    Metrics:
        loss, accuracy: of the masked tokens (`HeldOutSet`) or what else the method predicts, in nats.
        bits_per_character: loss in bits · tokens / characters of the text.
        pseudo_perplexity: exp of the mean of −log p(token | all others), tokens masked one by one (PPPL,
            Salazar et al. 2020, 1910.14659).
        pseudo_bits_per_character, pseudo_bits_per_character_word_l2r: that mean, and that of PLL-word-l2r, in
            bits · tokens / characters. The last one is the one to compare tokenizers by.
        perplexity: exp of the mean of −log p(token | tokens before it). causal_bits_per_character: that mean.
        prefix_perplexity: the same for the second half of each sample, the first being seen from both sides.

    Errors: no text, a length that the model does not take.
    """
    if len(options.columns) > 1:
        raise ClozeError(f"--columns {','.join(options.columns)}: heldout reads one column of text")
    opening = choose(subject.name, options.data, next(iter(options.columns), None))
    method, readings = _method(subject, opening, options.reading)
    encoder = method.encoder
    settings = opening.recipe.evaluation if opening.own else Evaluation()
    longest, alone = encoder.longest(), not encoder.isolates
    if options.length is not None and not SHORTEST <= options.length <= longest:
        raise ClozeError(f"--length {options.length}: the model takes {SHORTEST} to {longest:,} tokens")
    length = options.length or settings.length
    corpus = opening.corpus()
    rows = corpus.layout(min(length, longest) if alone else length, longest, alone)
    held_out = HeldOutSet(corpus.held_out_loader(rows), settings.rate, settings.tokens)
    options.meter("masking at random", 0, 1)
    found = held_out.evaluate(method)
    characters, tokens = corpus.held_out_size()
    bits = tokens / characters / math.log(2)
    scores = {"loss": found.loss, "accuracy": found.accuracy, "bits_per_character": bits * found.loss}
    samples = _samples(corpus.held_out_loader(corpus.layout(min(length, longest), longest, alone=True)))
    for reading, shift in readings.items():
        assert isinstance(method, TokenPrediction)
        if reading == "masked":
            scores |= _pseudo(method, samples, shift, bits, options)
        elif reading in ("causal", "prefix"):
            scores |= _left_to_right(method, samples, reading, bits, options)
    task = OWN if opening.own else Path(opening.text).name
    return {task: {metric: [value] for metric, value in scores.items()}}


def _method(
    subject: Subject, opening: Opening, reading: str | None
) -> tuple[TokenPrediction | Infilling, dict[Readout, int]]:
    """The main method of a run, or plain language modelling of the model's kind; and how it is read."""
    model = readable(subject)
    vocabulary = vocabulary_of(subject.tokenizer)
    if isinstance(model.model, EncoderDecoder):
        method: Any = method_of(opening.recipe, model.model, vocabulary).main
        return method.to(subject.device).eval(), {}
    readings = model.chosen(reading)
    if opening.is_run:
        method = method_of(opening.recipe, model.encoder, vocabulary).main
    else:
        method = build_method(NEXT if "causal" in readings else Choices(), model.encoder, vocabulary)
    assert isinstance(method, TokenPrediction | Infilling)
    return method.to(subject.device).eval(), readings


def _pseudo(
    method: TokenPrediction, samples: list[Tokens], shift: int, bits: float, options: Options
) -> dict[str, float]:
    """The metrics of masking one by one; `bits`: bits per character of one nat a token."""
    tell = partial(options.meter, "masking one by one")
    pseudo = pseudo_log_likelihoods(method.encoder, method.vocabulary.mask, samples, tell, shift)
    count = sum(int((sample.units[shift:] >= 0).sum()) for sample in samples)
    plain, word_l2r = (-float(sums.sum()) / count for sums in (pseudo.plain, pseudo.word_l2r))
    return {
        "pseudo_perplexity": math.exp(plain),
        "pseudo_bits_per_character": bits * plain,
        "pseudo_bits_per_character_word_l2r": bits * word_l2r,
    }


def _left_to_right(
    method: TokenPrediction, samples: list[Tokens], reading: Readout, bits: float, options: Options
) -> dict[str, float]:
    """The metrics of reading from left to right, behind a prefix of half a sample or without one."""
    behind = reading == "prefix"
    tell = partial(options.meter, f"reading from left to right ({reading})")
    losses = []
    for sample, log_p in zip(samples, log_likelihoods(method.encoder, samples, behind, tell), strict=True):
        place = np.flatnonzero(sample.units >= 0)
        losses.append(-log_p[torch.from_numpy(place >= max(1, prefix_of(sample) if behind else 0))])
    mean = float(torch.cat(losses).mean())
    if behind:
        return {"prefix_perplexity": math.exp(mean)}
    return {"perplexity": math.exp(mean), "causal_bits_per_character": bits * mean}


def _samples(loader: Loader) -> list[Tokens]:
    """About `PSEUDO_TOKENS` tokens in samples that are taken evenly over a text of one sample a row."""
    rows = sum(len(source) for source in loader.sources)
    mean = sum(source.tokens for source in loader.sources) / max(1, rows)
    count = min(rows, math.ceil(PSEUDO_TOKENS / max(1.0, mean)))
    places = np.linspace(0, rows, count, endpoint=False).astype(int).tolist()
    found = []
    for place in loader.rows_at(places):
        batch = loader.assemble([place])
        inside = batch.segments >= 0
        units = torch.where(batch.maskable, batch.units, -1)
        found.append(Tokens(batch.ids[inside].numpy(), units[inside].numpy()))
    return found


SUITE = Suite(
    "heldout",
    "loss, bits per character and perplexities of text",
    run,
    "loss",
    brings=True,
    common=False,
    reads=True,
)
