"""Retrieval: does a query's vector lie nearest to that of its document, among all documents of a file?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from cloze.errors import ClozeError
from cloze.evaluation.embedding import Embedder
from cloze.evaluation.pairs import FEWEST, Pairs, read_pairs, task_files
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites.base import Options, Scores, Suite

COLUMNS = (
    ("query", "document"),
    ("query", "doc"),
    ("query", "code"),
    ("question", "answer"),
    ("docstring", "code"),
    ("doc", "code"),  # CoSQA
)
SIMILARITIES = 2**25  # at once: 128 MiB


def rank_of_right(queries: np.ndarray, documents: np.ndarray, right: np.ndarray, device: str) -> np.ndarray:
    """[Q] int64, the place of each query's document by cosine, 1 for the first; a tie counts against it.

    Args:
        queries: [Q, width] float32. documents: [D, width] float32.
        right: [Q] int64, the index of each query's document.
        device: where it is computed.
    """
    wanted = torch.from_numpy(right).to(device)[:, None]
    q, d = (normalize(torch.from_numpy(x).to(device), dim=-1) for x in (queries, documents))
    found = []
    for part, own in zip(*(x.split(max(1, SIMILARITIES // len(d))) for x in (q, wanted)), strict=True):
        similar = part @ d.T
        found.append((similar >= similar.gather(1, own)).sum(1).cpu())
    return torch.cat(found).numpy()


def _run(subject: Subject, options: Options) -> Scores:
    tasks = {}
    for name, files in task_files(options, "retrieve").items():
        tasks[name] = _checked(files[0], read_pairs(files, options.columns, COLUMNS, label="label"))
    asked = {name: np.flatnonzero(pairs.value) for name, pairs in tasks.items()}
    total = sum(len({p.first[i] for i in asked[name]}) + len({*p.second}) for name, p in tasks.items())
    embedder = Embedder(subject, options.length, lambda done: options.meter("retrieve", done, total))
    scores: Scores = {}
    for name, pairs in tasks.items():
        candidates = {text: i for i, text in enumerate(dict.fromkeys(pairs.second))}
        right = np.array([candidates[pairs.second[i]] for i in asked[name]])
        queries = embedder.encode([pairs.first[i] for i in asked[name]])
        place = rank_of_right(queries, embedder.encode(list(candidates)), right, str(subject.device))
        scores[name] = {
            "mrr": [float((1 / place).mean())],
            "recall@1": [float((place <= 1).mean())],
            "recall@10": [float((place <= 10).mean())],
        }
    return scores


def _checked(file: Path, pairs: Pairs) -> Pairs:
    wrong = next((value for value in pairs.value if value not in (0, 1)), None)
    if wrong is not None:
        raise ClozeError(
            f"{file}: the label {wrong:g} is not 0 or 1; --columns QUERY,DOCUMENT leaves labels out"
        )
    if (count := int(pairs.value.sum())) < FEWEST:
        raise ClozeError(f"{file}: only {count} queries with a document; at least {FEWEST} are needed")
    if len(set(pairs.second)) < 2:
        raise ClozeError(f"{file}: all documents are the same, so there is nothing to search")
    return pairs


RETRIEVE = Suite(
    name="retrieve",
    about="text or code search: rank of a query's document among all documents of the file",
    run=_run,
    main="mrr",
)
