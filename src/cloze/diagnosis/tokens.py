"""Gradients of single masked tokens: how much they differ, and what knowing their size would save."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cloze.data.batch import Batch
from cloze.diagnosis.losses import SCORES, Losses, mask_of
from cloze.diagnosis.opening import Subject
from cloze.diagnosis.result import ProposalWord
from cloze.diagnosis.text import spread
from cloze.variance import Savings, mask_size, per_token_norms, savings

ORDER = ("hidden_gradient", "residual", "product", "loss", "inverse")
TOKENS = 24  # of a sequence
WORDS, OFTEN = 20, 5  # that a proposal wants masked, of those that occur so often


def token_savings(
    subject: Subject,
    losses: Losses,
    parameters: Mapping[str, Tensor],
    chosen: list[int],
    seed: int,
    done: Callable[[], None],
) -> Savings:
    """What scores save, measured on up to `TOKENS` masked tokens of each of the `chosen` sequences.

    Scores: those of the vocabulary loss (`SCORES`), where the method reports them, and from them "product"
    (hidden_gradient · residual) and "inverse" (1 / hidden_gradient, which must raise the variance);
    "proposal", what the run's policy predicts from the clean text.
    """
    norms: list[float] = []
    of: list[int] = []
    scores: dict[str, list[float]] = {}
    for sequence in chosen:
        size = losses.sizes[sequence]
        mask = mask_of(size, mask_size(size, subject.rate), seed, sequence)
        wanted = _wanted(subject, losses.sequences[sequence])
        places = mask.nonzero().flatten()
        for token in places[spread(places.numel(), TOKENS)].tolist():
            total, known = losses.token(sequence, mask, token)
            norms.append(float(per_token_norms(total[None], parameters.values())[0]))
            of.append(sequence)
            if wanted is not None:
                known["proposal"] = float(wanted[token])
            for name, value in known.items():
                scores.setdefault(name, []).append(value)
            done()
    columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in scores.items()}
    if all(name in columns for name in SCORES):
        gradient, residual = columns["hidden_gradient"], columns["residual"]
        columns |= {"product": gradient * residual, "inverse": 1.0 / gradient.clamp(min=1e-12)}
    return savings(torch.tensor(norms, dtype=torch.float64), columns, torch.tensor(of))


def proposal_words(subject: Subject) -> list[ProposalWord]:
    """Tokens by the mean probability with which a draw in proportion to the policy's scores masks them."""
    ids, inclusion = [], []
    for batch in subject.sequences:
        wanted = _wanted(subject, batch)
        if wanted is None:
            return []
        ids.append(batch.ids[batch.maskable].cpu())
        inclusion.append((subject.rate * wanted / wanted.mean().clamp(min=1e-300)).clamp(max=1.0))
    kinds, inverse, count = torch.cat(ids).unique(return_inverse=True, return_counts=True)
    total = torch.zeros(kinds.numel(), dtype=torch.float64).index_add_(0, inverse, torch.cat(inclusion))
    mean = (total / count).where(count >= min(OFTEN, int(count.max())), -1.0)
    best = [i for i in mean.argsort(descending=True, stable=True)[:WORDS].tolist() if mean[i] >= 0]
    tokenizer = subject.corpus.tokenizer
    return [ProposalWord(str(tokenizer.decode([int(kinds[i])])), round(float(mean[i]), 4)) for i in best]


@torch.no_grad()
def _wanted(subject: Subject, batch: Batch) -> Tensor | None:
    """[maskable tokens] how much the run's policy wants each masked; None: it has no opinion."""
    scores = subject.method.scores(batch)
    return None if scores is None else scores[batch.maskable].double().cpu()
