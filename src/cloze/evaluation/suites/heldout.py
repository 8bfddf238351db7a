"""Suite `heldout`: how well a language model predicts text that it was not trained on."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cloze.assembly import method_of
from cloze.data.corpus import Corpus
from cloze.data.loader import Loader
from cloze.errors import ClozeError
from cloze.evaluation.heldout import HeldOutSet
from cloze.evaluation.pseudo_likelihood import Tokens, pseudo_log_likelihoods
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites.base import Options, Scores, Suite
from cloze.methods.build import Choices, build_method, vocabulary_of
from cloze.methods.token_prediction import TokenPrediction
from cloze.models.build import load_masked_lm
from cloze.models.encoder import isolate
from cloze.opening import Opening, choose
from cloze.training.settings import Evaluation

OWN = "held-out text"  # the task's name where the text is the run's own
PSEUDO_TOKENS = 4096  # of text, each of them masked once in its sample
SHORTEST = 16  # tokens of a row, special tokens included


def run(subject: Subject, options: Options) -> Scores:
    """Loss and accuracy on fixed uniform masks, and pseudo-perplexity; bits per character of both.

    On a run's own held-out text, with the settings of its `evaluation`, so that `loss` is that of its
    summary.json; on other text with the defaults of recipes, the same for all models. A run whose method
    predicts something else than masked tokens (`Method.measures`) is measured on that, and has no
    pseudo-perplexity.

    Metrics:
        loss, accuracy: of the masked tokens (`HeldOutSet`), in nats.
        bits_per_character: loss in bits · tokens / characters of the text.
        pseudo_perplexity: exp of the mean of −log p(token | all others), tokens masked one by one (PPPL,
            Salazar et al. 2020, 1910.14659).
        pseudo_bits_per_character, pseudo_bits_per_character_word_l2r: that mean, and that of PLL-word-l2r, in
            bits · tokens / characters. The last one is the one to compare tokenizers by.

    Errors: no text, a length that the model does not take.
    """
    if len(options.columns) > 1:
        raise ClozeError(f"--columns {','.join(options.columns)}: heldout reads one column of text")
    opening = choose(subject.name, options.data, next(iter(options.columns), None))
    method = _method(subject, opening)
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
    if method.reading == "masked" and method.measures == "masked tokens":
        scores |= _pseudo(method, corpus, length, bits, options)
    task = OWN if opening.own else Path(opening.text).name
    return {task: {metric: [value] for metric, value in scores.items()}}


def _method(subject: Subject, opening: Opening) -> TokenPrediction:
    """The main method of a run, or plain masked language modelling."""
    vocabulary = vocabulary_of(subject.tokenizer)
    if not opening.is_run:
        return build_method(Choices(), subject.masked_lm, vocabulary).eval()
    encoder = isolate(load_masked_lm(subject.path, causal=True))
    method = method_of(opening.recipe, encoder, vocabulary).main
    assert isinstance(method, TokenPrediction)
    return method.to(subject.device).eval()


def _pseudo(
    method: TokenPrediction, corpus: Corpus, length: int, bits: float, options: Options
) -> dict[str, float]:
    """The metrics of masking one by one; `bits`: bits per character of one nat a token."""
    encoder = method.encoder
    longest = encoder.longest()
    samples = _samples(corpus.held_out_loader(corpus.layout(min(length, longest), longest, alone=True)))
    tell = partial(options.meter, "masking one by one")
    pseudo = pseudo_log_likelihoods(encoder, method.vocabulary.mask, samples, tell)
    count = sum(int((sample.units >= 0).sum()) for sample in samples)
    plain, word_l2r = (-float(sums.sum()) / count for sums in (pseudo.plain, pseudo.word_l2r))
    return {
        "pseudo_perplexity": math.exp(plain),
        "pseudo_bits_per_character": bits * plain,
        "pseudo_bits_per_character_word_l2r": bits * word_l2r,
    }


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
)
