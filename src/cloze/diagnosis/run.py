"""The public entry: `diagnose` a model or a run, and what it leaves in a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cloze.data.corpus import Progress
from cloze.diagnosis.advice import advise
from cloze.diagnosis.measure import Meter, Options, measure
from cloze.diagnosis.opening import open_subject
from cloze.diagnosis.result import Diagnosis
from cloze.errors import ClozeError
from cloze.report.environment import environment
from cloze.training.precision import quick_products
from cloze.training.state import writable_folder, write_json


def diagnose(
    model: str | Path,
    data: Any = None,
    *,
    sequences: int = 64,
    masks: int = 8,
    length: int | None = None,
    rate: float | None = None,
    parameters: str = "all",
    weight: str | None = None,
    out: str | Path | None = None,
    text_field: str | None = None,
    split_text: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    meter: Meter | None = None,
) -> Diagnosis:
    """Measure where the variance of the gradient comes from, and say what to change in the recipe.

    Args:
        model: a run, one of its checkpoints, or any masked LM: a folder or hub id.
        data: text, as for `pretrain`; None: the run's own held-out text.
        sequences, masks: how much is measured. length: tokens of a sequence, specials included; None: 128, or
            what the model takes.
        rate: share of the tokens that is masked; None: the run's, for other models 15%.
        parameters: "all", "body" (the layers) or a pattern of names such as "*.attn.*".
        weight: "curvature" also weighs the variance by its cost in loss.
        out: folder for diagnosis.json and diagnosis.html.
        text_field, split_text: how the text is read, as in a recipe's `data`.
        seed: of the masks that are measured.
        progress: is told how far reading and tokenising is. meter: how far measuring is.

    Returns:
        The numbers with 95% intervals, and a recommendation.

    Errors: `ClozeError` for every mistake that the user can mend.
    """
    _check(sequences, masks, rate, weight)
    folder = None if out is None else writable_folder(Path(out))
    start = time.perf_counter()
    curvature = weight == "curvature"
    subject = open_subject(
        model,
        data,
        count=sequences,
        spare=max(2, sequences // 4) if curvature else 0,
        length=length,
        rate=rate,
        text_field=text_field,
        split_text=split_text,
        progress=progress,
    )
    if curvature and not subject.method.predicts_tokens:
        raise ClozeError(f"--weight curvature: {model} predicts no tokens, whose losses it needs")
    with quick_products():
        found = measure(subject, Options(masks, parameters, curvature, seed), meter)
    device = next(subject.method.parameters()).device
    result = Diagnosis(found, advise(found), time.perf_counter() - start, environment(device, "fp32"))
    if folder is not None:
        _write(result, folder)
    return result


def _check(sequences: int, masks: int, rate: float | None, weight: str | None) -> None:
    if sequences < 2:
        raise ClozeError(f"--sequences {sequences}: at least 2 are needed, for they are compared")
    if masks < 4 or masks % 2:
        raise ClozeError(f"--masks {masks}: give an even number, at least 4")
    if rate is not None and not 0.0 < rate < 1.0:
        raise ClozeError(f"--rate {rate:g}: give a share of the tokens, above 0 and below 1")
    if weight not in (None, "curvature"):
        raise ClozeError(f"--weight {weight}: the only weight there is is curvature")


def _write(result: Diagnosis, folder: Path) -> None:
    from cloze.report.diagnosis import write_diagnosis  # matplotlib is slow to import

    content = result.as_dict()
    try:
        write_json(folder / "diagnosis.json", content)
        write_diagnosis(content, folder)
    except OSError as error:
        raise ClozeError(f"{folder}: cannot be written ({error.strerror or error})") from error
