"""An encoder-decoder in packed rows: who sees whom, and the logits of the stock model."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny_t5
from torch import Tensor

from cloze.corruption.view import View
from cloze.errors import ClozeError
from cloze.models import encoder_decoder
from cloze.models.encoder import isolate
from cloze.models.encoder_decoder import EncoderDecoder, differs, leaks, wrap


def view(sizes: list[int], seed: int, causal: bool = False, padding: int = 0) -> View:
    """One row of samples of so many tokens."""
    segments = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    segments = torch.cat([segments, torch.full((padding,), -1)])
    place = torch.cat([*(torch.arange(n) for n in sizes), torch.zeros(padding, dtype=torch.int64)])
    ids = torch.randint(5, 96, (segments.numel(),), generator=torch.Generator().manual_seed(seed))
    return View(ids[None], segments[None], place[None], place[None], causal=causal)


def part(whole: View, number: int) -> View:
    inside = whole.segments == number
    ids, place = whole.ids[inside][None], whole.positions[inside][None]
    return View(ids, torch.zeros_like(ids), place, place, causal=whole.causal)


def test_packed_samples_give_what_separate_ones_give() -> None:
    made = wrap(tiny_t5())
    assert isinstance(made, EncoderDecoder)
    given, answer = view([9, 4, 12], 1, padding=3), view([3, 6, 5], 2, causal=True, padding=2)
    with torch.no_grad():
        packed = made(given, answer, torch.arange(16)).hidden[0]
        assert bool(torch.isfinite(packed).all())
        for number in range(3):
            one, two = part(given, number), part(answer, number)
            alone = made(one, two, torch.arange(1))
            mine = packed[answer.segments[0] == number]
            assert (mine - alone.hidden[0]).abs().max() < 1e-5
            stock = made.model(input_ids=one.ids, decoder_input_ids=two.ids).logits[0]
            features = made(one, two, torch.arange(two.ids.numel())).features
            assert (features @ made.vocabulary.weight.T - stock).abs().max() < 1e-4


def seen(made: EncoderDecoder, given: View, answer: View) -> tuple[Tensor, Tensor]:
    """[answer, given] and [answer, answer] bool: does the output (row) depend on the token (column)?"""
    tables = []
    for number in range(2):
        columns = []
        for place in range((given, answer)[number].ids.shape[1]):
            views = [given, answer]
            changed = views[number].ids.clone()
            changed[0, place] = (changed[0, place] + 7) % 90 + 5
            old = views[number]
            views[number] = View(changed, old.segments, old.positions, old.origin, old.causal)
            with torch.no_grad():
                a, b = (made(*v, torch.arange(1)).hidden[0] for v in ((given, answer), views))
            columns.append((a - b).abs().amax(1) > 1e-7)
        tables.append(torch.stack(columns, 1))
    return tables[0], tables[1]


def test_an_output_sees_its_own_text_whole_and_its_own_past() -> None:
    made = EncoderDecoder(tiny_t5())
    given, answer = view([4, 3], 3), view([3, 4], 4, causal=True)
    of_given, of_answer = seen(made, given, answer)
    same = answer.segments[0][:, None] == given.segments[0][None]
    assert torch.equal(of_given, same)
    past = torch.arange(7)[:, None] >= torch.arange(7)[None]
    assert torch.equal(of_answer, past & (answer.segments[0][:, None] == answer.segments[0][None]))


def test_probes_find_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    made = EncoderDecoder(tiny_t5())
    assert not leaks(made) and not differs(made)
    with monkeypatch.context() as patch:
        patch.setattr(encoder_decoder, "HIDDEN", 0.0)
        assert leaks(made)
        with pytest.raises(ClozeError, match="other samples; enc_dec: later tokens; enc_dec: padding"):
            wrap(tiny_t5())


def test_another_head_is_found() -> None:
    made = EncoderDecoder(tiny_t5())
    made.model.lm_head.register_forward_hook(lambda _module, _inputs, logits: 2.0 * logits)
    assert differs(made)


def test_it_is_not_read_as_an_encoder() -> None:
    with pytest.raises(ClozeError, match="cannot be read as an encoder"):
        isolate(tiny_t5())
