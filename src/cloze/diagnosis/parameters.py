"""Which parameters are measured, and which group of the model each is in."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from cloze.errors import ClozeError

EMBEDDINGS, HEAD = "embeddings", "head"
_NUMBER = re.compile(r"\.(\d+)\.")


def groups_of(model: PreTrainedModel) -> dict[str, str]:
    """{parameter: "embeddings", "layer 0", … or "head"}; a tied vocabulary is in the embeddings.

    The head is what comes after the last layer: the last norm, and the masked-language-model head.
    """
    prefix = model.base_model_prefix + "."
    groups, layers = {}, False
    for name, _ in model.named_parameters():
        number = _NUMBER.search(name) if name.startswith(prefix) else None
        if number:
            groups[name], layers = f"layer {number[1]}", True
        elif name.startswith(prefix) and (not layers or "embedding" in name):
            groups[name] = EMBEDDINGS
        else:
            groups[name] = HEAD
    return groups


def select(model: PreTrainedModel, choice: str) -> dict[str, Tensor]:
    """{name: parameter}: "all" that are trained, those of the "body" (the layers), or those that match.

    Errors: nothing is chosen.
    """
    groups = groups_of(model)
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def chosen(name: str) -> bool:
        if choice == "body":
            return groups[name] not in (EMBEDDINGS, HEAD)
        return choice == "all" or fnmatchcase(name, choice)

    found: dict[str, Tensor] = {name: p for name, p in names.items() if chosen(name)}
    if not found:
        examples = ", ".join(list(names)[:: max(1, len(names) // 3)][:3])
        raise ClozeError(
            f"--parameters {choice}: matches no parameter; write all, body or a pattern such as '*.0.*' for "
            f"names like {examples}"
        )
    return found


def counted(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters that work on every token (body), and those that work on every predicted one (head).

    The body is the base model without its embedding tables, which are looked up; the head is what follows
    it, with the vocabulary matrix even where that is tied to the embeddings.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    inside = {id(p) for p in model.base_model.parameters()}
    vocabulary = cast(nn.Linear, model.get_output_embeddings()).weight
    body = sum(p.numel() for p in model.base_model.parameters() if id(p) not in tables)
    after = [p for p in model.parameters() if id(p) not in inside and p is not vocabulary]
    return body, sum(p.numel() for p in after) + vocabulary.numel()
