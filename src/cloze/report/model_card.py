"""The README.md of an exported model."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from cloze.evaluation.results import Evaluation, table_rows
from cloze.methods.composite import MAIN
from cloze.models.families import OURS
from cloze.recipes.schema import Recipe

log = logging.getLogger("cloze")

# The hub's names of what suites do; the others are about filling blanks.
_HUB_TASKS = {
    "classify": "text-classification",
    "pair": "text-classification",
    "tag": "token-classification",
    "sentences": "sentence-similarity",
    "words": "feature-extraction",
    "retrieve": "text-ranking",
}
_FILL = """```python
from transformers import pipeline

fill = pipeline("fill-mask", model="PATH_OF_THIS_FOLDER")
```"""
_ENCODE = """```python
from transformers import AutoModel

encoder = AutoModel.from_pretrained("PATH_OF_THIS_FOLDER")
```"""
_DETECT = """With its own head it tells which tokens of a text were replaced:

```python
from transformers import {class}

detector = {class}.from_pretrained("PATH_OF_THIS_FOLDER")
```"""
_GENERATE = """Each token is predicted from those before it; a text starts with the tokenizer's `cls_token`.

```python
from transformers import pipeline

generate = pipeline("text-generation", model="PATH_OF_THIS_FOLDER")
generate(generate.tokenizer.cls_token + "The", add_special_tokens=False, max_new_tokens=20)
```"""

_WRITE = """The hidden spans of a text are written out, each behind its sentinel.

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")
model = AutoModelForSeq2SeqLM.from_pretrained("PATH_OF_THIS_FOLDER")
text = tokenizer("The old <extra_id_0> ran dry.", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**text, max_new_tokens=20)[0]))
```"""


def model_card(recipe: Recipe, summary: dict[str, Any]) -> str:
    """A model card in the hub's format, from the recipe and the numbers so far."""
    loss, unigram, of = summary["heldout_loss"], summary["unigram_loss"], summary["heldout_of"]
    every = recipe.objective.everywhere or recipe.infills
    how = "" if every else f", fixed uniform masks on {recipe.evaluation.rate:.0%}"
    objective = "" if recipe.unbiased else "This recipe changes the objective (see its card).\n\n"
    tables = "\n\n".join(_table(name, recipe.choices(name)) for name in recipe.methods())
    tag, use = ("fill-mask", _FILL) if of == "masked tokens" else ("feature-extraction", _ENCODE)
    reading = summary["model"]["reading"]
    if reading == "causal":
        tag, use = "text-generation", _GENERATE
    kind = f"{reading}-language-modelling"
    if reading == "detection":
        kind = "replaced-token-detection"
        tag, use = "feature-extraction", _ENCODE + "\n\n" + _DETECT.format(**summary["model"])
    if summary["heldout_auc"] is None:
        score = f"a unigram model has {unigram:.3f}), accuracy {summary['heldout_accuracy']:.1%}"
    else:
        share = f"{summary['heldout_replaced']:.1%} of the tokens are replaced"
        score = f"{share}), AUC {summary['heldout_auc']:.3f}"
    if reading == "seq2seq":
        tag, use = "text2text-generation", _WRITE
    if summary["model"]["family"] in OURS:
        use = use.replace('FOLDER")', 'FOLDER", trust_remote_code=True)')
    return f"""---
library_name: transformers
pipeline_tag: {tag}
tags: [{kind}, cloze]
---

# {recipe.name}

{recipe.about}

{objective}Pretrained by [cloze](https://pypi.org/project/cloze-pretrain/) with the recipe `{recipe.name}`: \
{summary["steps"]:,} steps, {summary["tokens_seen"]:,} tokens, {summary["parameters"]:,} parameters.

Held-out loss {loss:.3f} nats ({of}{how}; {score}. Such losses compare only on the same text and tokenizer.

{tables}

{use}
"""


def _table(name: str, choices: dict[str, str]) -> str:
    rows = "\n".join(f"| {choice} | {value} |" for choice, value in choices.items())
    return f"| {'choice' if name == MAIN else name} | |\n|---|---|\n{rows}"


def add_results(path: Path, evaluation: Evaluation) -> None:
    """Put the scores into the card's metadata (`model-index`), in the place of those of the same suites.

    Tasks that are in groups are left out, groups are not: the card names BLiMP, not its 67 parts. A card that
    cannot be read is left as it is, with a warning.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            card = ModelCard(file.read())
    except (OSError, ValueError, yaml.YAMLError) as error:
        log.warning("%s: the scores are not in the model card (%s)", path, " ".join(str(error).split())[:200])
        return
    data = cast(ModelCardData, card.data)
    others = [r for r in data.eval_results or [] if r.task_name not in evaluation.suites]
    data.model_name = data.model_name or evaluation.model
    data.eval_results = [*others, *_results(evaluation)]
    temporary = path.with_name(f".{path.name}.tmp")
    card.save(temporary)
    temporary.replace(path)


def _results(evaluation: Evaluation) -> Iterator[EvalResult]:
    for suite, tasks in evaluation.suites.items():
        for row in table_rows(tasks):
            if row.depth:
                continue
            for metric, values in row.scores.items():
                name = metric
                if len(values) > 1:
                    spread = statistics.stdev(values)
                    name += f", mean of {len(values)} seeds (standard deviation {spread:.4f})"
                yield EvalResult(
                    task_type=_HUB_TASKS.get(suite, "fill-mask"),
                    task_name=suite,
                    dataset_type=row.name,
                    dataset_name=row.name,
                    metric_type=metric,
                    metric_name=name,
                    metric_value=round(statistics.fmean(values), 6),
                )
