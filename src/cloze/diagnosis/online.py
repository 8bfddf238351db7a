"""The instrument during training: a small sample, a few fixed points, and at most 2% of its work.

The points are shares of the run's steps and the sample's size follows from its budget, never from a clock,
so that a resumed run measures the same, and a policy that decides by it decides the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from cloze.data.batch import Batch
from cloze.diagnosis.losses import SCORES, Losses, mask_of
from cloze.diagnosis.parameters import counted
from cloze.masking.base import Evidence
from cloze.methods.base import Method
from cloze.models.encoder import Encoder
from cloze.models.encoder_decoder import EncoderDecoder
from cloze.variance import Decomposition, Estimate, Savings, decompose, mask_size, savings

POINTS = (0.1, 0.3, 0.6, 1.0)
"""Shares of the run after which it is measured."""
MASKS = 4
SHARE = 0.02  # of the run's work, at most, where a row alone costs `SINGLE`
SINGLE = 3.0  # a row alone costs about so much more than in a batch (2.5 on two CPU cores)
FEWEST, MOST = 6, 64  # rows
LARGEST = 50_000_000  # parameters that are looked at; of a larger model a half, a third, … of its tensors


@dataclass(frozen=True, slots=True)
class Online:
    """What one point of a run showed.

    Attributes:
        rows: samples of training text that were measured, with `MASKS` masks each. rate: of the masks.
        terms: the decomposition of the gradient's variance, of one sample.
        scores: spread of the gradients at the final hidden states within samples (`cv`), what knowing them
            would save at best (`oracle`), and what the run's own proposal saves of that (`proposal`). None:
            every token is predicted, so that none can be chosen.
    """

    rows: int
    rate: float
    terms: Decomposition
    scores: Savings | None

    def record(self) -> dict[str, float | int]:
        """For the run's log: numbers that are known, with `_low` and `_high` for the ends of intervals."""
        named = {
            "data_term": self.terms.data,
            "mask_term": self.terms.mask,
            "mask_share": self.terms.share,
            "break_even": self.terms.break_even,
            "noise_scale": self.terms.noise_scale,
        }
        if self.scores is not None:
            named |= {
                "score_cv": self.scores.cv,
                "score_saving": self.scores.oracle,
                "proposal_saving": self.scores.scores.get("proposal"),
            }
        found: dict[str, float | int] = {"rows": self.rows, "rate": self.rate}
        for name, estimate in named.items():
            for end, value in (estimate or Estimate(None, None, None)).as_dict().items():
                if value is not None:
                    found[name if end == "value" else f"{name}_{end}"] = value
        return found


def rows_to_measure(steps: int, tokens: int, length: int) -> int:
    """Rows at each point, for a run of so many steps of so many tokens; 0: the run is too short for it."""
    allowed = SHARE * steps * tokens / (len(POINTS) * MASKS * length * SINGLE)
    return 0 if allowed < FEWEST else min(MOST, int(allowed))


def points(steps: int) -> set[int]:
    """Steps after which it is measured."""
    return {max(1, round(share * steps)) for share in POINTS}


def measure(method: Method[Any], rows: list[Batch], rate: float, seed: int) -> Online | None:
    """Measure the longest sample of each row (batches of one row); None: too little to mask."""
    rows = [longest_sample(row) for row in rows]
    rows = [row for row in rows if (n := int(row.maskable.sum())) >= 8 and mask_size(n, rate) >= 2]
    if len(rows) < 2:
        return None
    training, norms = method.training, method.norms
    method.eval()
    method.norms = True
    try:
        losses = Losses(method, rows)
        terms = decompose(
            losses, losses.sizes, rate, _some_parameters(method), masks=MASKS, seed=seed, memory=2**30
        )
        scores = None if method.everywhere else _scores(losses, method, rate, seed)
    finally:
        method.norms = norms
        method.train(training)
    return Online(len(rows), rate, terms, scores)


def longest_sample(row: Batch) -> Batch:
    """A row's longest sample as a batch of its own, without padding."""
    segments = row.segments[0]
    sample = int(segments[segments >= 0].mode().values)
    keep = segments == sample
    columns = {name: getattr(row, name)[:, keep] for name in ("ids", "index", "units", "maskable")}
    return replace(
        row,
        **columns,
        segments=torch.zeros_like(columns["ids"]),
        keys=row.keys[sample : sample + 1],
        visits=row.visits[sample : sample + 1],
        dense=True,
    )


def evidence(found: Online | None, encoder: Encoder | EncoderDecoder, visits: float, rate: float) -> Evidence:
    """The same for a policy that decides by it."""
    body, head = counted(encoder.model)
    if found is None:
        return Evidence(visits, rate, body, head)
    t = found.terms
    high = None if t.break_even is None else t.break_even.high
    own = None if found.scores is None else found.scores.scores.get("proposal")
    saving = None if own is None else own.low
    return Evidence(visits, found.rate, body, head, t.data.value, t.mask.value, high, saving)


def _some_parameters(method: Method[Any]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {n: p for n, p in method.named_parameters() if p.requires_grad}
    every = -(-sum(p.numel() for p in named.values()) // LARGEST)
    if every == 1:
        return named
    # In an order that has nothing to do with layers, or every third tensor could always be of one kind.
    names = sorted(named, key=lambda name: blake2b(name.encode(), digest_size=8).digest())
    return {name: named[name] for name in names[::every]}


def _scores(losses: Losses, method: Method[Any], rate: float, seed: int) -> Savings:
    norms: list[Tensor] = []
    wanted: list[Tensor] = []
    of: list[Tensor] = []
    for i, row in enumerate(losses.sequences):
        size = losses.sizes[i]
        work = losses.work(i, mask_of(size, mask_size(size, rate), seed, i), 0)
        feedback = method(work).feedback
        norms.append(feedback[SCORES[0]].detach().double().cpu())
        of.append(torch.full((norms[-1].numel(),), i))
        opinion = method.scores(row)
        if opinion is not None:
            wanted.append(opinion.flatten()[work.places].double().cpu())
    known = {"proposal": torch.cat(wanted)} if wanted else {}
    return savings(torch.cat(norms), known, torch.cat(of))
