"""The structural objective in a method: right numbers, learnt by both spans, and nothing of it goes out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from corruption.test_pairs import THREE, TWO, WORDS, text
from helpers import tiny_model, vocabulary

from cloze.data.batch import Batch
from cloze.errors import ClozeError
from cloze.masking.nothing import Nothing
from cloze.masking.uniform import Uniform
from cloze.methods.build import Choices, build_method, compose
from cloze.methods.objectives import StructureObjective
from cloze.methods.pair_prediction import PairPrediction
from cloze.models.encoder import isolate
from cloze.recipes.load import load_recipe

PAIRS = Choices(Nothing(), objective=StructureObjective())


def method(family: str = "bert", seed: int = 0) -> PairPrediction:
    made = build_method(PAIRS, isolate(tiny_model(family)), WORDS, seed=seed)
    assert isinstance(made, PairPrediction)
    return made


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_packed_pairs_give_what_single_ones_give(family: str) -> None:
    made, batch = method(family), text([THREE], [TWO])
    torch.manual_seed(0)
    made.weight.data.normal_()
    made.bias.data.fill_(0.3)
    work = made.prepare(batch, 0.0)
    outcome = made(work)
    view = work.pairs.view
    assert view.ids.shape[0] < work.pairs.labels.numel()  # several in a row
    made.encoder.model.set_attn_implementation("eager")
    logits = []
    for number in range(work.pairs.labels.numel()):
        ids = view.ids[view.segments == number][None]
        body = made.encoder.model.base_model(input_ids=ids).last_hidden_state
        logits.append(body[0, 0] @ made.weight + made.bias[0])
    expected = F.binary_cross_entropy_with_logits(
        torch.stack(logits), work.pairs.labels.float(), reduction="none"
    )
    torch.testing.assert_close(outcome.feedback["loss"], expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outcome.sums["same_paragraph"], expected.sum(), rtol=1e-4, atol=1e-4)
    assert float(made.weights(work)["same_paragraph"]) == work.pairs.labels.numel() == int(work.predicted)


def test_a_batch_without_pairs_is_nothing() -> None:
    made = method()
    work = made.prepare(text([((6,), (7,))]), 0.0)
    outcome = made(work)
    assert float(made.weights(work)["same_paragraph"]) == 0.0
    assert float(outcome.sums["same_paragraph"].detach()) == 0.0
    made.observe([work], [outcome.feedback])
    assert made.log() == {"right": 0.5}


def moods(number: int) -> Batch:
    """Samples of two paragraphs, one of four tokens and one of four others, in either order."""
    draw = torch.Generator().manual_seed(number)
    batch = text(*[[((6, 6), (6, 6))]] * 16, length=32)
    second = torch.arange(32) >= 14
    high = second ^ (torch.rand(16, 1, generator=draw) < 0.5)
    drawn = torch.randint(10, 14, (16, 32), generator=draw) + torch.where(high, 44, 0)
    ids = torch.where((batch.index >= 0) & (batch.ids > 5), drawn, batch.ids)
    return replace(batch, ids=ids, keys=batch.keys + 1000 * number)


@pytest.mark.parametrize("shuffled", [False, True])
def test_it_learns_what_only_both_spans_tell(shuffled: bool) -> None:
    """On text it has not seen; with labels that mean nothing it stays at chance."""
    made = method(seed=1)
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-3)
    right = []
    for step in range(120):
        work = made.prepare(moods(step), 0.0)
        if shuffled:
            labels = torch.randint(
                0, 2, work.pairs.labels.shape, generator=torch.Generator().manual_seed(step)
            )
            work = replace(work, pairs=replace(work.pairs, labels=labels))
        outcome = made(work)
        (outcome.sums["same_paragraph"] / work.predicted).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= 100:
            right.append((outcome.feedback["guess"] == work.pairs.labels).float().mean())
    share = float(torch.stack(right).mean())
    assert abs(share - 0.5) < 0.08 if shuffled else share > 0.9


def test_the_stock_masked_model_goes_out_without_the_head() -> None:
    encoder = isolate(tiny_model("bert"))
    methods = {
        name: build_method(choices, encoder, WORDS)
        for name, choices in {"main": Choices(Uniform(rate=0.3)), "pairs": PAIRS}.items()
    }
    both = compose(methods, [(1.0, {"main": 0.75, "pairs": 0.25})])
    assert both.reading == "masked"
    assert both.export() is encoder.model
    assert not {n for n, _ in both.export().named_parameters() if n in ("weight", "bias")}
    assert both.coefficients(0.0) == {"main/mlm": 0.75, "pairs/same_paragraph": 0.25}
    with pytest.raises(ClozeError, match="no class of transformers"):
        compose({"main": build_method(PAIRS, encoder, WORDS)}, [(1.0, {"main": 1.0})])


def test_a_tokenizer_without_separators_is_refused() -> None:
    with pytest.raises(ClozeError, match=r"has no \[CLS\] or no \[SEP\]"):
        build_method(PAIRS, isolate(tiny_model("bert")), vocabulary())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective={kind: structure}", "clean text that is visible"),
        ("training.compile=true", "beside the recipe's own method, and for training.compile=false"),
        ("variants.pairs.masking={kind: uniform}", "use masking.kind=none"),
        ("variants.pairs.objective.task=same_page", "same_paragraph"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(override: str, words: str) -> None:
    with pytest.raises(ClozeError, match=words):
        load_recipe("structural", [override])
