"""Between the body of a masked-LM model and its head: only the places that are predicted go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class Chosen:
    """Travels with a model's keywords to its body, and comes back with the hidden states of all places.

    Attributes:
        places: [N] int64, flat indices. hidden: [rows, length, width].
    """

    places: Tensor
    hidden: Tensor | None = None


class Body:
    """Stands for the `forward` of a model's body (`whole`): the head gets [1, N, width] of what it gives.

    The places come as a keyword or, for models that drop keywords, lie in `chosen`.
    """

    def __init__(self, whole: Callable[..., Any]):
        self.whole = whole
        self.chosen: Chosen | None = None

    def __call__(self, *args: Any, chosen: Chosen | None = None, **kwargs: Any) -> Any:
        output = self.whole(*args, **kwargs)
        chosen = chosen or self.chosen
        assert chosen is not None, "called past its encoder"
        hidden = chosen.hidden = output[0]
        output["last_hidden_state"] = hidden.flatten(0, 1).index_select(0, chosen.places)[None]
        return output


def same(features: Tensor) -> Tensor:
    """Stands for the `forward` of the layer that would make logits."""
    return features
