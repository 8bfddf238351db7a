"""Word similarity: do the cosines of word vectors order pairs of words as people do?"""

from __future__ import annotations

from cloze.evaluation.correlation import spearman
from cloze.evaluation.embedding import Embedder, cosines
from cloze.evaluation.pairs import read_scored
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites.base import Options, Scores, Suite

COLUMNS = (("word1", "word2", "score"),)


def _run(subject: Subject, options: Options) -> Scores:
    """A word's vector is the mean over its own tokens: of the states where the word is the whole text, and of
    the input embeddings. It gets a space before it, as in running text, which a byte-level tokenizer tells
    from a beginning."""
    tasks = read_scored(options, "words", COLUMNS)
    total = 2 * sum(len({*pairs.first, *pairs.second}) for pairs in tasks.values())
    embedder = Embedder(subject, options.length, lambda done: options.meter("words", done, total))
    scores: Scores = {}
    for name, pairs in tasks.items():
        words = [f" {word.strip()}" for word in (*pairs.first, *pairs.second)]
        half = len(pairs.first)
        scores[name] = {}
        for metric, inputs in (("spearman", False), ("embeddings", True)):
            vectors = embedder.encode(words, specials=False, inputs=inputs)
            scores[name][metric] = [spearman(cosines(vectors[:half], vectors[half:]), pairs.value)]
    return scores


WORDS = Suite(
    name="words",
    about="word similarity: Spearman of the cosines of word vectors",
    run=_run,
    main="spearman",
)
