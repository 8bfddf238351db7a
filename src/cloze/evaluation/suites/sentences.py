"""Sentence similarity: do the cosines of sentence vectors order pairs as people do?"""

from __future__ import annotations

from cloze.evaluation.correlation import spearman
from cloze.evaluation.embedding import Embedder, cosines
from cloze.evaluation.pairs import read_scored
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites.base import Options, Scores, Suite

COLUMNS = (
    ("sentence1", "sentence2", "score"),
    ("sentence_A", "sentence_B", "relatedness_score"),  # SICK
    ("text1", "text2", "score"),
)


def _run(subject: Subject, options: Options) -> Scores:
    tasks = read_scored(options, "sentences", COLUMNS, years=True)
    total = sum(len({*pairs.first, *pairs.second}) for pairs in tasks.values())
    embedder = Embedder(subject, options.length, lambda done: options.meter("sentences", done, total))
    scores: Scores = {}
    for name, pairs in tasks.items():
        vectors = embedder.encode([*pairs.first, *pairs.second])
        half = len(pairs.first)
        scores[name] = {"spearman": [spearman(cosines(vectors[:half], vectors[half:]), pairs.value)]}
    return scores


SENTENCES = Suite(
    name="sentences",
    about="sentence similarity (STS-B, SICK, STS 12-16): Spearman of the cosines of mean-pooled vectors",
    run=_run,
    main="spearman",
)
