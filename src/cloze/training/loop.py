"""The training loop, readable from top to bottom.

One step: draw the rows of this process, mask them, add up every term's weight over micro-batches and
processes, run forward and backward with each term divided once by that global weight, clip, update.
So accumulation and data parallelism change nothing but rounding.

Gradients of several processes are averaged by DDP, or by FSDP2 where they share one copy of the model
(`sharding.py`). Which parameters a step needs is not fixed: a detector of replaced tokens leaves the
vocabulary head alone, a stage leaves a whole method out, and in a mixture one process may have rows of a
method that the others have none of. So DDP looks for unused parameters in every step, and a parameter that no
process has used keeps no gradient, as with one process.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from cloze.data.batch import Batch
from cloze.data.loader import Loader, stream
from cloze.errors import SharedError
from cloze.methods.base import Method, Work
from cloze.models.attention import kernels_of
from cloze.models.encoder import Encoder, sparse
from cloze.processes import summed
from cloze.progress import stretches
from cloze.random import Stream, integer
from cloze.training.optimisers import build_optimizers
from cloze.training.precision import autocast
from cloze.training.settings import Phase, Start, Training
from cloze.training.shapes import Shapes
from cloze.training.sharding import Sharded
from cloze.training.state import State

log = logging.getLogger("cloze")

_AHEAD = 1000  # steps whose batches are listed at one time


class Diverged(SharedError):
    """The loss or the gradient is not finite; raised before the update, so the state is still good."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did.

    Attributes:
        losses: {term: mean over its weight}; loss: their sum with the method's coefficients. A term for which
            there was nothing to predict is 0.
        gradient_norm: before clipping.
        predicted: predicted tokens. tokens: tokens seen, padding not counted. Both over all processes.
        learning_rate: of this step.
    """

    losses: dict[str, float]
    loss: float
    gradient_norm: float
    predicted: int
    tokens: int
    learning_rate: float


class Trainer:
    """Runs steps of a method; everything that changes is in the parameters, the optimisers and `state`.

    Args:
        method: the networks and the four choices, on the accelerator's device.
        loaders: training batches of each phase.
        settings: phases, optimiser, schedule and so on.
        state: where the run is; the trainer moves it on.
        seed: of dropout.
        accelerator: device and processes.
        stages: how the parts of the run with their own methods begin.
    """

    def __init__(
        self,
        method: Method[Any],
        loaders: list[Loader],
        settings: Training,
        state: State,
        seed: int,
        accelerator: Accelerator,
        stages: Sequence[Start] = (Start(),),
    ):
        self.stages = stages
        self.method, self.loaders, self.settings = method, loaders, settings
        self.state, self.seed, self.accelerator = state, seed, accelerator
        parts = accelerator.num_processes * method.copies
        for phase in settings.phases:
            if phase.rows % parts:
                raise SharedError(
                    f"training.phases: {phase.rows} rows cannot be split over {accelerator.num_processes} "
                    f"process(es) and {method.copies} masked copies of each row: use a multiple of {parts}"
                )
        lengths = [phase.length for phase in settings.phases]
        self.streams = [lengths.index(length) for length in lengths]  # phases of one length share their rows
        state.cursors += [0] * (len(settings.phases) - len(state.cursors))
        self.sharded: Sharded | None = None
        if accelerator.num_processes > 1 and settings.sharding == "full":
            self.sharded = Sharded(method)
        self.optimizers = build_optimizers(method, settings.optimizer)
        self.wrapped: nn.Module = self.sharded or method
        self.shapes = Shapes(loaders) if settings.compile else None
        if settings.compile:
            # Phases, dense rows and unlucky draws are graphs of their own; beyond torch's limit of 8 it would
            # go on without compiled code.
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
            self.wrapped = torch.compile(self.wrapped, dynamic=False)  # type: ignore[assignment]
        if accelerator.num_processes > 1 and self.sharded is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # it has another name from torch 2.13 on
                self.wrapped = DistributedDataParallel(
                    self.wrapped,
                    device_ids=[accelerator.device] if accelerator.device.type == "cuda" else None,
                    find_unused_parameters=True,
                    # What learns by itself stays in step by its own sums (`observe`), not by copies.
                    broadcast_buffers=False,
                )
        self.autocast = autocast(accelerator.device, settings.precision)
        if accelerator.device.type == "cuda":
            self._say_kernels()

    def _say_kernels(self) -> None:
        with self.autocast():
            half = torch.is_autocast_enabled("cuda")
            dtype = torch.get_autocast_dtype("cuda") if half else torch.float32
        encoder = next((m for m in self.method.modules() if isinstance(m, Encoder)), None)
        if encoder is None:  # an encoder-decoder has transformers' own kernels
            return
        for phase, kind in product(self.settings.phases, sorted(self.method.sees)):
            seen: dict[str, Any] = {"causal": kind != "all", "open": kind == "prefix"}
            found = kernels_of(encoder.model.config, "cuda", dtype, phase.length, dense=False, **seen)
            kernels = ", ".join(f"{layers} layers {kernel}" for layers, kernel in found.items())
            name = f"{'' if kind == 'all' else kind + ' '}attention"
            log.info("%s in packed rows of %d tokens: %s (docs/speed.md)", name, phase.length, kernels)

    def whole(self) -> AbstractContextManager[None]:
        """While it lasts, the method can be run by a process by itself; all begin and end it together."""
        return nullcontext() if self.sharded is None else self.sharded.whole()

    def _embeddings(self) -> AbstractContextManager[None]:
        """While it lasts, a policy that draws masks by the embeddings can read them."""
        return nullcontext() if self.sharded is None else self.sharded.embeddings()

    def phase_at(self, step: int) -> int:
        """Which phase a step lies in."""
        end = 0.0
        for i, phase in enumerate(self.settings.phases):
            end += phase.share
            if step < round(end * self.state.steps):
                return i
        return len(self.settings.phases) - 1

    def run(self, until: int) -> Iterator[StepResult]:
        """Steps up to (not including) number `until`, one result each; may be left after any of them."""
        state = self.state
        while state.step < until:
            index = self.phase_at(state.step)
            phase = self.settings.phases[index]
            last = state.step
            while last < min(until, state.step + _AHEAD) and self.phase_at(last) == index:
                last += 1
            stream_ = self.streams[index]
            places = self._places(phase, state.cursors[stream_], last - state.step)
            micro = len(places) // (last - state.step)
            batches = stream(self.loaders[index], places, self.settings.workers)
            for _ in range(last - state.step):
                result = self.step([next(batches) for _ in range(micro)])
                state.cursors[stream_] += phase.rows // self.method.copies
                yield result

    def _places(self, phase: Phase, cursor: int, steps: int) -> list[tuple[int, int]]:
        """(cursor, rows) of every micro-batch of this process in the next steps; copies come on top."""
        copies = self.method.copies
        mine = phase.rows // self.accelerator.num_processes // copies
        first = cursor + self.accelerator.process_index * mine
        most = self.settings.micro_tokens
        at_once = mine if most is None else min(mine, max(1, most // (phase.length * copies)))
        if self.shapes is not None:  # equal ones, if that does not make them less than half as large
            at_once = next((n for n in range(at_once, at_once // 2, -1) if mine % n == 0), at_once)
        starts = range(0, mine, at_once)
        return [
            (first + step * (phase.rows // copies) + start, min(at_once, mine - start))
            for step in range(steps)
            for start in starts
        ]

    def step(self, batches: list[Batch], observe: bool = True) -> StepResult:
        """One update from the micro-batches of this process; `observe`: let what learns by itself learn."""
        state, method = self.state, self.method
        progress = state.step / state.steps
        torch.manual_seed(integer(self.seed, Stream.STEP, state.step, self.accelerator.process_index))
        rate = self.settings.optimizer.learning_rate * self.settings.schedule.factor(state.step, state.steps)
        rate *= self._begin_stage()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

        device, copies = self.accelerator.device, method.copies
        with self._embeddings():
            works = [method.prepare(b.to(device).repeat(copies), progress) for b in batches]
        if self.shapes is not None:
            works = [self.shapes.pad(work, copies) for work in works]
        factors = method.coefficients(progress)
        weights = self._total([method.weights(w) for w in works], factors)
        sums, feedback = self._backward(works, weights, factors)
        norm = nn.utils.clip_grad_norm_(method.parameters(), self.settings.clip)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        losses = {term: (sums[term] / weights[term]).item() for term in sums}
        loss = sum(factors[term] * value for term, value in losses.items())
        if not (math.isfinite(loss) and math.isfinite(norm.item())):
            self._clear()
            raise Diverged(self._where(loss, norm.item(), works))
        for optimizer in self.optimizers:
            optimizer.step()
        self._clear()
        if observe:
            with self._embeddings():
                method.observe(works, feedback)

        counts = torch.stack(
            [
                sum((w.predicted for w in works), torch.zeros((), dtype=torch.int64)),
                sum((w.tokens for w in works), torch.zeros((), dtype=torch.int64)),
            ]
        )
        predicted, tokens = summed(counts.to(self.accelerator.device))[0].tolist()
        state.step += 1
        state.tokens += tokens
        return StepResult(losses, loss, norm.item(), predicted, tokens, rate)

    def _begin_stage(self) -> float:
        """Factor on the learning rate after a switch of methods; at the switch the optimisers may forget."""
        begin = end = 0.0
        for stage in self.stages:
            begin, end = end, end + stage.share * self.state.steps
            first, last = math.ceil(begin - 1e-6), math.ceil(end - 1e-6)
            if first <= self.state.step < last:
                if stage.fresh_optimizer and self.state.step == first:
                    for optimizer in self.optimizers:
                        optimizer.state.clear()
                warm = stage.warmup * (end - begin)
                return min(1.0, (self.state.step - first + 0.5) / warm) if warm else 1.0
        return 1.0

    def _backward(
        self, works: list[Work], weights: dict[str, Tensor], factors: dict[str, float]
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """Gradients of Σ_term factor · sum / weight; the sums over all processes."""
        none = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        totals = dict.fromkeys(factors, none)
        feedback = []
        for i, work in enumerate(works):
            last = i == len(works) - 1
            with self._no_sync(last), self.autocast(), sparse(self.method):
                outcome = self.wrapped(work)
                objective = sum(factors[term] * value / weights[term] for term, value in outcome.sums.items())
            assert isinstance(objective, Tensor)
            with self._no_sync(last):
                # Gradients are averaged over processes; the sums are to be added up.
                (objective * self.accelerator.num_processes).float().backward()
            feedback.append(outcome.feedback)
            for term, value in outcome.sums.items():
                totals[term] = totals[term] + value.detach().double()
        return dict(zip(totals, summed(*totals.values()), strict=True)), feedback

    def _total(self, parts: list[dict[str, Tensor]], terms: Iterable[str]) -> dict[str, Tensor]:
        """Global weight of each term; a term without any weight is divided by 1, for it sums to 0."""
        none = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        totals = {}
        for term in terms:
            own = [part[term] for part in parts if term in part]
            totals[term] = torch.stack(own).sum().to(none) if own else none
        totals = dict(zip(totals, summed(*totals.values()), strict=True))
        return {term: torch.where(value > 0, value, torch.ones_like(value)) for term, value in totals.items()}

    def _no_sync(self, last: bool) -> AbstractContextManager[Any]:
        if last or self.accelerator.num_processes == 1 or self.sharded is not None:
            return nullcontext()
        return self.accelerator.no_sync(self.wrapped)

    def _clear(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def _where(self, loss: float, norm: float, works: list[Work]) -> str:
        step, index = self.state.step, self.phase_at(self.state.step)
        rows = self.loaders[index].describe(
            self.state.cursors[self.streams[index]], self.settings.phases[index].rows // self.method.copies
        )
        keys = [str(k) for w in works for k in w.batch.keys.tolist()]
        return (
            f"the loss is {loss} and the gradient's norm {norm} at step {step}; nothing was updated. Rows "
            f"(source:record:token) {_some(rows)}; sample keys {_some(keys)}. Lower "
            "training.optimizer.learning_rate, or look at those texts"
        )

    def calibrate(self, steps: int = 6, warm: int = 2) -> float:
        """Seconds per step, the mean over the run, measured on real batches with a learning rate of 0.

        Measured in the middle of each stretch in which phase and method stay the same. There it is the mean
        of the faster half: a machine that is busy for a moment must not shorten a whole run. Parameters and
        state are as before; optimisers start anew.
        """
        mean = 0.0
        state, settings = self.state, self.settings
        kept = State(steps=10**6, cursors=list(state.cursors))
        self.state = kept
        self.settings = settings.model_copy(
            update={"optimizer": settings.optimizer.model_copy(update={"learning_rate": 0.0})}
        )
        for start, end in stretches([phase.share for phase in settings.phases], self.method.stages):
            times = []
            kept.step = middle = round((start + end) / 2 * kept.steps)
            index = self.phase_at(middle)
            phase = settings.phases[index]
            places = self._places(phase, 0, steps + warm)
            batches = stream(self.loaders[index], places, settings.workers)
            for _ in range(steps + warm):
                before = time.perf_counter()
                self.step([next(batches) for _ in range(len(places) // (steps + warm))], observe=False)
                times.append(time.perf_counter() - before)
                kept.step = middle
            mean += (end - start) * statistics.mean(sorted(times[warm:])[: steps // 2])
        self.state, self.settings = state, settings
        self.optimizers = build_optimizers(self.method, settings.optimizer)
        return mean


def _some(values: list[str], most: int = 8) -> str:
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")
