"""A decoder of transformers computes what our causal encoder does, and goes back to the same encoder."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from helpers import SIZE, make_samples, pack, tiny_model
from transformers import (
    AutoModelForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    PreTrainedModel,
)

from cloze.corruption.view import View
from cloze.errors import ClozeError
from cloze.models.build import load_masked_lm
from cloze.models.encoder import Encoder, isolate
from cloze.models.twins import DECODERS, decoder_twin, encoder_twin, is_decoder

LENGTH = 300  # ModernBERT's window is 32 tokens on each side in these models


def ours(encoder: Encoder, ids: torch.Tensor, causal: bool = True) -> torch.Tensor:
    place = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        features = encoder(View(ids, torch.zeros_like(ids), place, place, causal), place[0]).features
        layer = encoder.vocabulary
        return torch.nn.functional.linear(features, layer.weight, layer.bias)


def stock(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits[0]


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return pack([make_samples([LENGTH - 2], 1)], LENGTH).ids


@pytest.mark.parametrize("local", [6, 64, 65])
@pytest.mark.parametrize("family", DECODERS)
def test_the_decoder_computes_the_same(family: str, local: int, ids: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_model(family, **({"local_attention": local} if family == "modernbert" else {}))
    wanted = ours(isolate(copy.deepcopy(model)), ids)
    decoder_twin(model).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is DECODERS[family]
    assert is_decoder(loaded.config)
    assert (stock(loaded, ids) - wanted).abs().max() < 1e-5
    # The control: the same weights with both sides visible, or with another window.
    assert (ours(isolate(copy.deepcopy(model)), ids, causal=False) - wanted).abs().max() > 1e-2
    if family == "modernbert":
        loaded.config.sliding_window -= 1
        assert (stock(loaded, ids) - wanted).abs().max() > 1e-4


@pytest.mark.parametrize("family", DECODERS)
def test_there_and_back_nothing_changes(family: str, ids: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_model(family)
    state = torch.random.get_rng_state()
    twin = decoder_twin(model)
    back = encoder_twin(twin)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(back) is type(model)
    assert back.config.architectures == [type(model).__name__]
    wanted = model.state_dict()
    assert back.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in back.state_dict().items())
    ignored = ("architectures", "transformers_version", "dtype", "use_cache", "_name_or_path")
    one, other = ({k: v for k, v in m.config.to_dict().items() if k not in ignored} for m in (model, back))
    assert one == other
    with torch.no_grad():
        assert torch.equal(stock(back, ids), stock(model, ids))
    # A copy: training goes on in the encoder alone.
    pointers = {p.data_ptr() for p in model.parameters()}
    twin.save_pretrained(tmp_path)
    assert torch.equal(stock(load_masked_lm(str(tmp_path), causal=True), ids), stock(model, ids))
    assert pointers == {p.data_ptr() for p in model.parameters()}
    assert twin.get_output_embeddings().weight is twin.get_input_embeddings().weight


def test_a_decoder_of_others_becomes_an_encoder_with_its_window(ids: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = ModernBertDecoderConfig(
        vocab_size=SIZE, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=322, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2,
        sep_token_id=3, local_attention=48, initializer_range=0.2,
    )  # fmt: skip
    theirs = ModernBertDecoderForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    encoder = isolate(load_masked_lm(str(tmp_path), causal=True))
    assert encoder.isolates
    assert (ours(encoder, ids) - stock(theirs, ids)).abs().max() < 1e-5
    assert encoder.model.config.sliding_window == 23


@pytest.mark.parametrize("family", DECODERS)
def test_it_generates(family: str, ids: torch.Tensor) -> None:
    """With a cache, past the window: the same tokens as without one."""
    model = tiny_model(family)
    decoder = decoder_twin(model).eval()
    prompt = ids[:, :80]
    arguments = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    made = decoder.generate(prompt, attention_mask=torch.ones_like(prompt), **arguments)[0, 80:]
    encoder, text = isolate(model), prompt
    for _ in range(12):
        text = torch.cat([text, ours(encoder, text)[-1].argmax()[None, None]], dim=1)
    assert made.tolist() == text[0, 80:].tolist()


def test_a_causal_model_is_no_masked_one(tmp_path: Path) -> None:
    decoder_twin(tiny_model("bert")).save_pretrained(tmp_path)
    with pytest.raises(ClozeError, match=r"a causal language model, .* fills no blanks"):
        load_masked_lm(str(tmp_path))


def test_other_families_have_no_twin() -> None:
    with pytest.raises(ClozeError, match=r"^eurobert: .* known are bert, modernbert$"):
        decoder_twin(tiny_model("eurobert"))
