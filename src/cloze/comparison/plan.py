"""What a comparison will do, found out before anything is trained: text, cost and speed of each recipe."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from accelerate import Accelerator

from cloze.assembly import Parts, assemble, open_text
from cloze.comparison.arms import Arm, path_of
from cloze.comparison.budget import Allowance, Cost
from cloze.comparison.cost import cost_of
from cloze.comparison.runs import Job, MetricName
from cloze.comparison.timing import Timing, time_in_turn
from cloze.data.corpus import Corpus, Progress
from cloze.errors import ClozeError
from cloze.evaluation.heldout import SEED
from cloze.models.build import PretrainedModelChoice
from cloze.recipes.schema import Recipe

log = logging.getLogger("cloze")


@dataclass(frozen=True, slots=True)
class Planned:
    """A recipe with all that is known of it before its runs.

    Attributes:
        arm: the recipe. cost: of a step. steps: of each run.
        seconds_per_step: one value for each round of the timing.
        bits: of one nat of held-out loss, per character of the held-out text.
        text: digests of the text and the tokenizer. masks: digest of the predicted held-out tokens; empty if
            its loss is of something else than the first recipe's.
        measures: what its held-out loss is of (`Method.measures`). reads: whether its outputs predict tokens.
    """

    arm: Arm
    cost: Cost
    steps: int
    seconds_per_step: tuple[float, ...]
    bits: float
    text: dict[str, str]
    masks: str
    measures: str = "masked tokens"
    reads: bool = True

    @property
    def seconds(self) -> float:
        """Median time of a step."""
        return statistics.median(self.seconds_per_step)


@dataclass(frozen=True, slots=True)
class Plan:
    """All runs of a comparison.

    Attributes:
        arms: the first one is the baseline. seeds: of the runs.
        allowance: of each run. out: where the runs lie.
        metric: bits per character where tokenizers differ, else the held-out loss.
        notes: what a reader of the results must know.
    """

    arms: tuple[Planned, ...]
    seeds: tuple[int, ...]
    allowance: Allowance
    out: Path
    metric: MetricName
    notes: tuple[str, ...]

    @property
    def jobs(self) -> list[Job]:
        """Seed by seed over the arms, so that what an interruption leaves are whole pairs."""
        return [self._job(planned, seed) for seed in self.seeds for planned in self.arms]

    def _job(self, planned: Planned, seed: int) -> Job:
        recipe = planned.arm.recipe
        training = recipe.training.model_copy(update={"budget": f"{planned.steps}steps"})
        return Job(
            arm=planned.arm.name,
            seed=seed,
            recipe=recipe.model_copy(update={"seed": seed, "training": training}),
            folder=path_of(self.out, planned.arm, seed),
            operations=planned.cost.operations / planned.cost.tokens,
            bits=planned.bits,
            text=planned.text,
        )


def make_plan(
    arms: Sequence[Arm],
    allowance: Allowance,
    seeds: Sequence[int],
    out: Path,
    timing: Timing | None = None,
    progress: Progress | None = None,
) -> tuple[Plan, Timing]:
    """Open the text, count and time a step of each arm, and buy steps with the allowance.

    Args:
        timing: what was measured before for these arms; None: measure.

    Errors: what `pretrain` would not start with; arms that would not be measured on the same text.
    """
    accelerator = Accelerator(cpu=torch.backends.mps.is_available())
    corpora: dict[str, Corpus] = {}
    parts: dict[str, Parts] = {}
    for arm in arms:
        key = _tokenizer_key(arm.recipe)
        if key not in corpora:
            corpora[key] = open_text(arm.recipe, [], progress)
        parts[arm.name] = assemble(arm.recipe, corpora[key], accelerator.device)
    _check_held_out(arms, parts)
    measures = {arm.name: parts[arm.name].method.main.measures for arm in arms}
    costs = {arm.name: cost_of(arm.recipe, parts[arm.name]) for arm in arms}
    if timing is None:
        timing = time_in_turn({arm.name: arm.recipe for arm in arms}, parts, accelerator)
    planned = []
    for arm in arms:
        own, corpus = timing.seconds[arm.name], parts[arm.name].corpus
        planned.append(
            Planned(
                arm,
                costs[arm.name],
                allowance.steps(costs[arm.name], statistics.median(own)),
                own,
                bits_of(corpus),
                corpus.digests(),
                _masks(parts[arm.name]) if measures[arm.name] == measures[arms[0].name] else "",
                measures[arm.name],
                bool(parts[arm.name].method.readings),
            )
        )
    notes = _notes(planned)
    other = any(p.text["tokenizer"] != planned[0].text["tokenizer"] for p in planned)
    metric: MetricName = "bits_per_character" if other else "heldout_loss"
    return Plan(tuple(planned), tuple(seeds), allowance, out, metric, tuple(notes)), timing


def _tokenizer_key(recipe: Recipe) -> str:
    path = recipe.model.path if isinstance(recipe.model, PretrainedModelChoice) else None
    return json.dumps([recipe.tokenizer.model_dump(), path, recipe.infills])


def _check_held_out(arms: Sequence[Arm], parts: dict[str, Parts]) -> None:
    first = parts[arms[0].name].corpus.limits
    for arm in arms[1:]:
        if parts[arm.name].corpus.limits != first:
            raise ClozeError(
                f"{arm.name} and {arms[0].name} would hold out different text, for data.heldout.minimum is "
                "in tokens and they have different tokenizers: lower it, or give --set data.heldout.path=FILE"
            )


def _masks(parts: Parts) -> str:
    """A digest of the held-out tokens that are predicted: equal ones are measured on the same tokens."""
    digest, method = blake2b(digest_size=8), parts.method.main
    for batch, plan in parts.held_out.items():
        work = method.examine(batch, plan, SEED)
        digest.update(work.targets.numpy().tobytes() + work.labels.numpy().tobytes())
    return digest.hexdigest()


def bits_of(corpus: Corpus) -> float:
    """Bits per character of the held-out text for one nat a token: tokens / characters / ln 2."""
    characters, tokens = corpus.held_out_size()
    return tokens / max(1, characters) / math.log(2.0)


def _notes(planned: Sequence[Planned]) -> list[str]:
    first, found = planned[0], []
    others = [p.arm.name for p in planned if p.text["tokenizer"] != first.text["tokenizer"]]
    if others:
        found.append(
            f"{', '.join(others)}: another tokenizer than {first.arm.name}. Losses per token do not "
            "compare, so bits per character are given: a masked token's loss, spread over its characters."
        )
    same = [p for p in planned if p.arm.name not in others]
    cut = [p.arm.name for p in same if p.measures == first.measures and p.masks != first.masks]
    if cut:
        found.append(
            f"{', '.join(cut)}: the held-out text is cut into other samples than for {first.arm.name} (see "
            "model.longest), so other tokens of it are masked."
        )
    phases = [p.arm.name for p in planned if p.arm.recipe.training.phases != first.arm.recipe.training.phases]
    if phases:
        found.append(
            f"{', '.join(phases)}: other rows than {first.arm.name}, so text comes in another order."
        )
    return found
