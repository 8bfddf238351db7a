"""Tasks from a user's data: read, recognised and checked before anything is trained."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import islice

from cloze.data.files import Row
from cloze.errors import ClozeError
from cloze.evaluation.finetuning import glue
from cloze.evaluation.finetuning.columns import OtherShape, Shape, choose
from cloze.evaluation.finetuning.entities import are_entities, iob2
from cloze.evaluation.finetuning.sources import Source, find_sources
from cloze.evaluation.finetuning.task import Example, Kind, Task

_LEAST = 10  # training examples
_log = logging.getLogger(__name__)


def find_tasks(
    shape: Shape, data: str | None, names: Sequence[str] = (), columns: Sequence[str] = ()
) -> list[Task]:
    """The tasks of the user's place that have this shape.

    Those of another shape are left out as long as there is one that fits. Errors: none fits, or one is not as
    it has to be (`build_task`).
    """
    fitting, others = [], []
    for source in find_sources(data, names):
        try:
            _check_splits(source)
            head = list(islice(source.records("train"), 100))
            chosen = choose(shape, head, columns, source.label("train"))
            fitting.append((source, chosen))
        except OtherShape as error:
            others.append(error)
    if not fitting:
        raise others[0]
    if names:
        for other in others:
            _log.info("left out of %s: %s", shape, other)
    return [build_task(shape, source, chosen) for source, chosen in fitting]


def _check_splits(source: Source) -> None:
    if "train" not in source.splits:
        raise OtherShape(f"{source.name}: there is no train split, only {', '.join(source.splits)}")
    if not {"dev", "test"} & set(source.splits):
        raise OtherShape(f"{source.name}: there is neither a dev nor a test split to report on")


def build_task(shape: Shape, source: Source, columns: Sequence[str]) -> Task:
    """Read and check a task.

    Errors: a split without records or labels, records without text, labels of the wrong type, labels that
    are not in training, one class only, too few examples.
    """
    splits = {s: _examples(shape, source, s, columns) for s in source.splits}
    train = splits.get("train")
    if not train:
        raise ClozeError(f"{source.label('train')}: the training examples have no labels")
    chosen = next((s for s in ("test", "dev") if splits.get(s)), None)
    if chosen is None:
        raise ClozeError(f"{source.name}: neither dev nor test has labels to report on")
    if chosen == "dev" and "test" in source.splits:
        _log.info("%s: its test split has no labels, dev is reported", source.name)
    reported = {"": chosen}
    if chosen == "dev" and splits.get("mismatched"):
        reported["_mismatched"] = "mismatched"
    if len(train) < _LEAST:
        raise ClozeError(f"{source.label('train')}: {len(train)} examples; at least {_LEAST} are needed")
    seen = {label for example in train for label in example.labels}
    kind = _kind(shape, source, seen)
    if kind == "entities":
        splits = {s: [Example(e.texts, iob2(e.labels)) for e in es or []] for s, es in splits.items()}
        types = {label[2:] for label in seen if label != "O"}
        labels = ["O", *(prefix + t for t in sorted(types) for prefix in ("B-", "I-"))]
    else:
        labels = [] if kind == "numbers" else sorted(seen)
    _check_classes(source, kind, labels, train)
    task = Task(
        name=source.name,
        shape=shape,
        kind=kind,
        labels=tuple(labels),
        metrics=_metrics(source, kind, labels),
        train=splits["train"] or [],
        reported={suffix: splits[s] or [] for suffix, s in reported.items()},
    )
    for split in reported.values():
        _check_known(task, source.label(split), splits[split] or [])
    return task


def _examples(shape: Shape, source: Source, split: str, columns: Sequence[str]) -> list[Example] | None:
    """The examples of a split; None if it has no labels, as the test splits of GLUE."""
    *texts, label = columns
    rows = list(source.records(split))
    where = source.label(split)
    if all(row.get(label) in (None, "", "-1", -1) for row in rows):
        return None
    incomplete = [n for n, r in enumerate(rows, 1) if any(r.get(c) is None for c in columns)]
    if incomplete:
        n = len(incomplete)
        missing = next(c for c in columns if rows[incomplete[0] - 1].get(c) is None)
        if split != "train" or n > len(rows) // 100:  # QQP's own file has a few
            raise ClozeError(f"{where}: record {incomplete[0]} has no {missing!r}")
        _log.warning("%s: %d records without all columns left out", where, n)
    skipped = set(incomplete)
    make = _sentence if shape == "tag" else _text
    return [
        make(row, texts, label, f"{where}: record {n}") for n, row in enumerate(rows, 1) if n not in skipped
    ]


def _text(row: Row, texts: Sequence[str], label: str, where: str) -> Example:
    for column in texts:
        if not isinstance(row[column], str):
            raise ClozeError(f"{where}: {column!r} is no text but {_short(row[column])}")
    return Example(tuple(str(row[column]) for column in texts), (_label(row[label], where, label),))


def _sentence(row: Row, texts: Sequence[str], label: str, where: str) -> Example:
    words, tags = row[texts[0]], row[label]
    for column, value in ((texts[0], words), (label, tags)):
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise ClozeError(f"{where}: {column!r} is no list of strings but {_short(value)}")
    assert isinstance(words, list) and isinstance(tags, list)
    if len(words) != len(tags) or not words:
        raise ClozeError(f"{where}: {len(words)} words, {len(tags)} tags; a tag is needed for each word")
    return Example(tuple(words), tuple(tags))


def _label(value: object, where: str, column: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise ClozeError(f"{where}: {column!r} is no label but {_short(value)}")
    return str(value).strip()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _kind(shape: Shape, source: Source, seen: set[str]) -> Kind:
    if shape == "tag":
        return "entities" if are_entities(seen) else "tags"
    where = source.label("train")
    fraction = next((x for x in sorted(seen) if _is_number(x) and not float(x).is_integer()), None)
    if fraction is not None and shape == "classify":
        raise ClozeError(f"{where}: a label is the number {fraction}, where a class is expected")
    if fraction is None and source.name != "stsb":
        return "classes"
    odd = next((x for x in sorted(seen) if not _is_number(x)), None)
    if odd is not None:
        raise ClozeError(f"{where}: labels are numbers such as {fraction}, but one is {odd!r}")
    return "numbers"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_classes(source: Source, kind: str, labels: Sequence[str], train: list[Example]) -> None:
    where, size = source.label("train"), sum(len(example.labels) for example in train)
    if kind == "numbers":
        labels = sorted({label for example in train for label in example.labels})
    if len(labels) == 1:
        raise ClozeError(f"{where}: all {size:,} labels are {labels[0]!r}; a task needs two or more")
    if kind != "numbers" and len(labels) > max(2, size // 2):
        raise ClozeError(
            f"{where}: {len(labels):,} different labels in {size:,} examples; is it the label's column?"
        )


def _check_known(task: Task, where: str, examples: list[Example]) -> None:
    for number, example in enumerate(examples, 1):
        for label in example.labels:
            if task.kind == "numbers":
                if not _is_number(label):
                    raise ClozeError(
                        f"{where}: record {number} has the label {label!r}, where numbers are expected"
                    )
            elif label not in task.labels:
                known = ", ".join(task.labels[:8]) + (", …" if len(task.labels) > 8 else "")
                raise ClozeError(
                    f"{where}: the label {label!r} (record {number}) is not in train, which has {known}"
                )


def _metrics(source: Source, kind: str, labels: Sequence[str]) -> tuple[str, ...]:
    if kind == "entities":
        return ("f1", "precision", "recall")
    if kind == "tags":
        return ("accuracy", "macro_f1")
    if kind == "numbers":
        return ("pearson", "spearman")
    chosen = glue.METRICS.get(source.name, ("accuracy", "macro_f1", "micro_f1"))
    if "f1" in chosen and set(labels) != {"0", "1"}:
        raise ClozeError(
            f"{source.label('train')}: {source.name} has the labels 0 and 1, not {', '.join(labels[:3])}"
        )
    return chosen
