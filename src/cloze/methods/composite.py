"""Several methods in one run: one after the other, or mixed within a step, with one model for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cloze.data.batch import Batch
from cloze.masking.base import Evidence
from cloze.methods.base import Method, Outcome, Pass, Reading, Readout, Work
from cloze.processes import summed
from cloze.progress import part_at

MAIN = "main"


@dataclass(frozen=True, slots=True)
class Mixed(Work):
    """A batch whose rows were given to several methods.

    Attributes:
        batch: all rows.
        parts: {name: the work of a method}, without those that got no row.
    """

    parts: dict[str, Work]

    @property
    def predicted(self) -> Tensor:
        return sum((part.predicted for part in self.parts.values()), torch.zeros((), dtype=torch.int64))


class Composite(Method[Mixed]):
    """Methods that share a model: at any time some of them are trained, each on its share of the rows.

    The loss is Σ share · mean loss of a method, with terms named such as "causal/next_token". Which method
    gets a row depends on the row's place in the run alone (`allot`), so micro-batches, workers and processes
    change nothing, and every step has as exact shares as its rows allow.

    Args:
        methods: {name: method}, one of them "main": it is measured, and it decides.
        uses: for each stage of the run its share of the steps, and {name: share of the rows}, each adding up
            to 1.
    """

    def __init__(self, methods: Mapping[str, Method[Any]], uses: Sequence[tuple[float, Mapping[str, float]]]):
        super().__init__()
        self.names = tuple(methods)
        self.methods = nn.ModuleList(methods.values())
        self.stages = [share for share, _ in uses]
        self.uses = [use for _, use in uses]
        self.sees = {kind for method in methods.values() for kind in method.sees}
        # Of a mixture a process may have no rows for one of the methods.
        alone = all(len(use) == 1 for use in self.uses)
        self.same_passes = alone and all(method.same_passes for method in methods.values())

    def shares(self, progress: float) -> Mapping[str, float]:
        """{name: share of the rows} of the methods that are trained now."""
        return self.uses[part_at(self.stages, progress)]

    def named(self) -> dict[str, Method[Any]]:
        """{name: method}."""
        return dict(zip(self.names, self.methods, strict=True))  # type: ignore[arg-type]

    @property
    def main(self) -> Method[Any]:
        return self.named()[MAIN]

    def trains_main(self, progress: float) -> bool:
        return MAIN in self.shares(progress)

    def coefficients(self, progress: float) -> dict[str, float]:
        methods = self.named()
        return {
            f"{name}/{term}": share * factor
            for name, share in self.shares(progress).items()
            for term, factor in methods[name].coefficients(progress).items()
        }

    def rate(self, progress: float) -> float:
        """Of the main method, or of the first where that is not in use."""
        shares = self.shares(progress)
        return self.named()[MAIN if MAIN in shares else next(iter(shares))].rate(progress)

    def prepare(self, batch: Batch, progress: float) -> Mixed:
        methods, shares = self.named(), self.shares(progress)
        if len(shares) == 1:
            (name,) = shares
            return Mixed(batch, {name: methods[name].prepare(batch, progress)})
        number = allot(batch.place + torch.arange(batch.ids.shape[0]), list(shares.values()))
        parts = {}
        for i, name in enumerate(shares):
            rows = (number == i).nonzero().squeeze(1)
            if rows.numel():
                parts[name] = methods[name].prepare(batch.take(rows.to(batch.ids.device)), progress)
        return Mixed(batch, parts)

    def weights(self, work: Mixed) -> dict[str, Tensor]:
        methods = self.named()
        return {
            f"{name}/{term}": weight
            for name, part in work.parts.items()
            for term, weight in methods[name].weights(part).items()
        }

    def forward(self, work: Mixed) -> Outcome:
        methods = self.named()
        sums: dict[str, Tensor] = {}
        feedback: dict[str, Tensor] = {}
        for name, part in work.parts.items():
            outcome = methods[name](part)
            sums |= {f"{name}/{term}": value for term, value in outcome.sums.items()}
            feedback |= {f"{name}/{key}": value for key, value in outcome.feedback.items()}
        return Outcome(sums, feedback)

    def passes(self, work: Mixed) -> list[Pass]:
        methods = self.named()
        return [one for name, part in work.parts.items() for one in methods[name].passes(part)]

    def observe(self, works: list[Mixed], feedback: list[dict[str, Tensor]]) -> None:
        found = {
            name: [(w, f) for w, f in zip(works, feedback, strict=True) if name in w.parts]
            for name in self.names
        }
        # What one process has rows of, all learn from: each with its own rows, or with none.
        (used,) = summed(
            torch.tensor([len(both) for both in found.values()], device=works[0].batch.ids.device)
        )
        for number, (name, method) in zip(used.tolist(), self.named().items(), strict=True):
            if number:
                both = found[name]
                method.observe([w.parts[name] for w, _ in both], [own(f, name) for _, f in both])

    def scores(self, batch: Batch) -> Tensor | None:
        return self.main.scores(batch)

    def decide(self, evidence: Evidence) -> list[str]:
        """The main method decides; a row cannot be copied here, so nothing is known of that."""
        return self.main.decide(replace(evidence, break_even_high=None))

    def log(self) -> dict[str, float]:
        found = self.main.log()
        for name, method in self.named().items():
            if name != MAIN:
                found |= {f"{name}/{key}": value for key, value in method.log().items()}
        return found

    @property
    def exported(self) -> Method[Any]:
        """The main method, or where no stock class reads the model as it does, the first that has one."""
        able = [method for method in (self.main, *self.named().values()) if method.reading is not None]
        return able[0] if able else self.main

    @property
    def reading(self) -> Reading | None:
        return self.exported.reading

    @property
    def readings(self) -> dict[Readout, int]:
        """Of the methods that the last stage trains, the main one first.

        Outputs that predict the next token under both visibilities do so behind a prefix too (2410.24159).
        """
        methods, used = self.named(), self.uses[-1]
        found: dict[Readout, int] = {}
        for name in sorted(used, key=lambda name: name != MAIN):
            found = {**found, **{r: s for r, s in methods[name].readings.items() if r not in found}}
        if found.get("masked") == found.get("causal") == 1:
            found.setdefault("prefix", 1)
        return found

    def export(self) -> PreTrainedModel:
        return self.exported.export()

    def companions(self) -> dict[str, PreTrainedModel]:
        return self.exported.companions()

    def learned_state(self) -> dict[str, Any]:
        return {name: method.learned_state() for name, method in self.named().items()}

    def load_learned_state(self, state: dict[str, Any]) -> None:
        for name, method in self.named().items():
            method.load_learned_state(state.get(name, {}))


def own(feedback: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The part of a composite's feedback that is one method's."""
    return {key.removeprefix(f"{name}/"): x for key, x in feedback.items() if key.startswith(f"{name}/")}


def allot(places: Tensor, shares: list[float]) -> Tensor:
    """[n] int64, the number of the share that each place of an endless sequence belongs to.

    A place is a number in [0, 1) by the van der Corput sequence (its binary digits in reverse), and the
    shares lie one after the other in [0, 1). So 2^k places in a row, from a multiple of 2^k on, lie one in
    each part of width 2^-k: of 16 rows with the shares 1/16 and 15/16 exactly one has the first. The text of
    a row has nothing to do with its place: rows are in random order (`data/order.py`).

    Args:
        places: [n] int64, at least 0. shares: adding up to 1.
    """
    u = torch.zeros(places.shape, dtype=torch.float64)
    left, width = places.clone(), 0.5
    while bool((left > 0).any()):
        u += width * (left & 1)
        left, width = left >> 1, width / 2
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1]
    return torch.searchsorted(ends, u, right=True)
