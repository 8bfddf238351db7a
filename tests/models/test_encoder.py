"""Packed samples equal the stock model on each sample alone, and what cannot be isolated is found."""

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import PAD, SIZE, make_samples, pack, tiny_model, vocabulary, widest
from models.kernels import force
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from cloze.corruption.replace import Replace, replace
from cloze.corruption.view import View
from cloze.data.batch import Batch, positions
from cloze.errors import ClozeError
from cloze.masking.uniform import Uniform
from cloze.models.attention import NAME
from cloze.models.encoder import Encoder, differs, isolate, leaks, position_offset
from cloze.models.visibility import Visibility

ISOLATING = ["bert", "roberta", "roberta-prelayernorm", "electra", "modernbert", "eurobert", "mosaicbert"]
NOT_ISOLATING = ["deberta-v2", "mpnet"]
LENGTH = 320
SIZES = [[170, 90, 40], [316], [1, 2, 60]]  # one much longer than ModernBERT's window, and padding


def packed() -> Batch:
    rows = []
    for seed, sizes in enumerate(SIZES):
        rows.append(make_samples(sizes, seed + 1))
    return pack(rows, LENGTH)


def view_of(batch: Batch, causal: bool = False) -> View:
    plan = Uniform().plan(batch, 0.3, seed=0)
    ids = replace(batch, plan, Replace(), vocabulary(), seed=0).ids
    return View.of(batch, ids, causal)


def stock(model: PreTrainedModel, view: View, **arguments: Any) -> tuple[Tensor, Tensor]:
    """Last hidden states and logits of every token, each sample alone and without any padding."""
    hidden = torch.zeros(view.ids.numel(), model.config.hidden_size, dtype=model.dtype)
    logits = torch.zeros(view.ids.numel(), SIZE, dtype=model.dtype)
    for number in range(int(view.segments.max()) + 1):
        inside = view.segments.flatten() == number
        out = model(input_ids=view.ids.flatten()[inside][None], output_hidden_states=True, **arguments)
        body = model.base_model(input_ids=view.ids.flatten()[inside][None], **arguments)
        hidden = hidden.index_put((inside.nonzero().squeeze(1),), body.last_hidden_state[0])
        logits = logits.index_put((inside.nonzero().squeeze(1),), out.logits[0])
    return hidden, logits


def ours(encoder: Encoder, view: View, places: Tensor) -> tuple[Tensor, Tensor]:
    out = encoder(view, places)
    layer = encoder.vocabulary
    return out.hidden.flatten(0, 1), torch.nn.functional.linear(out.features, layer.weight, layer.bias)


def usable(family: str, kernel: str) -> str:
    """`varlen_attn` adds nothing to scores, so ALiBi takes the next one."""
    return "masked" if (family, kernel) == ("mosaicbert", "varlen") else kernel


def text(view: View) -> Tensor:
    return (view.segments.flatten() >= 0).nonzero().squeeze(1)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("implementation", "kernel"), [("sdpa", None), ("eager", None), ("sdpa", "varlen"), ("sdpa", "flex")]
)
@pytest.mark.parametrize("family", ISOLATING)
def test_packed_samples_are_as_alone_in_the_stock_model(
    family: str, implementation: str, kernel: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    theirs = copy.deepcopy(model)
    theirs.set_attn_implementation(implementation)
    encoder = isolate(model)
    assert encoder.isolates
    view = view_of(packed())
    places = text(view)
    used = force(monkeypatch, usable(family, kernel)) if kernel else []
    with torch.no_grad():
        hidden, logits = ours(encoder, view, places)
        want_hidden, want_logits = stock(theirs, view)
        assert len(used) == (model.config.num_hidden_layers if kernel else 0)
        assert (hidden[places] - want_hidden[places]).abs().max() < 1e-5
        assert (logits - want_logits[places]).abs().max() < 1e-5
        # The control: without its segments the row is one text, and that is another result.
        one = View(view.ids, torch.zeros_like(view.segments), view.positions, view.origin)
        mixed, _ = ours(encoder, one, places)
        assert (mixed[:LENGTH] - want_hidden[:LENGTH]).abs().max() > 1e-3


@pytest.mark.parametrize("kernel", [None, "varlen"])
@pytest.mark.parametrize("family", ISOLATING)
def test_gradients_are_those_of_the_stock_model(
    family: str, kernel: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family).double()
    theirs = copy.deepcopy(model)
    encoder = isolate(model)
    if kernel:
        force(monkeypatch, usable(family, kernel))
    view = view_of(packed())
    places = text(view)[::3]
    factors = torch.randn(
        places.numel(), SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    (ours(encoder, view, places)[1] * factors).sum().backward()
    (stock(theirs, view)[1][places] * factors).sum().backward()
    wanted = dict(theirs.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in wanted.values() if p.grad is not None)
    compared = 0
    for name, parameter in model.named_parameters():
        if wanted[name].grad is None:
            assert parameter.grad is None or float(parameter.grad.abs().max()) == 0.0, name
            continue
        assert parameter.grad is not None, name
        assert float((parameter.grad - wanted[name].grad).abs().max()) < 1e-9 * largest, name
        compared += 1
    assert compared > 10


@pytest.mark.parametrize("family", ISOLATING)
def test_the_future_does_not_leak_at_all(family: str) -> None:
    encoder = isolate(tiny_model(family))
    batch = packed()
    cut = 100
    ids = batch.ids.clone()
    ids[:, cut:] = (ids[:, cut:] + 17) % SIZE
    with torch.no_grad():
        places = torch.arange(3)
        before, after = (encoder(View.of(batch, i, causal=True), places).hidden for i in (batch.ids, ids))
        assert torch.equal(before[:, :cut], after[:, :cut])
        assert (before[:, cut:] != after[:, cut:]).any()
        both = encoder(View.of(batch, ids), places).hidden
        assert not torch.equal(both[:, :cut], encoder(View.of(batch, batch.ids), places).hidden[:, :cut])


@pytest.mark.parametrize("family", ISOLATING)
def test_behind_a_prefix_the_future_does_not_leak_at_all(family: str) -> None:
    """Each token of a packed row is changed once: who has noticed saw it."""
    encoder = isolate(tiny_model(family))
    batch = pack([make_samples([7, 5], 1)], 18)
    open = batch.segments >= 0
    open = open & (positions(batch.segments) < torch.where(batch.segments == 0, 4, 3))
    causal = View.of(batch, batch.ids, causal=True)

    def hidden(ids: Tensor, open: Tensor | None) -> Tensor:
        with torch.no_grad():
            return encoder(dataclasses.replace(causal, ids=ids, open=open), torch.arange(3)).hidden[0]

    before = hidden(batch.ids, open)
    for key in range(16):
        ids = batch.ids.clone()
        ids[0, key] = (ids[0, key] + 17) % SIZE
        noticed = (hidden(ids, open) != before).any(1)
        same = batch.segments[0] == batch.segments[0, key]
        allowed = same & (torch.arange(18) >= key) | (same & open[0, key])
        assert not noticed[~allowed].any()
        assert noticed[key]
        assert noticed[same & open[0]].all() == open[0, key]  # from both sides within the prefix
    assert not torch.equal(hidden(batch.ids, None), before)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kernel", [None, "varlen", "flex"])
@pytest.mark.parametrize("family", ISOLATING)
def test_causal_packed_is_causal_alone(
    family: str, kernel: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ModernBERT keeps its local window: a token far back is not seen by the local layers."""
    encoder = isolate(tiny_model(family))
    batch = packed()
    with monkeypatch.context() as patch, torch.no_grad():
        if kernel:  # for the packed ones; the single ones by this CPU's own
            force(patch, usable(family, kernel))
        whole = encoder(View.of(batch, batch.ids, causal=True), torch.arange(2)).hidden.flatten(0, 1)
    with torch.no_grad():
        for number in range(batch.samples):
            inside = batch.segments.flatten() == number
            ids = batch.ids.flatten()[inside][None]
            segments = torch.zeros_like(ids)
            alone = View(ids, segments, positions(segments), segments, causal=True)
            assert (encoder(alone, torch.arange(2)).hidden[0] - whole[inside]).abs().max() < 1e-5


@pytest.mark.parametrize("family", NOT_ISOLATING)
def test_a_family_that_ignores_our_attention_is_found_and_padded(family: str) -> None:
    model = tiny_model(family)
    theirs = copy.deepcopy(model)
    encoder = isolate(model)
    assert not encoder.isolates
    assert model.config._attn_implementation != NAME
    samples = [*make_samples([300, 20]), *make_samples([1], seed=1)]
    batch = pack([[s] for s in samples], LENGTH)
    ids = torch.where(batch.ids == PAD, model.config.pad_token_id, batch.ids + 2 * (batch.ids < 2)) % SIZE
    view = View.of(batch, ids)
    places = text(view)
    with torch.no_grad():
        hidden, logits = ours(encoder, view, places)
        want_hidden, want_logits = stock(theirs, view)
    assert (hidden[places] - want_hidden[places]).abs().max() < 1e-5
    assert (logits - want_logits[places]).abs().max() < 1e-5
    with pytest.raises(ClozeError, match="causal"):
        encoder(View.of(batch, ids, causal=True), places)


def test_a_family_whose_positions_are_not_known_is_found() -> None:
    """RoBERTa with positions from 0 does not leak, but is not RoBERTa; the probe falls back."""
    model = tiny_model("roberta")
    encoder = Encoder(model)
    assert not differs(encoder)
    encoder.offset = 0
    assert not leaks(encoder)
    assert differs(encoder)


def test_a_head_that_is_more_than_a_layer_is_refused() -> None:
    model = tiny_model("bert")
    forward = model.cls.forward
    model.cls.forward = lambda hidden: 2.0 * forward(hidden)  # as logit scaling and soft caps do
    with pytest.raises(ClozeError, match="BertForMaskedLM"):
        isolate(model)


def test_a_model_without_a_vocabulary_layer_is_refused() -> None:
    with pytest.raises(ClozeError, match="BertModel"):
        isolate(tiny_model("bert").base_model)


@pytest.mark.parametrize("family", ISOLATING)
def test_probes_leave_the_model_as_it_was(family: str) -> None:
    model = tiny_model(family)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for training in (True, False):  # else dropout would go on or off
        encoder = isolate(model.train(training))
        assert {m.training for m in encoder.modules()} == {training}
    assert model.config._attn_implementation == NAME
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert encoder.vocabulary(torch.zeros(1, encoder.vocabulary.weight.shape[1])).shape == (1, SIZE)


@pytest.mark.parametrize("longest", [8, 9, 30, 64])
def test_probes_fit_short_models_and_padding_may_be_longer(longest: int) -> None:
    encoder = isolate(tiny_model("bert", max_position_embeddings=longest))
    assert encoder.isolates
    assert encoder.longest() == longest
    batch = pack([make_samples([longest - 2])], length=4 * longest)
    out = encoder(View.of(batch, batch.ids), torch.arange(2))
    assert out.hidden.shape == (1, 4 * longest, 32)
    assert out.hidden[0, :longest].isfinite().all()


@pytest.mark.parametrize(
    ("family", "first"),
    [("roberta", 2), ("roberta-prelayernorm", 2), ("mpnet", 2), ("bert", 0), ("modernbert", 0)],
)
def test_positions_start_behind_the_padding_index(family: str, first: int) -> None:
    model = tiny_model(family)
    encoder = isolate(model)
    assert position_offset(model.config) == encoder.offset == first
    assert encoder.longest() == 322 - first
    n = encoder.longest()
    (sample,) = make_samples([n - 2])
    batch = pack([[sample]], n)
    encoder(View.of(batch, (batch.ids + 2) % SIZE), torch.arange(1))  # the longest sample fits


def test_features_only_where_asked_and_none_at_all() -> None:
    encoder = isolate(tiny_model("electra"))
    view = view_of(packed())
    with torch.no_grad(), widest(SIZE) as wide:
        some = encoder(view, torch.tensor([700, 3, 3]))
        nothing = encoder(view, torch.zeros(0, dtype=torch.long))
    assert some.hidden.shape == (3, LENGTH, 32)
    assert some.features.shape == (3, 16)  # ELECTRA's head is narrower than its body
    assert torch.equal(some.features[1], some.features[2])
    assert nothing.features.shape == (0, 16)
    assert wide.rows <= 16 + SIZE  # no logits, not even at the places
    with torch.no_grad(), widest(SIZE) as wide:
        tiny_model("electra")(input_ids=view.ids)
    assert wide.rows == 3 * LENGTH  # the control: what the stock model makes


def test_the_model_itself_still_gives_logits_afterwards() -> None:
    model = tiny_model("bert")
    theirs = copy.deepcopy(model)
    encoder = isolate(model)
    encoder(view_of(packed()), torch.arange(3))
    with pytest.raises(IndexError):
        encoder(view_of(packed()), torch.tensor([10**6]))  # an error inside must not leave the hooks
    ids = torch.arange(20)[None]
    with torch.no_grad():
        got = model(input_ids=ids, visibility=Visibility(torch.zeros_like(ids))).logits
        assert got.shape == (1, 20, SIZE)
        assert (got - theirs(input_ids=ids).logits).abs().max() < 1e-5


@pytest.mark.parametrize("family", ISOLATING)
def test_our_attention_is_not_silently_misused(family: str) -> None:
    model = isolate(tiny_model(family)).model
    ids = torch.arange(5, 25)[None]
    with pytest.raises(ClozeError, match="visibility"):
        model(input_ids=ids)
    with pytest.raises(ClozeError, match="attention_mask"):
        model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            visibility=Visibility(torch.zeros_like(ids)),
        )


@pytest.mark.parametrize("family", [*ISOLATING, *NOT_ISOLATING])
def test_a_saved_model_is_a_stock_model_again(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        before = copy.deepcopy(model)(input_ids=ids).logits
    encoder = isolate(model)
    encoder.model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    assert loaded.config._attn_implementation in ("sdpa", "eager")
    with torch.no_grad():
        assert (loaded(input_ids=ids).logits - before).abs().max() < 1e-5


@pytest.mark.parametrize("family", ISOLATING)
def test_ties_are_kept(family: str) -> None:
    model = tiny_model(family)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    encoder = isolate(model)
    assert tied == (encoder.vocabulary.weight is model.get_input_embeddings().weight)
    assert tied or family == "eurobert"


def test_isolating_says_nothing_by_itself(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        for family in (*ISOLATING, *NOT_ISOLATING):
            isolate(tiny_model(family))
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")
