"""Fine-tuning: the whole encoder with a new linear head, by the pinned protocol."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cloze.evaluation.finetuning.encoding import (
    Rows,
    Sequences,
    collate,
    encode,
    encode_words,
    has_types,
    run_all,
    training_batches,
)
from cloze.evaluation.finetuning.protocol import Protocol
from cloze.evaluation.finetuning.task import Example, Task
from cloze.evaluation.subject import Subject
from cloze.models.opened import OpenedDecoder
from cloze.training.optimisers import OptimizerChoice, build_optimizers
from cloze.training.schedules import Schedule

Tick = Callable[[str], None]
"""Told what begins."""

_SEARCH_SEED = 1_000_003  # so that no reported seed chose the learning rate
_log = logging.getLogger(__name__)


class Tuned(nn.Module):
    """An encoder, dropout and a linear head on the mean of its final states, or on those of words."""

    def __init__(self, body: PreTrainedModel | OpenedDecoder, outputs: int, dropout: float):
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(body.config.hidden_size, outputs)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: Rows) -> Tensor:
        """[items, outputs]."""
        output: Tensor = self.head(self.dropout(rows.states(self.body)))
        return output


@dataclass(frozen=True, slots=True)
class Part:
    """Examples of a task, tokenised, with [items] targets."""

    examples: list[Example]
    sequences: Sequences
    targets: np.ndarray


class Tuner:
    """Trains a subject on a task."""

    def __init__(self, subject: Subject, task: Task, protocol: Protocol):
        self.subject, self.task, self.protocol = subject, task, protocol
        self.pad = subject.tokenizer.pad_token_id or 0
        self.types = has_types(subject.tunable())

    def part(self, examples: list[Example]) -> Part:
        """Tokenise examples."""
        texts, tokenizer = [example.texts for example in examples], self.subject.tokenizer
        if self.task.shape == "tag":
            sequences = encode_words(tokenizer, texts, self.protocol.length)
        else:
            sequences = encode(tokenizer, texts, self.protocol.length, self.types)
        return Part(examples, sequences, self.task.targets(examples))

    def train(self, fit: Part, choice: Part, rate: float, seed: int) -> tuple[float, Tuned]:
        """Train on `fit`; the model after the epoch that is best on `choice`, and how good it is there."""
        protocol, outputs = self.protocol, max(1, len(self.task.labels))
        torch.manual_seed(seed)  # of the head, then of dropout
        draw = np.random.default_rng(seed)
        model = Tuned(self.subject.tunable(), outputs, protocol.dropout).to(self.subject.device)
        choices = OptimizerChoice(learning_rate=rate, weight_decay=protocol.weight_decay)
        (optimizer,) = build_optimizers(model, choices)
        schedule = Schedule(kind="linear", warmup=protocol.warmup)
        size = len(fit.sequences)
        epochs, each = protocol.epochs_of(size), protocol.steps_of(size)
        best, state = -np.inf, copy.deepcopy(model.state_dict())
        for epoch in range(epochs):
            model.train()
            losses = self._losses(model, fit, training_batches(fit.sequences, protocol.batch, draw))
            for step, loss in enumerate(losses, start=epoch * each):
                for group in optimizer.param_groups:
                    group["lr"] = rate * schedule.factor(step, epochs * each)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), protocol.clip)
                optimizer.step()
            merit = self.task.merit(choice.examples, self.predict(model, choice))
            if merit > best:
                best, state = merit, copy.deepcopy(model.state_dict())
        model.load_state_dict(state)
        return best, model

    def _losses(self, model: Tuned, part: Part, batches: Iterable[list[int]]) -> Iterator[Tensor]:
        """The mean loss of each batch."""
        numbers = self.task.kind == "numbers"
        targets = _standardised(part.targets) if numbers else part.targets
        of_sequence = np.split(targets, np.cumsum(part.sequences.items())[:-1])
        for chosen in batches:
            outputs = model(collate(part.sequences, chosen, self.pad, self.subject.device))
            wanted = torch.from_numpy(np.concatenate([of_sequence[i] for i in chosen])).to(outputs.device)
            if numbers:
                yield nn.functional.mse_loss(outputs[:, 0], wanted)
            else:
                yield nn.functional.cross_entropy(outputs, wanted)

    def predict(self, model: Tuned, part: Part) -> np.ndarray:
        """[items]: class ids, or numbers (standardised: correlations do not notice)."""
        model.eval()
        outputs = run_all(model, part.sequences, self.pad, self.subject.device)
        return outputs[:, 0] if self.task.kind == "numbers" else outputs.argmax(1)


def finetune(
    subject: Subject, task: Task, protocol: Protocol, seeds: int, tick: Tick = lambda what: None
) -> dict[str, list[float]]:
    """The task's metrics, a value for each seed.

    A seed draws the head, the order of the examples and dropout; the data's split and the learning rate are
    the same for all.
    """
    tuner = Tuner(subject, task, protocol)
    fit, choice = (tuner.part(examples) for examples in protocol.split(task))
    cut = np.mean([len(ids) >= protocol.length for ids in fit.sequences.ids])
    if task.shape != "tag" and cut > 0.05:
        _log.info(
            "%s: %.0f%% of the texts are cut at %d tokens (--length)", task.name, 100 * cut, protocol.length
        )
    rate = _search(tuner, protocol, fit, choice, tick)
    reported = {suffix: tuner.part(examples) for suffix, examples in task.reported.items()}
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        tick(f"{task.name}: seed {seed + 1} of {seeds}")
        _, model = tuner.train(fit, choice, rate, seed)
        for suffix, part in reported.items():
            for metric, value in task.score(part.examples, tuner.predict(model, part)).items():
                found.setdefault(metric + suffix, []).append(value)
    return found


def _search(tuner: Tuner, protocol: Protocol, fit: Part, choice: Part, tick: Tick) -> float:
    rates = protocol.learning_rates
    if len(rates) == 1:
        return rates[0]
    some = tuner.part(protocol.searched(fit.examples))
    merits = {}
    for rate in rates:
        tick(f"{tuner.task.name}: learning rate {rate:g}")
        merits[rate], _ = tuner.train(some, choice, rate, _SEARCH_SEED)
    best = max(rates, key=lambda rate: merits[rate])
    listed = ", ".join(f"{rate:g}: {merit:.3f}" for rate, merit in merits.items())
    _log.info("%s: learning rate %g (on the selection split, %s)", tuner.task.name, best, listed)
    return best


def _standardised(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-12), np.float32)
