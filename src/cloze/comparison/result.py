"""What a comparison found: plain frozen records, and `as_dict` is the content of comparison.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from cloze.comparison.runs import Finished, MetricName
from cloze.comparison.verdict import Finding
from cloze.variance.estimate import Estimate

UNITS = {"heldout_loss": "nats", "bits_per_character": "bits per character"}


@dataclass(frozen=True, slots=True)
class ArmFacts:
    """A recipe of the comparison.

    Attributes:
        recipe: its name here. changes: what it has otherwise than the baseline.
        steps, tokens: of each run. operations: of each run, counted.
        seconds_per_step: one value a round of the timing, in turn with the other recipes; `seconds`: their
            median.
        measures: what its held-out loss is of; only such of one thing are compared.
    """

    recipe: str
    changes: tuple[str, ...]
    steps: int
    tokens: float
    operations: float
    seconds_per_step: tuple[float, ...]
    seconds: float
    measures: str = "masked tokens"

    def per_step(self, measure: str) -> float:
        """Tokens, operations or seconds of a step."""
        if measure == "seconds":
            return self.seconds
        return (self.tokens if measure == "tokens" else self.operations) / self.steps


@dataclass(frozen=True, slots=True)
class Mean:
    """A recipe's own values in one metric.

    Attributes:
        metric: heldout_loss, bits_per_character, or SUITE/TASK/METRIC.
        mean, spread: over seeds, and the standard deviation; None: not known. values: None where a run
            diverged.
        part: one of several tasks of a suite, whose mean is there as well.
    """

    recipe: str
    metric: str
    mean: float | None
    spread: float | None
    values: tuple[float | None, ...]
    part: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """A recipe against the baseline in one metric.

    Attributes:
        values: recipe − baseline, for each seed.
        estimate: their mean; its interval holds together with those of all `comparisons`.
        finding: what that shows.
    """

    recipe: str
    baseline: str
    metric: str
    values: tuple[float, ...]
    estimate: Estimate
    comparisons: int
    finding: Finding

    def as_dict(self) -> dict[str, Any]:
        """For JSON, the estimate's value and ends beside the rest."""
        content = asdict(self)
        return content | content.pop("estimate")


@dataclass(frozen=True, slots=True)
class Speedup:
    """What a recipe needs to come to the baseline's final held-out metric.

    Attributes:
        measure: tokens, operations or seconds.
        needed: by the recipe in each seed; None: not reached within the budget.
        of: what the baseline spends. estimate: of / needed, above 1 is less; known if all seeds reach it.
    """

    recipe: str
    baseline: str
    measure: str
    needed: tuple[float | None, ...]
    of: float
    estimate: Estimate

    @property
    def reached(self) -> int:
        """In how many seeds."""
        return sum(x is not None for x in self.needed)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, likewise."""
        content = asdict(self) | {"reached": self.reached}
        return content | content.pop("estimate")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found.

    Attributes:
        metric: held-out metric that is compared. arms: the first one is the baseline.
        verdict: sentences. notes: what must be known besides.
        settings: what was chosen. environment: hardware and versions.
    """

    metric: MetricName
    arms: tuple[ArmFacts, ...]
    runs: tuple[Finished, ...]
    means: tuple[Mean, ...]
    differences: tuple[Difference, ...]
    speedups: tuple[Speedup, ...]
    verdict: tuple[str, ...]
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def mixed(self) -> bool:
        """Whether the held-out losses of some recipes are of something else than the first one's."""
        return len({arm.measures for arm in self.arms}) > 1

    @property
    def comparable(self) -> list[str]:
        """The recipes whose held-out losses are of the same as the first one's, that one included."""
        return [arm.recipe for arm in self.arms if arm.measures == self.arms[0].measures]

    def as_dict(self) -> dict[str, Any]:
        """The content of comparison.json."""
        return {
            "verdict": list(self.verdict),
            "metric": self.metric,
            "baseline": self.arms[0].recipe,
            "means": [asdict(mean) for mean in self.means],
            "differences": [d.as_dict() for d in self.differences],
            "speedup_to_baseline": [s.as_dict() for s in self.speedups],
            "recipes": [asdict(arm) for arm in self.arms],
            "runs": [asdict(run) for run in self.runs],
            "notes": list(self.notes),
            "settings": self.settings,
            "environment": self.environment,
        }
