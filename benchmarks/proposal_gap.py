"""How much of what a proposal could save does a trained one save, on text it has not seen?

    python benchmarks/proposal_gap.py RUN --data TEXT --json benchmarks/results/proposal_gap.json

RUN was trained with `mapnet`. For tokens of the text, under one mask of their sequence, the norm of the
gradient of each token's loss is measured; then what drawing by these would save of its second moment:
  best possible   the norm itself
  this mask       the proposal's score, known exactly under this one mask; no proposal can know it, for it
                  has to choose before the text is masked
  any mask        the score's root mean square over other masks of the same token: what the text and the
                  model determine (a lower bound, for it comes from a limited number of masks)
  learned         what the run's network predicts from the clean text
  inverse         1 / learned, a control that must raise the variance
95% intervals from leaving out one sequence at a time.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cloze.data.batch import Batch
from cloze.diagnosis.losses import Losses, mask_of
from cloze.diagnosis.opening import Subject, open_subject
from cloze.diagnosis.parameters import select
from cloze.masking.uniform import Uniform
from cloze.methods.base import Method
from cloze.report.environment import environment
from cloze.variance import jackknife, mask_size, per_token_norms, savings

SCORE = "hidden_gradient"


def over_masks(method: Method, batch: Batch, rate: float, masks: int) -> Tensor:
    """[length] root mean square of the score of each token over so many masks of the sequence."""
    total, seen = torch.zeros(2, batch.ids.numel(), dtype=torch.float64)
    for start in range(0, masks, 16):
        many = replace(batch, visits=torch.full_like(batch.visits, 1000 + start)).repeat(16)
        many = replace(many, visits=torch.arange(1000 + start, 1016 + start))
        work = method.work(many, Uniform().plan(many, rate, 5))
        place = work.places % batch.ids.numel()
        total.index_add_(0, place, method(work).feedback[SCORE].double().square())
        seen.index_add_(0, place, torch.ones_like(place, dtype=torch.float64))
    everywhere = total.sum() / seen.sum()
    return ((total + everywhere) / (seen + 1.0)).sqrt()  # drawn to the mean where it was seen rarely


def measure(subject: Subject, masks: int, tokens: int, parameters: str) -> dict[str, Tensor]:
    """Norms and scores of single tokens, [N] each."""
    method = subject.method
    method.norms = True
    losses = Losses(method, subject.sequences)
    leaves = list(select(subject.encoder.model, parameters).values())
    found: dict[str, list[float]] = {}
    for i, batch in enumerate(subject.sequences):
        size = losses.sizes[i]
        mask = mask_of(size, mask_size(size, subject.rate), 7, i)
        at = batch.maskable.flatten().nonzero().squeeze(1)
        learned = method.scores(batch)
        if learned is None:
            raise SystemExit(f"{subject.model}: its policy has no proposal; train with masking.kind=mapnet")
        known = over_masks(method, batch, subject.rate, masks)
        for token in mask.nonzero().squeeze(1).tolist()[:tokens]:
            loss, scores = losses.token(i, mask, token)
            values = {
                "best possible": float(per_token_norms(loss[None], leaves)[0]),
                "this mask": scores[SCORE],
                "any mask": float(known[at[token]]),
                "learned": float(learned.flatten()[at[token]]),
                "sequence": float(i),
            }
            for name, value in values.items():
                found.setdefault(name, []).append(value)
    columns = {name: torch.tensor(v, dtype=torch.float64) for name, v in found.items()}
    return columns | {"inverse": 1.0 / columns["learned"]}


def share(columns: dict[str, Tensor], part: str, whole: str) -> dict[str, float | None]:
    """Saving of one score over that of another, with its interval."""
    of = columns["sequence"].long()

    def value(keep: Tensor) -> float:
        scores = {name: columns[name][keep] for name in (part, whole)}
        found = savings(columns["best possible"][keep], scores, of[keep]).scores
        return float(found[part].value or 0.0) / float(found[whole].value or 1.0)

    left = [value(of != i) for i in of.unique().tolist()]
    return jackknife(value(torch.ones_like(of, dtype=torch.bool)), left).as_dict()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=12, help="of each sequence")
    parser.add_argument("--masks", type=int, default=160)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    subject = open_subject(arguments.run, arguments.data, count=arguments.sequences, length=None, rate=None)
    results = {}
    for parameters in ("all", "body"):
        columns = measure(subject, arguments.masks, arguments.tokens, parameters)
        scores = {n: columns[n] for n in ("best possible", "this mask", "any mask", "learned", "inverse")}
        found = savings(columns["best possible"], scores, columns["sequence"].long())
        lines = {name: estimate.as_dict() for name, estimate in found.scores.items()}
        lines |= {"learned / any mask": share(columns, "learned", "any mask"), "cv": found.cv.as_dict()}
        results[parameters] = lines
        print(f"saving of the second moment, gradient of {parameters} parameters")
        for name, e in lines.items():
            print(f"  {name:<20}{e['value']:8.3f} [{e['low']:.3f}, {e['high']:.3f}]", flush=True)
    if arguments.json:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("json", "run", "data")}
        content = {"settings": settings | {"rate": subject.rate}, "savings": results}
        where = environment(torch.device("cpu"), "fp32")
        arguments.json.write_text(json.dumps(content | where, indent=1) + "\n")


if __name__ == "__main__":
    main()
