"""The README.md of an exported model."""

from __future__ import annotations

from typing import Any

from cloze.recipes.schema import Recipe


def model_card(recipe: Recipe, summary: dict[str, Any]) -> str:
    """A model card in the hub's format, from the recipe and the numbers so far."""
    loss, unigram = summary["heldout_loss"], summary["unigram_loss"]
    objective = "" if recipe.masking.unbiased else "This recipe changes the objective (see its card).\n\n"
    choices = "\n".join(f"| {name} | {value} |" for name, value in recipe.choices().items())
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [masked-language-modelling, cloze]
---

# {recipe.name}

{recipe.about}

{objective}Pretrained by [cloze](https://pypi.org/project/cloze-pretrain/) with the recipe `{recipe.name}`: \
{summary["steps"]:,} steps, {summary["tokens_seen"]:,} tokens, {summary["parameters"]:,} parameters.

Held-out loss {loss:.3f} nats (fixed uniform masks on {recipe.evaluation.rate:.0%} of the tokens; a \
unigram model has {unigram:.3f}), accuracy {summary["heldout_accuracy"]:.1%}. Such losses compare \
only on the same text and tokenizer.

| choice | |
|---|---|
{choices}

```python
from transformers import pipeline

fill = pipeline("fill-mask", model="PATH_OF_THIS_FOLDER")
```
"""
