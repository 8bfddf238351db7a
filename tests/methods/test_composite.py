"""Several methods in one run: who gets which row, and what their losses add up to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import SIZE, by_sample, make_samples, pack, tiny_model, vocabulary
from torch import Tensor

from cloze.corruption.replace import Replace
from cloze.data.batch import Batch
from cloze.errors import ClozeError
from cloze.masking.base import Evidence
from cloze.masking.fully_explored import FullyExplored
from cloze.masking.mapnet import MapNet
from cloze.masking.nothing import Nothing
from cloze.masking.rate import RateSchedule
from cloze.masking.uniform import Uniform
from cloze.methods.build import Choices, build_method, compose
from cloze.methods.composite import Composite, Mixed, allot
from cloze.methods.objectives import NextTokenObjective
from cloze.methods.visibility import AllVisible, CausalVisible
from cloze.models.encoder import isolate

MLM = Choices(Uniform(rate=0.3))
CAUSAL = Choices(Nothing(), Replace(), CausalVisible(), NextTokenObjective())
SHIFTED = Choices(Uniform(rate=0.3), Replace(), AllVisible(), NextTokenObjective(targets="hidden"))
Uses = list[tuple[float, Mapping[str, float]]]
QUARTER: Uses = [(1.0, {"causal": 0.25, "main": 0.75})]


def composite(uses: Uses, family: str = "bert", **choices: Choices) -> Composite:
    encoder = isolate(tiny_model(family).double())
    named = {"main": MLM, "causal": CAUSAL} | choices
    methods = {name: build_method(c, encoder, vocabulary(), seed=5) for name, c in named.items()}
    made = compose(methods, uses)
    assert isinstance(made, Composite)
    return made


def rows(count: int = 8, place: int = 0) -> Batch:
    sizes = [[20, 9], [30], [1, 2, 3], [31], [5, 5], [12, 17], [28], [7]]
    texts = [make_samples(sizes[i % 8], i + 1) for i in range(count)]
    return replace(pack(texts, 34), place=place)


# -- who gets a row ---------------------------------------------------------------------------------------


def test_sixteen_rows_in_a_row_have_one_sixteenth() -> None:
    numbers = allot(torch.arange(64 * 16), [1 / 16, 15 / 16]).view(64, 16)
    assert ((numbers == 0).sum(1) == 1).all()
    thirds = allot(torch.arange(30_000), [1 / 3, 1 / 6, 1 / 2])
    for number, share in enumerate((1 / 3, 1 / 6, 1 / 2)):
        mine = (thirds == number).double()
        assert float(mine.mean()) == pytest.approx(share, abs=1e-3)
        # In every stretch of 24 rows the share is met to two rows.
        assert (mine.unfold(0, 24, 1).sum(1) - 24 * share).abs().max() <= 2.0


def test_a_row_is_given_by_its_place_alone() -> None:
    places = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    shares = [0.2, 0.5, 0.3]
    whole = allot(torch.arange(500), shares)
    assert torch.equal(allot(places, shares), whole[places])
    assert torch.equal(torch.cat([allot(part, shares) for part in places.split(7)]), whole[places])
    assert allot(torch.arange(9), [1.0]).tolist() == [0] * 9


def test_rows_go_to_the_methods_whole_and_each_once() -> None:
    made, batch = composite(QUARTER), rows(8, place=8)
    work = made.prepare(batch, 0.0)
    assert isinstance(work, Mixed)
    assert work.batch is batch
    counts = {name: part.batch.ids.shape[0] for name, part in work.parts.items()}
    assert counts == {"causal": 2, "main": 6}
    seen = torch.cat([part.batch.ids for part in work.parts.values()])
    assert sorted(seen.tolist()) == sorted(batch.ids.tolist())
    assert int(work.tokens) == sum(int(part.tokens) for part in work.parts.values())
    assert int(work.predicted) == sum(int(part.predicted) for part in work.parts.values())
    # Masks are those of the method alone: keyed by sample, whoever else is in the batch.
    alone = by_sample(batch, made.main.prepare(batch, 0.0).plan.hidden)
    mixed = by_sample(work.parts["main"].batch, work.parts["main"].plan.hidden)
    assert all(values == alone[key] for key, values in mixed.items() if values)
    assert sum(map(bool, mixed.values())) >= 6


def test_a_step_without_a_row_of_one_goes_on() -> None:
    made = composite(QUARTER)
    work = made.prepare(rows(1, place=1), 0.0)
    assert set(work.parts) == {"main"}
    assert made.weights(work).keys() == {"main/mlm"}
    assert made(work).sums.keys() == {"main/mlm"}


# -- what is trained --------------------------------------------------------------------------------------


def gradient(made: Any, works: list[Any], progress: float = 0.0) -> dict[str, Tensor]:
    """As the loop adds it up."""
    made.zero_grad()
    factors = made.coefficients(progress)
    totals = {t: sum(float(made.weights(w).get(t, 0.0)) for w in works) for t in factors}
    for work in works:
        parts = [factors[t] * value / totals[t] for t, value in made(work).sums.items()]
        torch.stack(parts).sum().backward()
    return {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}


def far(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[n] - b[n]).abs().max()) for n in a) / max(float(x.abs().max()) for x in b.values())


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_loss_is_the_sum_of_shares_of_means(family: str) -> None:
    """By tokens: neither the number of predictions nor of micro-batches weighs one method against another."""
    made = composite(QUARTER, family)
    batch = rows()
    found = gradient(made, [made.prepare(batch, 0.0)])
    work = made.prepare(batch, 0.0)
    wanted: dict[str, Tensor] = {}
    for name, share in {"causal": 0.25, "main": 0.75}.items():
        method, part = made.named()[name], work.parts[name]
        (term,) = method.coefficients(0.0)
        made.zero_grad()
        (share * method(part).sums[term] / method.weights(part)[term]).backward()
        for n, p in made.named_parameters():
            if p.grad is not None:
                wanted[n] = wanted.get(n, 0.0) + p.grad
    assert found.keys() == wanted.keys()
    assert far(found, wanted) < 1e-12
    ranges = ((0, 3), (3, 4), (4, 8))
    cut = [made.prepare(replace(batch.take(torch.arange(a, b)), place=a), 0.0) for a, b in ranges]
    assert far(gradient(made, cut), wanted) < 1e-12
    # The control: a mean over ranks of their own means, one of which has all of the causal rows.
    means = [gradient(made, [w]) for w in cut]
    mixed = {n: torch.stack([m[n] for m in means]).mean(0) for n in wanted}
    assert far(mixed, wanted) > 1e-3


def test_stages_come_one_after_the_other() -> None:
    made = composite([(0.25, {"causal": 1.0}), (0.5, {"main": 1.0}), (0.25, {"causal": 0.5, "main": 0.5})])
    assert made.stages == [0.25, 0.5, 0.25]
    terms = {p: made.coefficients(p) for p in (0.0, 0.24, 0.25, 0.74, 0.75, 1.0)}
    assert terms[0.0] == terms[0.24] == {"causal/next_token": 1.0}
    assert terms[0.25] == terms[0.74] == {"main/mlm": 1.0}
    assert terms[0.75] == terms[1.0] == {"causal/next_token": 0.5, "main/mlm": 0.5}
    for progress, names in ((0.0, {"causal"}), (0.5, {"main"}), (0.9, {"causal", "main"})):
        assert set(made.prepare(rows(), progress).parts) == names
    assert [made.rate(p) for p in (0.0, 0.5, 0.9)] == [0.0, 0.3, 0.3]


def test_a_schedule_of_the_rate_counts_the_whole_run() -> None:
    schedule = Choices(Uniform(rate=RateSchedule(start=0.5, end=0.1)))
    made = composite([(0.5, {"causal": 1.0}), (0.5, {"main": 1.0})], main=schedule)
    assert made.rate(0.75) == pytest.approx(0.2)


def test_they_share_one_model() -> None:
    made = composite(QUARTER)
    own = {id(p) for p in made.main.parameters()}
    assert {id(p) for p in made.parameters()} == own
    assert len(list(made.named_parameters())) == len(own)


def test_each_learns_from_its_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = composite(QUARTER, main=Choices(MapNet(power=1.0)))
    shown: list[Any] = []
    monkeypatch.setattr(made.main.masking, "observe", shown.extend)
    works = [made.prepare(rows(1, place=0), 0.0), made.prepare(rows(3, place=1), 0.0)]
    made.observe(works, [made(work).feedback for work in works])
    assert [s.batch.ids.shape[0] for s in shown] == [3]  # the first micro-batch was causal
    assert {"loss", "guess", "residual", "hidden_gradient"} == shown[0].scores.keys()
    assert torch.equal(shown[0].places, works[1].parts["main"].targets)
    assert made.decide(Evidence(1.0, 0.3, 1.0, 1.0)) == []
    assert "proposal_power" in made.log()
    assert made.scores(rows()) is not None


# -- what goes out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("main", "reading", "out"),
    [
        (MLM, "masked", "BertForMaskedLM"),
        (SHIFTED, "causal", "BertLMHeadModel"),
        (CAUSAL, "causal", "BertLMHeadModel"),
    ],
)
def test_a_shifted_model_goes_out_as_a_decoder(main: Choices, reading: str, out: str) -> None:
    made = composite(QUARTER, main=main)
    assert made.reading == reading
    assert type(made.export()).__name__ == out


def test_what_cannot_go_out_is_refused() -> None:
    encoder = isolate(tiny_model("bert"))
    seen = {"main": build_method(SHIFTED, encoder, vocabulary())}
    with pytest.raises(ClozeError, match="no class of transformers reads such a model"):
        compose(seen, [(1.0, {"main": 1.0})])
    backwards = build_method(replace(MLM, visibility=CausalVisible()), encoder, vocabulary())
    with pytest.raises(ClozeError, match="mlm goes with visibility all"):
        compose({"main": backwards}, [(1.0, {"main": 1.0})])
    other = build_method(CAUSAL, isolate(tiny_model("eurobert")), vocabulary())
    with pytest.raises(ClozeError, match=r"eurobert: .* goes out as a decoder"):
        compose({"main": other}, [(1.0, {"main": 1.0})])
    with pytest.raises(ClozeError, match=r"DebertaV2ForMaskedLM cannot be run so that"):
        build_method(CAUSAL, isolate(tiny_model("deberta-v2")), vocabulary())


def test_copies_of_a_row_are_refused() -> None:
    with pytest.raises(ClozeError, match="main: 2 masked copies of a row"):
        composite(QUARTER, main=Choices(FullyExplored(same_step=2)))


# -- one checkpoint, three read-outs ----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_one_model_three_readings_and_no_future_in_the_causal_one(family: str) -> None:
    made = composite(QUARTER, family, main=SHIFTED).eval()
    batch = rows()
    causal, masked = made.named()["causal"], made.main
    work = causal.prepare(batch, 0.0)
    losses = causal(work).feedback["loss"]
    # Change the last third of each row's tokens: what is predicted before it does not move by a bit.
    edge = 24
    behind = batch.maskable & (torch.arange(34) >= edge)
    later = torch.where(behind, (batch.ids + 7) % (SIZE - 5) + 5, batch.ids)
    moved = causal(causal.prepare(replace(batch, ids=later), 0.0)).feedback["loss"]
    before = work.targets % 34 < edge
    assert torch.equal(moved[before], losses[before])
    assert not torch.equal(moved[~before], losses[~before])
    # The masked reading of the same weights does look ahead.
    hidden = masked.prepare(batch, 0.0)
    other = replace(hidden, views=(replace(hidden.views[0], ids=later),))
    one, two = (masked(w).feedback["loss"] for w in (hidden, other))
    early = hidden.targets % 34 < edge
    assert not torch.equal(one[early], two[early])
