"""Layers of a decoder whose causal mask is removed: who sees what, and which models can be opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SIZE, tiny_model
from torch import Tensor
from transformers import (
    AutoModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from cloze.errors import ClozeError
from cloze.models.build import load_decoder
from cloze.models.opened import OpenedDecoder, opened_layers
from cloze.models.twins import decoder_twin
from cloze.models.visibility import Visibility

LAYERS, LENGTH = 4, 12
SHAPE = {
    "vocab_size": SIZE,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}
GRID = [f"{number:04b}" for number in range(16)]


def decoder(family: str) -> PreTrainedModel:
    """A causal LM: of transformers' own classes, or one that a causal run leaves."""
    torch.manual_seed(0)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=1)).eval()
    if family == "gpt2":
        shape = {"n_embd": 32, "n_layer": LAYERS, "n_head": 2, "vocab_size": SIZE, "initializer_range": 0.2}
        return GPT2LMHeadModel(GPT2Config(**shape)).eval()
    return decoder_twin(tiny_model(family, num_hidden_layers=LAYERS)).eval()


FAMILIES = ("bert", "modernbert", "llama", "gpt2")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("decoder") / request.param
    decoder(request.param).save_pretrained(path)
    return path


def padded() -> tuple[Tensor, Tensor]:
    """Two rows, of LENGTH and of 7 tokens."""
    ids = torch.randint(5, SIZE, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return ids, mask


@torch.no_grad()
def test_one_open_group_makes_later_tokens_visible_and_none_is_the_causal_model(folder: Path) -> None:
    ids, mask = padded()
    later = ids.clone()
    later[0, -1], later[1, 6] = (ids[0, -1] + 1) % SIZE, (ids[1, 6] + 1) % SIZE
    stock = AutoModel.from_pretrained(folder).eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    found = {}
    for groups in GRID:
        model = OpenedDecoder(load_decoder(str(folder)).eval(), groups)
        found[groups], after = (model(i, mask).last_hidden_state for i in (ids, later))
        for row, last in ((0, LENGTH - 1), (1, 6)):
            noticed = (found[groups][row, :last] != after[row, :last]).any(1)
            assert noticed.all() if "1" in groups else not noticed.any(), groups
    real = mask.bool()
    assert (found["0000"] - stock)[real].abs().max() < 1e-4
    states = [found[groups][0] for groups in GRID]
    far = [(a - b).abs().max() for i, a in enumerate(states) for b in states[:i]]
    assert min(far) > 1e-3, "each of the 16 ways is another model"


@torch.no_grad()
def test_padding_and_unknown_ids_change_nothing(folder: Path) -> None:
    ids, mask = padded()
    model = OpenedDecoder(load_decoder(str(folder)).eval(), "0110")
    together = model(ids, mask).last_hidden_state
    alone = model(ids[1:, :7], mask[1:, :7]).last_hidden_state
    assert (together[1, :7] - alone[0]).abs().max() < 1e-4
    ids[1, 7:] = SIZE + 3  # the padding token that a tokenizer got from us
    assert torch.equal(model(ids, mask).last_hidden_state[0], together[0])
    assert (model(ids, mask).last_hidden_state[1, :7] - together[1, :7]).abs().max() < 1e-5


def test_opened_layers_see_both_sides_within_their_window() -> None:
    segments = torch.tensor([[0] * 5 + [1] * 3])
    seen = Visibility(segments, causal=True, open_layers=frozenset({2}))
    causal, both = seen.at(0).mask(None), seen.at(2).mask(None)
    assert causal is not None and both is not None
    same = segments[0][:, None] == segments[0][None]
    assert torch.equal(both[0, 0], same)
    assert torch.equal(causal[0, 0], same & torch.ones(8, 8, dtype=torch.bool).tril())
    near = seen.at(2).mask(1)
    assert near is not None and int(near[0, 0].sum()) == 13 + 7
    assert seen.at(None) is seen
    plain = Visibility(segments, causal=False, open_layers=frozenset({2}))
    assert plain.at(2) is plain


@pytest.mark.parametrize(
    ("groups", "layers", "opened"),
    [
        ("0011", 8, {4, 5, 6, 7}),
        ("1000", 32, set(range(8))),
        ("0110", 4, {1, 2}),
        ("01", 3, {2}),
        ("1", 3, {0, 1, 2}),
        ("0", 3, set()),
    ],
)
def test_groups_are_neighbouring_layers(groups: str, layers: int, opened: set[int]) -> None:
    assert opened_layers(groups, layers) == opened


@pytest.mark.parametrize("groups", ["", "012", "half"])
def test_groups_are_bits(groups: str) -> None:
    with pytest.raises(ClozeError, match=r"^--unmask .*write a 0 or 1"):
        opened_layers(groups, 4)


def test_no_more_groups_than_layers() -> None:
    with pytest.raises(ClozeError, match="2 layers: give at most 2 bits"):
        opened_layers("0011", 2)


def test_an_encoder_has_nothing_to_open() -> None:
    with pytest.raises(ClozeError, match="BertModel: its tokens see both sides already"):
        OpenedDecoder(tiny_model("bert").base_model, "01")


def test_a_decoder_that_ignores_our_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    body = decoder("llama").base_model
    monkeypatch.setattr(body, "set_attn_implementation", lambda name: None)
    with pytest.raises(ClozeError, match="LlamaModel: cannot be run by cloze"):
        OpenedDecoder(body, "0001")


def test_a_probe_leaves_no_trace() -> None:
    body: Any = decoder("llama").base_model
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    model = OpenedDecoder(body.train(), "0001")
    assert body.training
    assert model.open_layers == {3}
    assert all(torch.equal(tensor, before[name]) for name, tensor in body.state_dict().items())
