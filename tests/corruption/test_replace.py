"""What stands in the place of hidden tokens: the right shares, any ordinary token, keyed by the sample."""

from dataclasses import replace as changed

import pytest
import torch
from helpers import (
    CLS,
    FIRST,
    MASK,
    PAD,
    SEP,
    SIZE,
    UNK,
    Sample,
    by_sample,
    chi_square,
    make_samples,
    pack,
    rows_of,
    tile,
    vocabulary,
    word_tokenizer,
)
from pydantic import ValidationError

from cloze.corruption.replace import Replace, Vocabulary, replace
from cloze.data.batch import Batch
from cloze.masking.plan import MaskPlan
from cloze.masking.uniform import Uniform
from cloze.methods.build import vocabulary_of

BERT = Replace()


def many(visits: int = 2000) -> tuple[Batch, MaskPlan]:
    """About 30,000 hidden tokens, all of them the same one, w7."""
    sample = Sample(5, (7,) * 30, tuple(range(30)))
    batch = tile(pack([[sample]], length=34), visits)
    return batch, Uniform().plan(batch, 0.5, seed=0)


def shares(batch: Batch, plan: MaskPlan, config: Replace, v: Vocabulary) -> list[float]:
    """Of hidden tokens: mask token, another token, the same."""
    ids = replace(batch, plan, config, v, seed=0).ids[plan.hidden]
    masked, same = ids == MASK, ids == 7
    return [float(x.double().mean()) for x in (masked, ~masked & ~same, same)]


def close(found: list[float], wanted: list[float], n: int) -> bool:
    return all(abs(f - w) <= 5 * (w * (1 - w) / n) ** 0.5 for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    "config", [BERT, Replace(mask=0.5, random=0.5), Replace(mask=0.0, random=0.3)], ids=str
)
def test_shares(config: Replace) -> None:
    batch, plan = many()
    n = int(plan.hidden.sum())
    ordinary = SIZE - FIRST
    kept = 1 - config.mask - config.random
    wanted = [config.mask, config.random * (1 - 1 / ordinary), kept + config.random / ordinary]
    found = shares(batch, plan, config, vocabulary())
    assert close(found, wanted, n)
    # The control: shares that are off by two percentage points are found.
    assert not close(found, [wanted[0] + 0.02, wanted[1] - 0.02, wanted[2]], n)


def test_all_masked_and_none() -> None:
    batch, plan = many(50)
    assert shares(batch, plan, Replace(mask=1.0, random=0.0), vocabulary()) == [1.0, 0.0, 0.0]
    assert shares(batch, plan, Replace(mask=0.0, random=0.0), vocabulary()) == [0.0, 0.0, 1.0]


def test_actions_do_not_go_with_the_choice_of_tokens() -> None:
    """Whether a token is masked or kept is independent of its place and of the other tokens' fate."""
    batch, plan = many()
    view = replace(batch, plan, BERT, vocabulary(), seed=0)
    masked = (view.ids == MASK) & plan.hidden
    per_place = masked.sum(0)[1:31].double() / plan.hidden.sum(0)[1:31]
    assert (per_place - 0.8).abs().max() < 5 * (0.16 / 1000) ** 0.5
    counts = masked.sum(1).double()  # of 15 hidden tokens
    assert abs(float(counts.var()) - 15 * 0.16) < 0.4


def test_random_tokens_are_any_ordinary_one_as_often() -> None:
    """Of the vocabulary, not of the ids below the largest in the batch; and never a special one."""
    batch, plan = many()
    assert batch.ids.max() < 10
    ids = replace(batch, plan, Replace(mask=0.0, random=1.0), vocabulary(), seed=0).ids[plan.hidden]
    counts = torch.bincount(ids, minlength=SIZE)
    assert (counts[:FIRST] == 0).all()
    assert (counts[FIRST:] > 0).all()
    assert abs(chi_square(counts[FIRST:])) < 6
    assert chi_square(torch.bincount(ids.clamp(max=SIZE - 2), minlength=SIZE)[FIRST:]) > 6


def test_random_tokens_leave_out_specials_that_lie_among_the_ordinary() -> None:
    batch, plan = many(300)
    odd = torch.tensor([3, 11, 12, 90])
    config = Replace(mask=0.0, random=1.0)
    ids = replace(batch, plan, config, Vocabulary(SIZE, MASK, odd), seed=0).ids[plan.hidden]
    assert set(ids.tolist()) == set(odd.tolist())


def test_random_tokens_differ_between_places_and_visits() -> None:
    batch, plan = many(500)
    view = replace(batch, plan, Replace(mask=0.0, random=1.0), vocabulary(), seed=0)
    both = plan.hidden[1:] & plan.hidden[:-1]
    same = (view.ids[1:] == view.ids[:-1])[both].double()
    assert abs(float(same.mean()) - 1 / (SIZE - FIRST)) < 5 * (0.011 / same.numel()) ** 0.5


def test_unhidden_tokens_stay_and_the_batch_is_not_written_to() -> None:
    batch = pack([make_samples([20, 8]), make_samples([30], seed=1)], length=40)
    before = batch.ids.clone()
    plan = Uniform().plan(batch, 0.5, seed=0)
    view = replace(batch, plan, Replace(mask=0.3, random=0.7), vocabulary(), seed=0)
    assert torch.equal(view.ids[~plan.hidden], batch.ids[~plan.hidden])
    assert torch.equal(batch.ids, before)
    assert (view.ids != batch.ids).any()


def test_labels_are_read_through_origin() -> None:
    batch = pack([make_samples([20, 8]), make_samples([30], seed=1)], length=40)
    plan = Uniform().plan(batch, 0.5, seed=0)
    view = replace(batch, plan, BERT, vocabulary(), seed=0)
    text = view.origin >= 0
    assert torch.equal(text, batch.segments >= 0)
    assert torch.equal(batch.ids.flatten()[view.origin[text]], batch.ids[text])
    assert torch.equal(view.segments, batch.segments)
    assert view.positions[batch.index >= 0].equal(batch.index[batch.index >= 0] + 1)  # after [CLS]
    assert not view.causal


def test_a_view_depends_on_the_sample_alone() -> None:
    samples = make_samples([30, 12, 25, 3, 18])
    batch = pack([samples[:2], samples[2:4], samples[4:]], length=48)
    config = Replace(mask=0.4, random=0.4)

    def ids(batch: Batch, seed: int = 0) -> dict[int, list[int]]:
        plan = Uniform().plan(batch, 0.5, seed)
        return by_sample(batch, replace(batch, plan, config, vocabulary(), seed).ids)

    whole = ids(batch)
    for rows in ([2, 1, 0], [1]):
        mine = ids(rows_of(batch, rows))
        assert mine == {k: v for k, v in whole.items() if k in mine}
    for sample in samples:
        assert ids(pack([[sample]], 48)) == {sample.key: whole[sample.key]}
    assert ids(batch, seed=1) != whole
    assert ids(changed(batch, visits=batch.visits + 1)) != whole


def test_nothing_hidden_changes_nothing() -> None:
    batch = pack([[], []], 8)
    view = replace(batch, Uniform().plan(batch, 0.5, 0), BERT, vocabulary(), seed=0)
    assert torch.equal(view.ids, batch.ids)
    assert (view.origin == -1).all()


def test_shares_are_checked_and_described() -> None:
    assert BERT.describe() == "80/10/10"
    assert Replace(mask=1.0, random=0.0).describe() == "100/0/0"
    assert Replace(mask=0.9, random=0.1).describe() == "90/10/0"
    for given in ({"mask": 0.8, "random": 0.3}, {"mask": -0.1}, {"random": 1.2}, {"masked": 0.8}):
        with pytest.raises(ValidationError):
            Replace.model_validate(given)


def test_the_vocabulary_of_a_tokenizer() -> None:
    found = vocabulary_of(word_tokenizer())
    assert (found.size, found.mask) == (SIZE, MASK)
    assert found.ordinary.tolist() == [i for i in range(SIZE) if i not in (PAD, UNK, CLS, SEP, MASK)]
