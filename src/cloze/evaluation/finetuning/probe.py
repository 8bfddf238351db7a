"""The probe: what a frozen encoder's states tell a linear model. Seconds, where fine-tuning takes minutes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from cloze.errors import ClozeError
from cloze.evaluation.finetuning.encoding import encode, encode_words, run_all
from cloze.evaluation.finetuning.protocol import Protocol
from cloze.evaluation.finetuning.task import Example, Task
from cloze.evaluation.subject import Subject

_ITERATIONS = 200


def probe(subject: Subject, task: Task, protocol: Protocol) -> dict[str, list[float]]:
    """The task's metrics, one value each: nothing here is drawn at random but the split, which is fixed.

    Features are the mean state of a text; |u - v| and u * v of the two texts of a pair, each encoded alone
    (1705.02364), since a frozen encoder has not learnt to compare texts that it reads together; the state of
    a word's first token. They are standardised, and the strength of the regularisation is chosen on the
    selection split. Then all of train is fitted.

    Errors: scikit-learn is not there.
    """
    _require()
    features = Features(subject, task, protocol.length)
    parts = protocol.split(task)
    (fit, y), (choice, _) = ((features(part), task.targets(part)) for part in parts)
    if task.kind != "numbers" and (y == y[0]).all():
        raise ClozeError(f"{task.name}: all but a few labels of train are the same; a probe cannot be fitted")
    model = Linear(task)
    merits = [task.merit(parts[1], model.fit(fit, y, c).predict(choice)) for c in protocol.probe_strengths]
    best = protocol.probe_strengths[int(np.argmax(merits))]
    whole = np.concatenate([fit, choice]), np.concatenate([task.targets(part) for part in parts])
    model = Linear(task).fit(*whole, best)
    found: dict[str, list[float]] = {}
    for suffix, examples in task.reported.items():
        scores = task.score(examples, model.predict(features(examples)))
        found |= {metric + suffix: [value] for metric, value in scores.items()}
    return found


def _require() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ClozeError("--probe needs scikit-learn: pip install cloze-pretrain[evaluate]") from None


class Linear:
    """Logistic regression on standardised features, from the last fit on; ridge regression for numbers."""

    def __init__(self, task: Task):
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.preprocessing import StandardScaler

        self.numbers = task.kind == "numbers"
        self.scaler = StandardScaler()
        self.model = Ridge() if self.numbers else LogisticRegression(max_iter=_ITERATIONS, warm_start=True)

    def fit(self, features: np.ndarray, targets: np.ndarray, strength: float) -> Linear:
        """Fit [items, features] to [items]; `strength` is C, or 1/alpha of ridge regression."""
        from sklearn.exceptions import ConvergenceWarning

        self.model.set_params(**({"alpha": 1 / strength} if self.numbers else {"C": strength}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model.fit(self.scaler.fit_transform(features), targets)
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """[items]: class ids or numbers."""
        found: np.ndarray = self.model.predict(self.scaler.transform(features))
        return found


class Features:
    """A frozen encoder: examples to [items, features]."""

    def __init__(self, subject: Subject, task: Task, length: int):
        self.subject, self.task, self.length = subject, task, length
        self.body = subject.tunable()

    def __call__(self, examples: list[Example]) -> np.ndarray:
        if self.task.shape == "tag":
            words = [example.texts for example in examples]
            return self._states(encode_words(self.subject.tokenizer, words, self.length))
        columns = [
            self._states(encode(self.subject.tokenizer, [(t,) for t in texts], self.length, types=False))
            for texts in zip(*(example.texts for example in examples), strict=True)
        ]
        if len(columns) == 1:
            return columns[0]
        u, v = columns
        return np.concatenate([np.abs(u - v), u * v], 1)

    def _states(self, sequences: Any) -> np.ndarray:
        pad = self.subject.tokenizer.pad_token_id or 0
        return run_all(lambda rows: rows.states(self.body), sequences, pad, self.subject.device)
