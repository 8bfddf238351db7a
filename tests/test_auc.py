"""AUC against its definition."""

import math

import torch

from cloze.auc import auc


def test_it_is_the_share_of_pairs_in_the_right_order() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 12, (200,), generator=draw).double()  # with many ties
    positive = torch.rand(200, generator=draw) < 0.2
    difference = scores[positive][:, None] - scores[~positive][None]
    wanted = ((difference > 0).double() + 0.5 * (difference == 0)).mean()
    assert auc(scores, positive) == float(wanted)


def test_its_ends_chance_and_nothing_to_tell_apart() -> None:
    labels = torch.tensor([False, False, True, True])
    assert auc(torch.tensor([1.0, 2.0, 3.0, 4.0]), labels) == 1.0
    assert auc(torch.tensor([4.0, 3.0, 2.0, 1.0]), labels) == 0.0
    assert auc(torch.zeros(4), labels) == 0.5  # the guesser that always says the same
    assert math.isnan(auc(torch.zeros(4), torch.zeros(4, dtype=torch.bool)))
