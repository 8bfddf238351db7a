"""What is divided over processes, as far as one process can tell; the rest is in test_processes.py."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny_model, tiny_t5
from pydantic import ValidationError
from torch import nn

from cloze.models.encoder import Encoder
from cloze.models.encoder_decoder import EncoderDecoder
from cloze.training.muon import _orthogonal
from cloze.training.settings import Training
from cloze.training.sharding import full, layers, leaves, part_of

FAMILIES = ("bert", "roberta", "electra", "modernbert", "eurobert", "deberta-v2", "mosaicbert", "mpnet")


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_found_in_every_family(family: str) -> None:
    model = tiny_model(family)
    found = layers(nn.ModuleList([Encoder(model), nn.ModuleList([nn.Linear(2, 2)])]))
    assert len(found) == model.config.num_hidden_layers
    inside = {id(p) for layer in found for p in layer.parameters()}
    assert inside
    assert id(model.get_input_embeddings().weight) not in inside
    assert id(model.get_output_embeddings().weight) not in inside


def test_layers_of_both_stacks() -> None:
    model = tiny_t5()
    assert len(layers(EncoderDecoder(model))) == 2 * model.config.num_layers


def test_leaves_are_what_was_used() -> None:
    used, other = (nn.Parameter(torch.ones(2)) for _ in range(2))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    total = (torch.nn.functional.linear(used[None], used[None]) * frozen.sum()).sum()
    assert leaves([total, torch.zeros(())]) == {used}
    assert other not in leaves([total])


def test_what_is_not_divided_stays_as_it_is() -> None:
    value = torch.arange(3.0)
    assert full(value) is value
    copy = part_of(value, torch.zeros(3))
    assert torch.equal(copy, value)
    assert copy is not value


def test_orthogonal_change() -> None:
    gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    rate = 0.1 * 0.2 * 6**0.5  # match_rms_adamw
    singular = torch.linalg.svdvals(_orthogonal(gradient, 0.1)) / rate
    assert bool(((singular > 0.6) & (singular < 1.3)).all())
    assert float((_orthogonal(gradient, 0.1) * gradient).sum()) < 0.0


def test_compiled_code_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"training\.compile does not go with training\.sharding=full"):
        Training(compile=True, sharding="full")
