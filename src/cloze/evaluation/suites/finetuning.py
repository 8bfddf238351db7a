"""The suites `classify`, `pair` and `tag`: fine-tuning, or a probe, on labelled data."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from cloze.errors import ClozeError
from cloze.evaluation.finetuning.columns import Shape
from cloze.evaluation.finetuning.probe import probe
from cloze.evaluation.finetuning.protocol import Protocol
from cloze.evaluation.finetuning.tasks import find_tasks
from cloze.evaluation.finetuning.train import finetune
from cloze.evaluation.subject import Subject
from cloze.evaluation.suites.base import Options, Scores, Suite


def run(shape: Shape, subject: Subject, options: Options) -> Scores:
    """Fine-tune on each task of a shape, or probe; with `unmask` once for each of its settings."""
    subjects = [Subject(subject.name, groups) for groups in options.unmask] or [subject]
    protocol = _protocol(subjects[0], options)
    tasks = find_tasks(shape, options.data, options.tasks, options.columns)
    tried = len(protocol.learning_rates) if options.learning_rate is None else 0
    runs = 1 if options.probe else options.seeds + tried
    done = 0

    def tick(what: str) -> None:
        nonlocal done
        options.meter(what, done, runs * len(tasks) * len(subjects))
        done += 1

    found: Scores = {}
    for one, task in product(subjects, tasks):
        name = task.name if one.unmask is None else f"{task.name} {one.unmask}"
        if options.probe:
            tick(f"{name}: probe")
            found[name] = probe(one, task, protocol)
        else:
            found[name] = finetune(one, replace(task, name=name), protocol, options.seeds, tick)
    return found


def _protocol(subject: Subject, options: Options) -> Protocol:
    protocol = replace(Protocol(), epochs=options.epochs)
    if options.epochs is not None and options.epochs < 1:
        raise ClozeError(f"--epochs {options.epochs}: at least 1 is needed")
    if options.learning_rate is not None:
        if not 0.0 < options.learning_rate < 1.0:
            raise ClozeError(
                f"--learning-rate {options.learning_rate:g}: give one between 0 and 1, such as 1e-4"
            )
        protocol = replace(protocol, learning_rates=(options.learning_rate,))
    if options.length is not None and not 8 <= options.length <= subject.longest:
        raise ClozeError(f"--length {options.length}: this model takes from 8 to {subject.longest} tokens")
    return replace(protocol, length=options.length or min(protocol.length, subject.longest))


CLASSIFY = Suite(
    name="classify",
    about="fine-tuning on texts with a class each, or a probe",
    run=lambda subject, options: run("classify", subject, options),
    main="accuracy",
    trains=True,
)
PAIR = Suite(
    name="pair",
    about="fine-tuning on pairs of texts with a class or a number each, or a probe",
    run=lambda subject, options: run("pair", subject, options),
    main="accuracy",
    trains=True,
)
TAG = Suite(
    name="tag",
    about="fine-tuning on words with a tag each (entities by F1), or a probe",
    run=lambda subject, options: run("tag", subject, options),
    main="f1",
    trains=True,
)
