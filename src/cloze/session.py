"""One run from beginning to end, and what it leaves in its folder.

recipe.yaml       resolved and runnable
metrics.jsonl     a line per record: step, heldout, note
checkpoints/      whole states, each of them also a model folder
model/            the model: loads with transformers (electra: generator/ beside it)
summary.json, samples.json, report.html

Of several processes the main one alone reads and writes this folder; the others get from it what they need.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

from cloze.assembly import assemble, open_text
from cloze.data.corpus import Progress
from cloze.data.tokenizers import save_tokenizer
from cloze.diagnosis import online
from cloze.errors import ClozeError, SharedError
from cloze.evaluation.heldout import HeldOutResult
from cloze.evaluation.samples import samples
from cloze.masking.fully_explored import FullyExplored
from cloze.models.leaks import check_networks
from cloze.processes import Processes, lost_another, on_cpu
from cloze.progress import stretches
from cloze.recipes.load import dump
from cloze.recipes.schema import Recipe
from cloze.report.model_card import model_card
from cloze.run_folder import RunFolder
from cloze.summary import summarise, unigram_loss
from cloze.training.budget import Budget
from cloze.training.determinism import deterministic
from cloze.training.loop import Diverged, StepResult, Trainer
from cloze.training.memory import ran_out
from cloze.training.precision import quick_products, resolve
from cloze.training.signals import stop_requests
from cloze.training.spikes import Spikes
from cloze.training.state import State, replace_folder, restore_tensors, tensors_of, write_json
from cloze.training.tracking import Listener, Metrics

log = logging.getLogger("cloze")


class Interrupted(Exception):
    """The run was asked to stop, and has saved its state.

    Attributes:
        step: steps done.
        signal: number of the signal that asked.
    """

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"stopped at step {step}")
        self.step, self.signal = step, signal_number


class Session:
    """One call of `pretrain`; see there for the arguments."""

    def __init__(
        self,
        recipe: Recipe,
        objects: list[Any],
        folder: Path,
        listeners: list[Listener],
        progress: Progress | None,
    ):
        self.recipe, self.objects, self.folder = recipe, objects, folder
        self.listeners, self.progress = listeners, progress
        self.place = RunFolder(folder, recipe)
        self.checkpoints = self.place.checkpoints

    def run(self, resume: bool, force: bool) -> dict[str, Any]:
        """Train until the budget is spent; the content of summary.json."""
        with deterministic(self.recipe.training.deterministic):
            return self._run(resume, force)

    def _run(self, resume: bool, force: bool) -> dict[str, Any]:
        self.processes = Processes()
        try:
            state, tensors, finished = self._open(resume, force)
            if finished:
                return self._told()
            with quick_products():
                self._build(state, tensors, force)
                if self.processes.is_main:
                    for listener in self.listeners:
                        listener.begin(self.state.steps)
                with stop_requests(patient=self.processes.number > 1) as asked:
                    self._train(asked)
                return self._finish()
        except (OSError, SafetensorError) as error:  # such as a full disk
            where = getattr(error, "filename", None) or self.folder
            begun = "; what was saved is whole, go on with --resume" if self.checkpoints.steps() else ""
            raise ClozeError(f"{where}: {getattr(error, 'strerror', None) or error}{begun}") from error
        except (RuntimeError, MemoryError) as error:
            if self.processes.number > 1 and isinstance(error, RuntimeError) and lost_another(error):
                raise SharedError(
                    f"{self.folder}: another process has ended, see what it says; go on with --resume"
                ) from error
            if not ran_out(error):
                raise
            settings = self.recipe.training
            most = max(phase.rows * phase.length for phase in settings.phases)
            now = f"{settings.micro_tokens or most:,}"
            raise ClozeError(
                f"out of memory at step {self.state.step}: lower training.micro_tokens, the tokens in one "
                f"forward pass (now {now}), and go on with --resume; what was saved is whole"
            ) from error

    # -- before the first step ------------------------------------------------------------------------

    def _open(self, resume: bool, force: bool) -> tuple[State, dict[str, Tensor], bool]:
        """What to go on from, and whether there is nothing left to do."""
        state, finished = State(), False
        tensors: dict[str, Tensor] = {}
        with self.processes.together():
            if self.processes.is_main:
                state, tensors = self.place.open(resume, force)
                finished = self.place.is_finished(state)
                self._compare_number(state)
        known, finished = self.processes.from_main((asdict(state), finished))
        return State(**known), {} if finished else self.processes.tensors_from_main(tensors), finished

    def _compare_number(self, state: State) -> None:
        before = self.place.summary().get("environment", {}).get("processes", 1)
        if state.step and before != self.processes.number:
            log.warning("%d processes instead of %d: the last bits may differ", self.processes.number, before)

    def _told(self) -> dict[str, Any]:
        """The content of summary.json, in every process."""
        return self.processes.from_main(self.place.summary() if self.processes.is_main else {})

    def _build(self, state: State, tensors: dict[str, Tensor], force: bool) -> None:
        recipe, settings, processes = self.recipe, self.recipe.training, self.processes
        self.state = state
        with processes.together():
            for tracker in settings.trackers if processes.is_main else ():
                if find_spec(tracker) is None:
                    raise ClozeError(f"training.trackers: {tracker} is not installed: pip install {tracker}")
        accelerator = self.accelerator = Accelerator(
            cpu=on_cpu(),
            log_with=list(settings.trackers) or None,
            project_dir=str(self.folder),
        )
        if settings.trackers:
            accelerator.init_trackers("cloze", config={"recipe": dump(recipe)})
        corpus = processes.in_turn(lambda: open_text(recipe, self.objects, self.progress))
        processes.equal(corpus.digests(), "other text or another tokenizer")
        with processes.together():
            self.place.compare_text(corpus, state, force)
            parts = self.parts = assemble(recipe, corpus, accelerator.device)
            self.unigram = unigram_loss(parts)
        processes.same_buffers(parts.method)
        self.trainer = Trainer(
            parts.method, parts.loaders, settings, state, recipe.seed, accelerator, recipe.stages
        )
        with self.trainer.whole(), processes.together(), self.trainer.autocast():
            lengths = {phase.length for phase in settings.phases}
            check_networks(parts.method, parts.method.sees, lengths)
        self.initial = tensors.get("heldout.initial")
        self.metrics = Metrics(
            self.folder / "metrics.jsonl", state.metrics_bytes, accelerator, self.listeners
        )
        precision = resolve(settings.precision, accelerator.device)
        self._spend_budget(state)  # may measure steps, so before what is saved is put in place
        if tensors:
            if self.place.changes(state):  # what the first loss was under the new settings
                first = self._measure()
                self.initial = first.losses
                state.heldout |= {f"{name}_initial": x for name, x in first.scores().items()}
            restore_tensors(tensors, parts.method, self.trainer.optimizers)
            parts.method.load_learned_state(state.learned)
            known = state.recipe["training"]
            for what, before, now in (
                ("micro_tokens", known.get("micro_tokens"), settings.micro_tokens),
                ("deterministic", known.get("deterministic", False), settings.deterministic),
                ("threads", state.threads, torch.get_num_threads()),
                ("precision", state.precision or precision, precision),
                ("sharding", known.get("sharding", "none"), settings.sharding),
            ):
                if before != now:
                    log.warning("%s: %s instead of %s: the last bits may differ", what, now, before)
            if processes.is_main:
                self.place.write_recipe()
        state.threads, state.precision = torch.get_num_threads(), precision
        state.recipe = recipe.model_dump(mode="json")

    def _spend_budget(self, state: State) -> None:
        """Turn the budget into a number of steps, once; it is kept in the state."""
        if state.steps and state.recipe["training"]["budget"] == self.recipe.training.budget:
            return
        phases = self.recipe.training.phases
        budget = Budget.parse(self.recipe.training.budget)
        tokens = sum(
            phase.share * phase.rows * loader.layout.length * loader.fill
            for phase, loader in zip(phases, self.parts.loaders, strict=True)
        )
        before = state.step, state.seconds
        if budget.unit == "seconds" and state.seconds_per_step is None:
            state.seconds_per_step = self.processes.from_main(self.trainer.calibrate())
        if budget.unit == "seconds":
            start = time.perf_counter()
            self._measure()
            once = self.processes.from_main(time.perf_counter() - start)
            overhead = once * (self.recipe.evaluation.times + 1)
            budget = Budget(max(budget.amount - before[1], 0.0), "seconds")
            state.steps = before[0] + (
                budget.steps(tokens, state.seconds_per_step, overhead) if budget.amount else 0
            )
        else:
            state.steps = budget.steps(tokens, None)
        if before[0]:
            self.metrics.record(
                "note", state.step, message=f"budget changed to {self.recipe.training.budget}"
            )

    def _hint(self) -> None:
        """Where text will come several times under independent masks: say what is better there."""
        masking, phase = self.recipe.masking, self.recipe.training.phases[0]
        units = {"uniform": "tokens", "words": "words", "spans": "spans"}.get(masking.kind)
        rows = sum(len(rows) for rows in self.parts.loaders[0].sources)
        visits = self.state.steps * phase.rows / max(1, rows)
        if visits < 2 or not units or not isinstance(masking.rate, float) or masking.rate > 0.5:
            return
        real = FullyExplored(rate=masking.rate).real(masking.rate)  # of a whole number of segments
        if abs(real / masking.rate - 1.0) < 0.15:
            log.info(
                "the text comes %.2g times: --set 'masking={kind: fully_explored, rate: %.3g, units: %s}' "
                "masks other parts each time (docs/benchmarks.md)",
                visits,
                real,
                units,
            )

    # -- training -------------------------------------------------------------------------------------

    def _train(self, asked: list[int]) -> None:
        state, settings = self.state, self.recipe.training
        if state.step == 0:
            first = self._evaluate()
            self.initial = first.losses
            state.heldout |= {f"{name}_initial": x for name, x in first.scores().items()}
            self._save()
            self._hint()
        evaluations = {
            round(i * state.steps / self.recipe.evaluation.times)
            for i in range(1, self.recipe.evaluation.times + 1)
        }
        measured = online.points(state.steps) if self.recipe.evaluation.variance else set()
        points = {p for p in measured if self.parts.method.trains_main((p - 1) / state.steps)}
        self.spikes = self._spikes(points)
        stops = sorted({*(p for p in points if p > state.step), state.steps})
        mark = time.perf_counter()
        try:
            for result in chain.from_iterable(self.trainer.run(stop) for stop in stops):
                now = time.perf_counter()
                self._count(result, now - mark)
                if state.step % settings.log_every == 0 or state.step == state.steps:
                    self._log(result)
                mark = now
                if state.step in evaluations:
                    self._evaluate()
                    now = time.perf_counter()
                    state.seconds += now - mark
                    mark = now
                if state.step in points:
                    self._measure_variance()
                    now = time.perf_counter()
                    state.seconds += now - mark
                    mark = now
                wanted = self.processes.largest(asked[0] if asked else 0)  # a signal may reach one alone
                if wanted or state.step % settings.checkpoint_every == 0 or state.step == state.steps:
                    self._save()
                    mark = time.perf_counter()
                if wanted and state.step < state.steps:
                    self._finish()
                    raise Interrupted(state.step, wanted)
        except Diverged as error:
            self.metrics.record("note", state.step, message=str(error))
            path = self._save()
            raise SharedError(f"{error}; the state before it is in {path}") from error

    def _count(self, result: StepResult, seconds: float) -> None:
        self.state.seconds += seconds
        window = self.state.window
        for key, value in (
            ("seconds", seconds),
            ("tokens", result.tokens),
            ("predicted", result.predicted),
            ("loss", result.loss * result.predicted),
        ):
            window[key] = window.get(key, 0.0) + value

    def _log(self, last: StepResult) -> None:
        state, window = self.state, self.state.window
        state.window = {}
        self.metrics.record(
            "step",
            state.step,
            tokens=state.tokens,
            seconds=state.seconds,
            loss=window["loss"] / max(1.0, window["predicted"]),
            learning_rate=last.learning_rate,
            gradient_norm=last.gradient_norm,
            rate=self.parts.method.rate((state.step - 1) / state.steps),
            **({"losses": last.losses} if len(last.losses) > 1 else {}),
            predicted=last.predicted,
            tokens_per_second=window["tokens"] / max(window["seconds"], 1e-9),
            **self.parts.method.log(),
        )
        self._look_for_spike(window["loss"] / max(1.0, window["predicted"]), last.learning_rate)

    def _spikes(self, points: set[int]) -> Spikes:
        """Watches the loss, and knows the lines of metrics.jsonl that are there already."""
        shares = [phase.share for phase in self.recipe.training.phases]
        begins = (start for start, _ in stretches(shares, self.parts.method.stages))
        decided = points if self.recipe.masking.kind == "auto" else ()
        spikes = Spikes([*decided, *(round(start * self.state.steps) for start in begins)])
        for line in self.metrics.lines("step"):
            spikes.see(line["step"], line["loss"])
        return spikes

    def _look_for_spike(self, loss: float, rate: float) -> None:
        usual = self.spikes.see(self.state.step, float(f"{loss:.6g}"))  # as it is in metrics.jsonl
        if usual is not None:
            message = (
                f"the loss jumped to {loss:.4g} from about {usual:.4g}: if it does not fall again, go back "
                "to a checkpoint or start anew with a lower training.optimizer.learning_rate "
                f"(now {rate:.3g}) or training.clip (now {self.recipe.training.clip:g})"
            )
            if not self.listeners:  # which say what is noted
                log.warning("step %d: %s", self.state.step, message)
            self.metrics.record("note", self.state.step, message=message)

    def _measure(self) -> HeldOutResult:
        with self.trainer.whole():
            return self.parts.held_out.evaluate(self.parts.method.main, self.trainer.autocast())

    def _evaluate(self) -> HeldOutResult:
        result = self._measure()
        state = self.state
        state.heldout |= result.scores()
        self.metrics.record(
            "heldout",
            state.step,
            tokens=state.tokens,
            seconds=state.seconds,
            **result.scores(),
            predicted=result.losses.numel(),
        )
        return result

    def _measure_variance(self) -> None:
        """Measure where the gradient's variance comes from, and let the policy decide by it."""
        state, method, loaders = self.state, self.parts.method, self.parts.loaders
        phases = self.recipe.training.phases
        index = self.trainer.phase_at(state.step - 1)
        loader, rate = loaders[index], method.main.rate(state.step / state.steps)
        planned = [p.share * state.steps * p.rows for p in phases]
        tokens = sum(n * x.layout.length * x.fill for n, x in zip(planned, loaders, strict=True))
        number = online.rows_to_measure(state.steps, round(tokens / state.steps), phases[index].length)
        found, start = None, time.perf_counter()
        if number and rate > 0.0:
            cursor = state.cursors[self.trainer.streams[index]]
            rows = [loader.batch(cursor + i, 1).to(self.accelerator.device) for i in range(number)]
            try:
                with self.trainer.whole():
                    found = online.measure(method.main, rows, rate, self.recipe.seed + state.step)
            except ClozeError as error:  # what only looks on must not end a run
                self.metrics.record("note", state.step, message=f"the variance was not measured: {error}")
        if found is not None:
            took = time.perf_counter() - start
            self.metrics.record("variance", state.step, tokens=state.tokens, took=took, **found.record())
        if state.step < state.steps:
            visits = tokens / method.copies / max(1, sum(r.used for r in loader.sources))
            known = online.evidence(found, self.parts.encoder, visits, rate)
            if any(p.rows % (2 * self.processes.number) for p in phases):
                known = replace(known, break_even_high=None)
            for line in method.decide(self.processes.from_main(known)):
                self.metrics.record("note", state.step, message=line)

    # -- saving ---------------------------------------------------------------------------------------

    def _save(self) -> Path:
        """A checkpoint, and the same model in model/."""
        state = self.state
        state.metrics_bytes = self.metrics.length
        state.learned = self.parts.method.learned_state()
        tensors = tensors_of(self.parts.method, self.trainer.optimizers)
        if self.initial is not None:
            tensors["heldout.initial"] = self.initial
        with self.trainer.whole(), self.processes.together():
            if self.processes.is_main:
                try:
                    self._write(tensors)
                except (OSError, SafetensorError) as error:
                    raise ClozeError(
                        f"{self.folder}: the state of step {state.step} could not be saved "
                        f"({getattr(error, 'strerror', None) or error}); those before it are whole"
                    ) from error
        return self.checkpoints.path(state.step)

    def _write(self, tensors: dict[str, Tensor]) -> None:
        self.checkpoints.save(self.state, tensors, self._export)
        self._deliver()

    def _deliver(self) -> None:
        """The models outside the checkpoints; the summary, last, says of which step they are."""
        replace_folder(self.folder / "model", self._export)
        for name, model in self.parts.method.companions().items():
            replace_folder(self.folder / name, partial(self._export_companion, model))
        write_json(self.folder / "summary.json", self._summary())

    def _export_companion(self, model: PreTrainedModel, folder: Path) -> None:
        hf_logging.disable_progress_bar()
        model.save_pretrained(folder)
        save_tokenizer(self.parts.corpus.tokenizer, folder)

    def _export(self, folder: Path) -> None:
        hf_logging.disable_progress_bar()
        self.parts.method.export().save_pretrained(folder)
        tokenizer = self.parts.corpus.tokenizer
        tokenizer.model_max_length = min(self.parts.encoder.longest(), 10**9)
        save_tokenizer(tokenizer, folder)
        (folder / "README.md").write_text(model_card(self.recipe, self._summary()), encoding="utf-8")

    def _finish(self) -> dict[str, Any]:
        """The last files: samples, summary, report."""
        with self.trainer.whole(), self.processes.together():
            if self.processes.is_main:
                if not self.place.is_delivered(self.state):  # it was killed after the last checkpoint
                    self._deliver()
                self._describe()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return self._told()

    def _describe(self) -> None:
        from cloze.report.page import write_report  # matplotlib is slow to import

        result = self._measure()
        self.state.heldout |= result.scores()
        parts = self.parts
        found = samples(
            parts.held_out, parts.method, parts.corpus.tokenizer, parts.counts, self.initial, result
        )
        (self.folder / "report.html").unlink(missing_ok=True)  # of a smaller budget
        write_json(self.folder / "samples.json", found)
        whole = self.state.step >= self.state.steps
        write_json(self.folder / "summary.json", self._summary("finished" if whole else "stopped"))
        write_report(self.folder)

    def _summary(self, status: str = "stopped") -> dict[str, Any]:
        numbers = summarise(
            self.recipe, self.parts, self.state, self.unigram, self.accelerator.device, self.objects
        )
        return numbers | {"status": status}
