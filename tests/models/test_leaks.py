"""The leak probe finds what leaks: each kind, each visibility, each family, and as each recipe is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small
from helpers import tiny_model, tiny_t5
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForMaskedLM,
    FNetForMaskedLM,
    PreTrainedModel,
)

from cloze import ClozeError, Run
from cloze.assembly import assemble, open_text
from cloze.models import encoder_decoder
from cloze.models import leaks as module
from cloze.models.attention import NAME, attention
from cloze.models.encoder import Encoder, isolate, sparse
from cloze.models.encoder_decoder import EncoderDecoder, wrap
from cloze.models.leaks import KINDS, check_networks, leaks, noticed
from cloze.models.visibility import Visibility
from cloze.recipes.load import load_recipe, shipped

FAMILIES = ["bert", "roberta", "roberta-prelayernorm", "electra", "modernbert", "eurobert", "mosaicbert"]
LENGTHS = (8, 32, 64, 200)


def shifts(model: PreTrainedModel, by: int) -> PreTrainedModel:
    """The model, which leaks: each token gets something of another one, `by` places before it (or behind)."""
    table: Any = model.get_input_embeddings()
    table.register_forward_hook(lambda _module, _inputs, out: out + 0.1 * out.roll(by, 1))
    return model


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`seeing(change)`: our attention sees `change(visibility)`; both are unpatched at the end."""

    def patch(change: Callable[[Visibility], Visibility]) -> None:
        def run(*args: Any, visibility: Visibility, **more: Any) -> Any:
            return attention(*args, visibility=change(visibility), **more)

        monkeypatch.setattr("cloze.models.encoder.register", lambda: None)
        AttentionInterface.register(NAME, run)

    yield patch
    AttentionInterface.register(NAME, attention)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_probed_and_passes(family: str) -> None:
    encoder = isolate(tiny_model(family))
    assert encoder.isolates
    for length in LENGTHS:
        assert leaks(encoder, length=length) == []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert leaks(encoder) == []


def one_piece(seen: Visibility) -> Visibility:
    return Visibility(torch.where(seen.segments < 0, -1, 0), seen.causal, open=seen.open)


def two_sided(seen: Visibility) -> Visibility:
    return Visibility(seen.segments)


def past_of_all(seen: Visibility) -> Visibility:
    """Causal over a whole row: what a kernel does that forgets the boundaries; only the past leaks."""
    return Visibility(torch.zeros_like(seen.segments), True)


def wide_prefix(seen: Visibility) -> Visibility:
    """The prefix is one token too long."""
    if seen.open is None:
        return seen
    return Visibility(seen.segments, True, open=seen.open | seen.open.roll(1, 1))


def with_padding(seen: Visibility) -> Visibility:
    """Padding belongs to the sample before it."""
    return Visibility(torch.where(seen.segments < 0, seen.segments.amax(1, True), seen.segments), seen.causal)


LEAKS = {
    one_piece: [
        "all: other samples",
        "causal: other samples",
        "prefix: other samples",
        "prefix: later tokens",  # by way of the next sample's prefix
    ],
    two_sided: ["causal: later tokens", "prefix: later tokens"],
    past_of_all: ["all: other samples", "causal: other samples", "prefix: other samples"],
    wide_prefix: ["prefix: later tokens"],
    with_padding: ["all: padding"],
}


@pytest.mark.parametrize("change", LEAKS, ids=lambda change: change.__name__)
@pytest.mark.parametrize("family", ["bert", "modernbert", "mosaicbert"])
def test_each_kind_of_leak_is_found(
    family: str, change: Callable[[Visibility], Visibility], seeing: Callable[..., None]
) -> None:
    encoder = isolate(tiny_model(family))
    seeing(change)
    for length in LENGTHS[1:]:
        assert leaks(encoder, length=length) == LEAKS[change]
        for kind in KINDS:
            assert leaks(encoder, [kind], length) == [x for x in LEAKS[change] if x.startswith(kind)]
    made = Encoder(encoder.model)
    for kind in {x.partition(":")[0] for x in LEAKS[change]}:
        with pytest.raises(ClozeError, match=r"see what they must not .*in rows of 64 tokens on cpu in fp32"):
            check_networks(made, [kind], [64])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("by", [1, -1])
def test_a_leak_by_one_place_is_found_in_both_directions(family: str, by: int) -> None:
    """To the next sample, or from it; the future leaks from behind only."""
    encoder = isolate(shifts(tiny_model(family), by))
    assert not encoder.isolates
    made = Encoder(encoder.model)
    found = leaks(made)
    assert [x for x in found if "other samples" in x] == [f"{kind}: other samples" for kind in KINDS]
    assert ("causal: later tokens" in found) == ("prefix: later tokens" in found) == (by == -1)


def test_padding_that_is_seen_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """FNet mixes all places and asks no mask."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("fnet", vocab_size=96, hidden_size=32, num_hidden_layers=2, pad_token_id=3)
    encoder = isolate(FNetForMaskedLM(config))
    assert not encoder.isolates
    assert "FNetForMaskedLM: padding changes what it makes of a text" in caplog.text
    caplog.clear()
    assert not isolate(tiny_model("deberta-v2")).isolates
    assert caplog.text == ""


# Families of transformers, in the sizes that `AutoConfig` lets them have.
TAKE_OURS = (
    "albert bert camembert data2vec-text distilbert electra ernie gte jina_embeddings_v3 modernbert "
    "modernvbert nomic_bert roberta roberta-prelayernorm roc_bert"
)
KEEP_THEIRS = (
    "big_bird convbert deberta deberta-v2 flaubert fnet ibert layoutlm longformer luke megatron-bert mpnet "
    "mra nystromformer rembert roformer tapas"
)
SHOW_PADDING = ("convbert", "fnet", "nystromformer")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", [*TAKE_OURS.split(), *KEEP_THEIRS.split()])
def test_a_stock_family(family: str, caplog: pytest.LogCaptureFixture) -> None:
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 322, "pad_token_id": 1}
    config = AutoConfig.for_model(family)
    for name, value in sizes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    encoder = isolate(AutoModelForMaskedLM.from_config(config).eval())
    assert encoder.isolates == (family in TAKE_OURS.split())
    assert leaks(encoder) == (["all: padding"] if family in SHOW_PADDING else [])
    assert ("padding changes" in caplog.text) == (family in SHOW_PADDING)


def test_where_it_stands_in_a_batch_is_no_leak() -> None:
    """The control: results that depend on their row are compared with the same row, and none is noticed."""

    def run(ids: Tensor) -> Tensor:
        return (ids.float() * 0.5)[..., None] + torch.arange(len(ids))[:, None, None]

    blocks = torch.tensor([0, 0, 1, 1, 2])
    assert torch.equal(noticed(run, blocks, 96), torch.arange(3)[:, None] == blocks)


# -- encoder-decoders --------------------------------------------------------------------------------------


class Answering(Visibility):
    """Of the decoder: its past is not all that it sees."""

    def __init__(self, segments: Tensor, causal: bool = False):
        super().__init__(segments, False)


class Mixed(Visibility):
    """All samples of a row are one."""

    def __init__(self, segments: Tensor, causal: bool = False):
        super().__init__(torch.where(segments < 0, -1, 0), causal)


@pytest.mark.parametrize(
    ("broken", "found"),
    [(Answering, ["enc_dec: later tokens"]), (Mixed, ["enc_dec: other samples"])],
)
def test_leaks_of_an_encoder_decoder(broken: Any, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = wrap(tiny_t5())
    assert isinstance(made, EncoderDecoder)
    for length in LENGTHS:
        assert encoder_decoder.leaks(made, length) == []
    with monkeypatch.context() as patch:
        patch.setattr(encoder_decoder, "Visibility", broken)
        assert encoder_decoder.leaks(made) == found
        with pytest.raises(ClozeError, match=found[0]):
            wrap(tiny_t5())
        with pytest.raises(ClozeError, match=found[0]):
            check_networks(made, ["enc_dec"], [64])
    cross = made.model.get_decoder().block[0].layer[1].EncDecAttention
    forward = cross.forward
    monkeypatch.setattr(cross, "forward", lambda *a, **k: forward(*a, **(k | {"mask": None})))
    assert "enc_dec: other samples" in encoder_decoder.leaks(made)


# -- as recipes are trained --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_every_network_of_every_recipe_is_probed_as_it_is_trained(
    name: str, corpus: Path, trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {"data": {"sources": [str(corpus)]}}
    if name == "adapt":
        values["model"] = {"path": str(trained.folder / "model")}
    recipe = load_recipe(name, small(name), values)
    method = assemble(recipe, open_text(recipe, [], None), torch.device("cpu")).method
    networks = [m for m in method.modules() if isinstance(m, Encoder | EncoderDecoder)]
    assert len(networks) == (2 if name in ("electra", "mcl") else 1)
    probed = []
    for owner in (module, encoder_decoder):
        run = owner.leaks
        monkeypatch.setattr(owner, "leaks", lambda n, *a, run=run: probed.append((n, *a)) or run(n, *a))
    training = [m.training for m in method.modules()]
    check_networks(method, method.sees, {64, 48})
    assert [m.training for m in method.modules()] == training
    kinds = {choices.visibility.kind for choices in recipe.methods().values()}
    for network in networks:
        seen = [args for found, *args in probed if found is network]
        assert sorted(args[-1] for args in seen) == [48, 64]
        assert kinds == {"enc_dec"} or all(set(args[0]) == kinds for args in seen)


def test_a_run_with_a_kernel_that_leaks_does_not_start(
    train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is right in float32, where the model is made, and wrong in the run's precision."""
    mask = Visibility.mask

    def wrong(self: Visibility, reach: int | None) -> Tensor | None:
        return None if torch.is_autocast_enabled("cpu") else mask(self, reach)

    monkeypatch.setattr(Visibility, "mask", wrong)
    with pytest.raises(
        ClozeError, match=r"BertForMaskedLM: tokens see what they must not .*in bf16"
    ) as error:
        train(tmp_path / "run", "training.precision=bf16")
    assert "\n" not in str(error.value)
    train(tmp_path / "other")


# -- attention under another name, and masks ----------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_another_attention_under_an_encoder_is_an_error(family: str, tmp_path: Path) -> None:
    """A checkpoint holds no name of an attention, and another one ignores what ours is told."""
    encoder = isolate(tiny_model(family))
    places = torch.arange(2)
    view = module.View(*(torch.tensor([[7, 8, 9, 10]]) * k for k in (1, 0, 0, 0)))
    wanted = encoder(view, places).features
    encoder.model.save_pretrained(tmp_path)
    again = type(encoder.model).from_pretrained(tmp_path)
    assert again.config._attn_implementation != NAME
    encoder.model = again
    with pytest.raises(ClozeError, match="cloze's attention and now has 'sdpa'"):
        Encoder.forward(encoder, view, places)
    with sparse(encoder), pytest.raises(ClozeError, match="see each other"):
        encoder(view, places)
    assert torch.equal(isolate(again)(view, places).features, wanted)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [0, 1])
def test_a_mask_that_is_handed_to_our_attention_is_an_error(family: str, value: int) -> None:
    """A 2-D one, even of ones, and a 4-D one: transformers drops the first where nobody takes it."""
    model: Any = isolate(tiny_model(family)).model
    ids = torch.tensor([[7, 8, 9, 10]])
    seen = Visibility(torch.zeros_like(ids))
    mask = torch.ones_like(ids)
    mask[0, -1] = value
    for given in (mask, mask.bool()[:, None, None].expand(1, 1, 4, 4)):
        with pytest.raises(ClozeError, match="attention_mask"):
            model(input_ids=ids, attention_mask=given, visibility=seen)
    with pytest.raises(ClozeError, match="without `visibility`"):
        model(input_ids=ids)
    assert isinstance(model(input_ids=ids, visibility=seen).logits, Tensor)
