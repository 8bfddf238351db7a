"""The mask term of the gradient's variance under each policy, relative to uniform masking.

    python benchmarks/mask_term.py RUN --data TEXT --json benchmarks/results/mask_term.json

RUN was trained with `mapnet`, whose network is used by all policies that have one. For each sequence the
gradients of independent draws of a policy are compared, weights included; ratios of the mean variances over
sequences, with 95% intervals from leaving out one sequence at a time. A ratio of 1 is uniform masking.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cloze.diagnosis.opening import Subject, open_subject
from cloze.diagnosis.parameters import groups_of
from cloze.masking import POLICIES
from cloze.methods.base import Method
from cloze.methods.build import Choices, build_method, vocabulary_of
from cloze.report.environment import environment
from cloze.variance import jackknife

ARMS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "fully_explored": {},
    "stratified": {},
    "stratified, by score": {"order": "score"},
    "mapnet": {"power": 1.0},
    "mapnet, half the power": {"power": 0.5},
    "uniform, half predicted": {"predict": 0.5, "power": 0.0},
    "mapnet, half predicted": {"predict": 0.5, "power": 1.0},
}
APART = 5040  # visits: a new sweep and a new window for every policy here


def method_of(name: str, subject: Subject) -> Method:
    """The run's model with the masks of an arm."""
    settings = ARMS[name]
    kind = "mapnet" if "predict" in settings else name.split(",")[0]
    masking = POLICIES[kind](rate=subject.rate, **settings)
    recipe, vocabulary = subject.recipe, vocabulary_of(subject.corpus.tokenizer)
    counts = torch.from_numpy(subject.corpus.counts(subject.encoder.vocabulary.weight.shape[0]))
    method = build_method(Choices(masking, recipe.corruption), subject.encoder, vocabulary, counts).eval()
    learnt = dict(subject.method.named_buffers())
    for buffer, value in method.named_buffers():
        source = {"frozen": "theta"}.get(buffer.split(".")[-1], buffer.split(".")[-1])
        if source == "theta":
            value.copy_(learnt[f"masking.proposal.{source}"])
    return method


def variances(method: Method, subject: Subject, draws: int) -> torch.Tensor:
    """[sequences, 2]: variance of the gradient over masks, of all parameters and of the body."""
    named = {n: p for n, p in subject.encoder.model.named_parameters() if p.requires_grad}
    body = [g.startswith("layer") for g in (groups_of(subject.encoder.model)[n] for n in named)]
    found = []
    for batch in subject.sequences:
        total = [torch.zeros_like(p, dtype=torch.float64) for p in named.values()]
        squares = torch.zeros(len(total), dtype=torch.float64)
        for draw in range(draws):
            again = replace(batch, visits=torch.full_like(batch.visits, draw * APART))
            work = method.work(again, method.masking.plan(again, subject.rate, 17))  # type: ignore[union-attr, operator]
            loss = method(work).sums["mlm"] / method.weights(work)["mlm"]
            for i, g in enumerate(torch.autograd.grad(loss, list(named.values()))):
                total[i] += g
                squares[i] += g.double().square().sum()
        mean = torch.stack([t.square().sum() / draws for t in total])
        each = (squares - mean) / (draws - 1)
        found.append(torch.stack([each.sum(), each[torch.tensor(body)].sum()]))
    return torch.stack(found)


def ratio(own: torch.Tensor, uniform: torch.Tensor) -> dict[str, float | None]:
    """Ratio of the means over sequences, with its interval."""
    left = [float((own.sum() - a) / (uniform.sum() - b)) for a, b in zip(own, uniform, strict=True)]
    return jackknife(float(own.sum() / uniform.sum()), left).as_dict()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--segments", type=int, default=7, help="of a sequence; the rate is 1 in so many")
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    # A whole number of segments, or segments would hide fewer tokens than the others.
    rate = 1.0 / arguments.segments
    subject = open_subject(arguments.run, arguments.data, count=arguments.sequences, length=None, rate=rate)
    base = variances(method_of("uniform", subject), subject, arguments.draws)
    found = {}
    for name in arguments.arms:
        own = base if name == "uniform" else variances(method_of(name, subject), subject, arguments.draws)
        found[name] = {"all": ratio(own[:, 0], base[:, 0]), "body": ratio(own[:, 1], base[:, 1])}
        words = [f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for e in found[name].values()]
        print(f"{name:<26}{words[0]:<24}body {words[1]}", flush=True)
    if arguments.json:
        settings = {"sequences": arguments.sequences, "draws": arguments.draws, "rate": subject.rate}
        content = {"settings": settings, "mask_term_to_uniform": found}
        where = environment(torch.device("cpu"), "fp32")
        arguments.json.write_text(json.dumps(content | where, indent=1) + "\n")


if __name__ == "__main__":
    main()
