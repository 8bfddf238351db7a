"""Token prediction: sums with known weights, equal however the batch is cut."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import MASK, SIZE, make_samples, pack, rows_of, tiny_model, vocabulary, widest
from torch import Tensor

from cloze.corruption.replace import Replace
from cloze.data.batch import Batch
from cloze.masking.auto import Auto
from cloze.masking.base import Evidence, Masking
from cloze.masking.difficulty import Difficulty
from cloze.masking.frequency import Frequency
from cloze.masking.fully_explored import FullyExplored
from cloze.masking.mapnet import MapNet
from cloze.masking.nothing import Nothing
from cloze.masking.plan import MaskPlan
from cloze.masking.rate import RateSchedule
from cloze.masking.spans import Spans
from cloze.masking.stratified import Stratified
from cloze.masking.uniform import Uniform
from cloze.masking.words import Words
from cloze.methods.base import select
from cloze.methods.build import Choices, build_method
from cloze.methods.objectives import NextTokenObjective
from cloze.methods.token_prediction import TokenPrediction
from cloze.methods.visibility import CausalVisible, PrefixVisible
from cloze.models.encoder import isolate


def method(
    masking: Masking | None = None, family: str = "bert", dtype: torch.dtype = torch.float64
) -> TokenPrediction:
    encoder = isolate(tiny_model(family).to(dtype))
    return build_method(Choices(masking or Uniform()), encoder, vocabulary(), seed=7)


def whole() -> Batch:
    """Rows of very different numbers of samples and tokens, the last without any text."""
    sizes = [[60], [1, 1, 2], [20, 20, 12], [3], [58]]
    return pack([*(make_samples(s, seed) for seed, s in enumerate(sizes, start=1)), []], length=64)


def gradient(m: TokenPrediction, batches: Sequence[Batch], local: bool = False) -> dict[str, Tensor]:
    """As the training loop does it; `local`: the mistake of normalising each micro-batch by itself."""
    m.zero_grad()
    works = [m.prepare(b, 0.0) for b in batches]
    total = sum(float(m.weights(w)["mlm"]) for w in works)
    for work in works:
        weight = float(m.weights(work)["mlm"]) * len(works) if local else total
        (m(work).sums["mlm"] / weight).backward()
    return {k: p.grad.clone() for k, p in m.named_parameters() if p.grad is not None}


def far(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    largest = max(float(x.abs().max()) for x in b.values())
    return max(float((a[k] - b[k]).abs().max()) for k in b) / largest


@pytest.mark.parametrize("masking", [Uniform(), Words(), Spans()], ids=lambda m: m.kind)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    masking: Masking, dtype: torch.dtype, close: float
) -> None:
    m = method(masking, dtype=dtype)
    batch = whole()
    wanted = gradient(m, [batch])
    cuts = ([[0], [1], [2], [3], [4, 5]], [[4, 1], [0, 2, 3, 5]], [[5], [3, 2, 1, 0, 4]])
    for cut in cuts:
        assert far(gradient(m, [rows_of(batch, rows) for rows in cut]), wanted) < close
    # The control: means of micro-batches, which weigh their tokens unequally.
    assert far(gradient(m, [rows_of(batch, rows) for rows in cuts[1]], local=True), wanted) > 1e-3


@pytest.mark.parametrize("family", ["bert", "modernbert", "roberta"])
def test_the_loss_is_cross_entropy_at_the_hidden_tokens(family: str) -> None:
    m = method(family=family)
    batch = whole()
    if family == "roberta":  # whose padding is 1
        batch = pack([make_samples([60], 1)], length=62)
    work = m.prepare(batch, 0.0)
    outcome = m(work)
    logits = torch.zeros(batch.ids.numel(), SIZE, dtype=torch.float64)
    theirs = copy.deepcopy(m.encoder.model)
    theirs.set_attn_implementation("sdpa")
    ids = work.views[0].ids.flatten()
    with torch.no_grad():
        for number in range(batch.samples):
            inside = batch.segments.flatten() == number
            logits[inside] = theirs(input_ids=ids[inside][None]).logits[0]
    wanted = F.cross_entropy(logits[work.places], batch.ids.flatten()[work.places], reduction="none")
    assert (outcome.feedback["loss"] - wanted).abs().max() < 1e-10
    assert outcome.sums["mlm"].item() == pytest.approx(wanted.sum().item(), abs=1e-9)
    assert torch.equal(outcome.feedback["guess"], logits[work.places].argmax(1))
    assert torch.equal(work.places, work.plan.predicted.flatten().nonzero().squeeze(1))
    assert torch.equal(work.labels, batch.ids.flatten()[work.places])


def test_weighted_tokens_count_by_p_over_pi() -> None:
    class Uneven(Uniform):
        def plan(self, batch: Batch, rate: float, seed: int) -> MaskPlan:
            plan = super().plan(batch, rate, seed)
            return MaskPlan(
                plan.hidden, plan.predicted, plan.inclusion, plan.reference * batch.index.clamp(min=0)
            )

    m = method(Uneven())
    work = m.prepare(whole(), 0.0)
    place = whole().index.flatten()[work.places]
    assert torch.allclose(work.token_weights, place.float())
    outcome = m(work)
    assert outcome.sums["mlm"].item() == pytest.approx(float((outcome.feedback["loss"] * place).sum()))
    assert float(m.weights(work)["mlm"]) == pytest.approx(float(work.plan.reference.double().sum()))


def test_weights_are_known_before_the_forward_pass() -> None:
    m = method()
    work = m.prepare(whole(), 0.0)
    m.encoder.forward = None  # type: ignore[method-assign,assignment]
    # Σ max(0.3 n, 1) over the samples, whatever was drawn.
    assert float(m.weights(work)["mlm"]) == pytest.approx(18 + 1 + 1 + 1 + 6 + 6 + 3.6 + 1 + 17.4)
    assert m.weights(work).keys() == m.coefficients(0.0).keys()


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_with_nothing_to_predict_is_a_finite_zero(rows: int) -> None:
    m = method()
    for batch in (pack([[]] * rows, 16), pack([make_samples([0, 0], 1)] * rows, 16)):
        work = m.prepare(batch, 0.0)
        assert work.places.numel() == 0
        assert float(m.weights(work)["mlm"]) == 0.0
        m.zero_grad()
        total = m(work).sums["mlm"]
        assert total.item() == 0.0
        total.backward()
        assert all(p.grad is None or float(p.grad.abs().sum()) == 0.0 for p in m.parameters())


def test_logits_exist_at_the_predicted_tokens_only() -> None:
    m = method(dtype=torch.float32)
    batch = pack([make_samples([300, 200], 1)] * 2, length=512)
    work = m.prepare(batch, 0.0)
    predicted = work.places.numel()
    assert predicted < 2 * 512 / 3 < 2 * 512
    with widest(SIZE) as wide:
        m(work).sums["mlm"].backward()
    assert wide.rows <= predicted
    theirs = tiny_model("bert", max_position_embeddings=512)
    with widest(SIZE) as wide:
        theirs(input_ids=work.views[0].ids)
    assert wide.rows == 2 * 512


def test_masks_follow_the_rate_schedule_and_the_methods_seed() -> None:
    m = method(Uniform(rate=RateSchedule(start=0.5, end=0.1)))
    batch = pack([make_samples([60], 1)], 64)
    counts = [int(m.prepare(batch, x).plan.predicted.sum()) for x in (0.0, 0.5, 1.0)]
    assert counts == [30, 18, 6]
    again, other = method(), method()
    other.seed = 8
    first, second, third = (x.prepare(whole(), 0.3) for x in (again, method(), other))
    assert torch.equal(first.places, second.places)
    assert torch.equal(first.views[0].ids, second.views[0].ids)
    assert not torch.equal(first.plan.hidden, third.plan.hidden)


def test_the_method_owns_its_network_and_exports_it() -> None:
    m = method()
    assert m.export() is m.encoder.model
    assert {id(p) for p in m.parameters()} == {id(p) for p in m.export().parameters()}
    assert m.learned_state() == {}
    made = build_method(Choices(Words()), m.encoder, vocabulary(), seed=3)
    assert (made.masking, made.seed) == (Words(), 3)


def test_select_gives_what_is_predicted() -> None:
    batch = whole()
    plan = Uniform().plan(batch, 0.3, 0)
    places, labels, weights = select(plan, batch)
    assert torch.equal(places, plan.predicted.flatten().nonzero().squeeze(1))
    assert torch.equal(labels, batch.ids.flatten()[places])
    assert (weights == 1).all()
    nothing = pack([[]], 8)
    assert [x.numel() for x in select(Uniform().plan(nothing, 0.3, 0), nothing)] == [0, 0, 0]


def test_spare_slots_change_neither_loss_nor_gradient() -> None:
    m = method()
    work = m.prepare(whole(), 0.0)
    n = work.places.numel()
    spare = work.padded(n + 60, 90, False)
    assert [view.runs for view in spare.views] == [90]
    assert (spare.token_weights[n:] == 0).all()
    assert spare.token_weights.numel() == spare.places.numel() == spare.labels.numel() == n + 60
    found = []
    for w in (work, spare):
        m.zero_grad()
        total = m(w).sums["mlm"]
        total.backward()
        found.append(
            (total.item(), {k: p.grad.clone() for k, p in m.named_parameters() if p.grad is not None})
        )
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    assert far(found[1][1], found[0][1]) < 1e-12


# -- policies that learn ----------------------------------------------------------------------------------


def learner(masking: Masking | None = None, family: str = "bert") -> TokenPrediction:
    encoder = isolate(tiny_model(family))
    policy = masking or MapNet(power=1.0)
    return build_method(Choices(policy), encoder, vocabulary(), torch.ones(SIZE), 3).train()


def step(m: TokenPrediction, batch: Batch) -> list[dict[str, Tensor]]:
    """Forward and backward of one batch; the feedback."""
    m.zero_grad()
    work = m.prepare(batch, 0.0)
    outcome = m(work)
    (outcome.sums["mlm"] / m.weights(work)["mlm"]).backward()
    m.observe([work], [outcome.feedback])
    return [outcome.feedback]


def test_what_a_policy_learns_is_buffers_that_the_optimiser_never_sees() -> None:
    m = learner()
    assert {id(p) for p in m.parameters()} == {id(p) for p in m.encoder.parameters()}
    names = [name for name, _ in m.named_buffers() if name.startswith("masking.")]
    assert {"masking.proposal.theta", "masking.proposal.second", "masking.trust.moments"} <= set(names)
    before = {name: b.clone() for name, b in m.named_buffers()}
    weights = {name: p.detach().clone() for name, p in m.named_parameters()}
    work = m.prepare(whole(), 0.0)
    outcome = m(work)
    (outcome.sums["mlm"] / m.weights(work)["mlm"]).backward()
    gradients = {name: p.grad.clone() for name, p in m.named_parameters() if p.grad is not None}
    m.observe([work], [outcome.feedback])
    # It learns, and leaves weights and gradients of the main model alone, its token embeddings included.
    assert not torch.equal(before["masking.proposal.theta"], m.get_buffer("masking.proposal.theta"))
    assert all(torch.equal(weights[name], p) for name, p in m.named_parameters())
    after = {name: p.grad for name, p in m.named_parameters() if p.grad is not None}
    assert gradients.keys() == after.keys()
    assert all(torch.equal(gradients[name], after[name]) for name in after)
    assert not any(b.requires_grad for b in m.buffers())
    step(m, whole())
    assert not m.prepare(whole(), 0.0).token_weights.requires_grad


def test_the_network_follows_the_embeddings_of_the_main_model() -> None:
    m = learner()
    for _ in range(3):
        step(m, whole())
    before = m.scores(whole())
    with torch.no_grad():
        m.encoder.model.get_input_embeddings().weight.add_(
            torch.randn(SIZE, 32, generator=torch.Generator().manual_seed(0))
        )
    after = m.scores(whole())
    assert before is not None
    assert after is not None
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_policy_that_learns_is_shown_what_happened(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m, shown = learner(family=family).eval(), []  # without dropout
    monkeypatch.setattr(m.masking, "observe", shown.extend)
    batches = [rows_of(whole(), rows) for rows in ([0, 1, 2], [3, 4, 5])]
    works = [m.prepare(b, 0.0) for b in batches]
    feedback = [m(work).feedback for work in works]
    m.observe(works, feedback)
    for work, at, known in zip(works, shown, feedback, strict=True):
        assert at.batch is work.batch
        assert at.plan is work.plan
        assert torch.equal(at.places, work.places)
        assert torch.equal(at.weights, work.token_weights)
        assert {"loss", "residual", "hidden_gradient"} <= at.scores.keys()
        assert all(torch.equal(at.scores[name], known[name]) for name in known)
        assert not any(x.requires_grad for x in at.scores.values())
    # Unweighted: doubling a weight does not change what is learnt.
    object.__setattr__(works[0], "token_weights", 2 * works[0].token_weights)
    again = m(works[0]).feedback
    assert torch.allclose(again["hidden_gradient"], feedback[0]["hidden_gradient"])
    with torch.no_grad():  # an evaluation needs no norms
        assert "residual" not in m(works[0]).feedback


def test_a_policy_that_does_not_learn_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for masking in (Uniform(), Frequency()):
        m = learner(masking)
        if masking.kind == "frequency":
            monkeypatch.setattr(m.masking, "observe", None)  # it is not called
        (feedback,) = step(m, whole())
        assert feedback.keys() == {"loss", "guess"}
        assert m.decide(Evidence(1.0, 0.3, 1.0, 1.0)) == []
        assert m.log() == {}
    assert learner(Uniform()).scores(whole()) is None


def test_the_method_speaks_for_its_policy() -> None:
    m = learner(Auto())
    assert (m.copies, m.rate(0.5)) == (1, 0.2)
    assert len(m.decide(Evidence(9.0, 0.2, 1.0, 1.0, 1.0, 1e3, -1.0))) == 3
    assert (m.copies, m.rate(0.5)) == (2, pytest.approx(1 / 3))
    assert m.log()["copies"] == 2.0
    assert learner(FullyExplored(same_step=3)).copies == 3


def test_a_plan_that_is_drawn_elsewhere_makes_the_same_work() -> None:
    m = method()
    drawn = m.prepare(whole(), 0.0)
    made = m.work(whole(), drawn.plan)
    for name in ("places", "labels", "token_weights"):
        assert torch.equal(getattr(made, name), getattr(drawn, name))
    assert torch.equal(made.views[0].ids, drawn.views[0].ids)


def test_a_batch_with_nothing_to_predict_teaches_nothing() -> None:
    for masking in (MapNet(power=1.0), Stratified(), Difficulty(), Auto()):
        m = learner(masking)
        step(m, whole())
        before = {name: b.clone() for name, b in m.named_buffers() if "theta" in name or "moments" in name}
        step(m, pack([[]], 16))
        assert all(torch.equal(before[name], m.get_buffer(name)) for name in before)
        assert all(torch.isfinite(b).all() for b in m.buffers())


def test_meap_hides_other_places_in_every_row() -> None:
    """Rows of the same text: their masks differ, and all tokens are predicted from the clean ids."""
    row = make_samples([60], seed=1)
    batch = pack([[replace(row[0], key=key)] for key in range(8)], length=64)
    encoder = isolate(tiny_model("bert"))
    chosen = Choices(Uniform(rate=0.15), Replace(mask=1.0, random=0.0), CausalVisible(), NextTokenObjective())
    work = build_method(chosen, encoder, vocabulary(), seed=7).prepare(batch, 0.0)
    hidden = work.views[0].ids == MASK
    assert hidden.sum(1).tolist() == [9] * 8
    assert len({tuple(row.tolist()) for row in hidden}) == 8
    assert hidden.any(0).sum() > 30  # shared by all rows it would be 9
    assert torch.equal(work.labels, batch.ids.flatten()[work.targets]) and work.targets.numel() == 8 * 60
    assert not hidden[:, 0].any()  # [CLS]


@pytest.mark.parametrize(
    ("choices", "readings", "drawn"),
    [
        (Choices(), {"masked": 0}, "masks"),
        (Choices(corruption=Replace(mask=0.0, random=1.0)), {"replaced": 0}, "masks"),
        (Choices(objective=NextTokenObjective(targets="hidden")), {"masked": 1}, "masks"),
        (Choices(Nothing(), Replace(), CausalVisible(), NextTokenObjective()), {"causal": 1}, ""),
        (Choices(Uniform(), Replace(), CausalVisible(), NextTokenObjective()), {"causal": 1}, "masks"),
        (
            Choices(Nothing(), Replace(), PrefixVisible(), NextTokenObjective()),
            {"prefix": 1, "causal": 1},
            "prefixes",
        ),
        (Choices(visibility=CausalVisible()), {}, "masks"),
    ],
)
def test_what_is_drawn_and_how_the_outputs_are_read(
    choices: Choices, readings: dict[str, int], drawn: str
) -> None:
    made = build_method(choices, isolate(tiny_model("bert")), vocabulary())
    assert (list(made.readings.items()), made.drawn) == (list(readings.items()), drawn)
