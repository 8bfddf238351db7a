"""Difficulty and frequency: hard and rare tokens more often, which is another objective unless weighted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import FIRST, make_samples, networks, pack, tile
from torch import Tensor

from cloze.data.batch import Batch
from cloze.masking import POLICIES
from cloze.masking.base import Policy, Seen
from cloze.masking.difficulty import DECAY, PRIOR, DifficultyPolicy
from cloze.methods.base import select
from cloze.recipes.load import load_recipe
from cloze.report.model_card import model_card

WORDS, VISITS, RATE = 24, 4000, 0.3
CHANGED = sorted(
    kind
    for kind, policy in POLICIES.items()
    if kind not in ("none", "rest") and not policy(rate=RATE).unbiased
)


def visits() -> Batch:
    """One text with every word once, seen many times."""
    sample = make_samples([WORDS - FIRST], size=WORDS)[0]
    batch = tile(pack([[sample]], WORDS - FIRST + 2), VISITS)
    batch.ids[:, 1:-1] = torch.arange(FIRST, WORDS)
    return batch


def build(kind: str, **settings: Any) -> Policy:
    return POLICIES[kind](rate=RATE, **settings).build(networks(WORDS))


def show(policy: Policy, loss: Tensor, times: int = 30) -> None:
    """Let it observe losses [vocabulary] at the tokens that it hides."""
    batch = visits()
    plan = policy.plan(batch, RATE, 5)
    places, labels, weights = select(plan, batch)
    for _ in range(times):
        policy.observe([Seen(batch, plan, places, weights, {"loss": loss[labels]})])


def frequencies(policy: Policy) -> Tensor:
    """[words] how often each was hidden."""
    return policy.plan(visits(), RATE, 2).hidden[:, 1:-1].double().mean(0)


def test_they_say_that_they_change_the_objective() -> None:
    assert CHANGED == ["difficulty", "frequency"]
    for kind in CHANGED:
        assert POLICIES[kind](rate=RATE, reweight=True).unbiased
        biased = load_recipe("mlm", [f"masking.kind={kind}"])
        weighted = load_recipe("mlm", [f"masking.kind={kind}", "masking.reweight=true"])
        summary: dict[str, Any] = dict.fromkeys(("heldout_loss", "unigram_loss", "heldout_accuracy"), 0.5)
        summary["heldout_auc"] = None
        summary |= dict.fromkeys(("steps", "tokens_seen", "parameters"), 1)
        summary |= {"heldout_of": "masked tokens", "model": {"reading": "masked", "family": "bert"}}
        assert "changes the objective" in model_card(biased, summary)
        assert "changes the objective" not in model_card(weighted, summary)


def test_difficulty_starts_alike_and_follows_the_losses() -> None:
    policy = build("difficulty")
    assert float(frequencies(policy).std()) < 0.02
    loss = torch.where(torch.arange(WORDS) % 3 == 0, 6.0, 1.0)
    show(policy, loss)
    found = frequencies(policy)
    hard = loss[FIRST:] > 5
    assert float(found[hard].min()) > 1.5 * float(found[~hard].max())
    assert float(found.mean()) == pytest.approx(RATE, abs=0.01)  # as many tokens as before
    show(policy, 7.0 - loss, 1500)  # what is hard changes
    found = frequencies(policy)
    assert float(found[~hard].min()) > 1.5 * float(found[hard].max())


def test_the_losses_are_running_means_drawn_to_the_common_one() -> None:
    policy = build("difficulty")
    assert isinstance(policy, DifficultyPolicy)
    batch = visits()
    plan = policy.plan(batch, RATE, 5)
    places, labels, weights = select(plan, batch)
    keep = labels == 7
    none = torch.zeros(3, dtype=torch.long)  # spare slots count for nothing
    at = Seen(
        batch,
        plan,
        torch.cat([places[keep][:2], none]),
        torch.cat([weights[keep][:2], none.float()]),
        {"loss": torch.tensor([2.0, 4.0, 9.0, 9.0, 9.0])},
    )
    policy.observe([at])
    policy.observe([at])
    number = 2 * (1 + DECAY)
    table = policy.scores(batch)[0, 1:-1]
    assert torch.allclose(policy.number[7], torch.tensor(number, dtype=torch.float64))
    assert int((policy.number > 0).sum()) == 1
    assert torch.allclose(table, torch.full_like(table, 3.0))  # the mean over all is that of the only one
    policy.observe([Seen(batch, plan, places[labels == 8][:1], torch.ones(1), {"loss": torch.tensor([9.0])})])
    total = 3.0 * number * DECAY + 9.0
    mean = total / (number * DECAY + 1)
    assert float(policy.scores(batch)[0, 1 + 8 - FIRST]) == pytest.approx((9 + PRIOR * mean) / (1 + PRIOR))


def test_frequency_hides_rare_words_more_often() -> None:
    found = frequencies(build("frequency", power=1.0, epsilon=0.05))  # counts fall with the id
    assert float(found[-1]) > 2 * float(found[0])
    assert float(torch.corrcoef(torch.stack([found, torch.arange(FIRST, WORDS).double()]))[0, 1]) > 0.9
    gentle = frequencies(build("frequency", power=0.25))
    assert 1.1 * float(gentle[0]) < float(gentle[-1]) < float(found[-1])
    networks_ = networks(WORDS)
    wanted = (networks_.counts + 1.0) ** -0.5
    scores = build("frequency").scores(visits())
    assert scores is not None
    assert torch.allclose(scores[0, 1:-1], wanted[FIRST:])


@pytest.mark.parametrize("kind", CHANGED)
def test_weights_take_the_change_back(kind: str) -> None:
    """The mean loss that is estimated: of all tokens alike with weights, of hard and rare ones without."""
    loss = torch.linspace(1.0, 6.0, WORDS)
    found = {}
    for reweight in (False, True):
        policy = build(kind, reweight=reweight)
        show(policy, loss)
        batch = visits()
        plan = policy.plan(batch, RATE, 3)
        _, labels, weights = select(plan, batch)
        found[reweight] = float((weights * loss[labels]).sum() / plan.mass())
        if not reweight:
            assert (weights == 1.0).all()
    uniform = float(loss[FIRST:].mean())
    assert found[True] == pytest.approx(uniform, rel=0.01)
    assert found[False] > 1.03 * uniform
