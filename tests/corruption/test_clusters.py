"""C-RTS: clusters, the table that is learnt, and that it prefers what fools the model."""

from __future__ import annotations

from dataclasses import replace

import torch
from helpers import CLS, FIRST, SEP, SIZE, chi_square, make_samples, pack, tile, vocabulary
from torch import Tensor

from cloze.auc import auc
from cloze.corruption.clusters import Clusters, ClusterTable, clusters_of, kmeans
from cloze.data.batch import Batch
from cloze.masking.uniform import Uniform

WORDS = SIZE - FIRST


def halves(beta: float = 2.0) -> ClusterTable:
    """Two clusters: ids below and from 50 on."""
    return ClusterTable(Clusters(number=2, beta=beta), (torch.arange(SIZE) >= 50).long(), vocabulary())


def batch_of(visits: int = 40) -> Batch:
    return tile(pack([make_samples([60], 1), make_samples([58], 2)], 64), visits)


def drawn(table: ClusterTable, batch: Batch) -> tuple[Tensor, Tensor]:
    """Original and new ids of all hidden tokens."""
    plan = Uniform(rate=0.3).plan(batch, 0.3, 7)
    ids = table.corrupt(batch, plan, 7).ids
    assert torch.equal(ids[~plan.hidden], batch.ids[~plan.hidden])
    return batch.ids[plan.hidden], ids[plan.hidden]


def test_kmeans_finds_what_is_there_and_leaves_no_cluster_empty() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.eye(4, 6)
    truth = torch.arange(200) % 4
    found = kmeans(centres[truth] + 0.1 * torch.randn(200, 6, generator=draw), 4, seed=1)
    pairs = torch.bincount(truth * 4 + found, minlength=16).view(4, 4)
    assert ((pairs == 50).sum(0) == 1).all()
    same = torch.ones(30, 3)  # as tokens that never occur are
    assert torch.bincount(kmeans(same, 8, seed=0), minlength=8).min() >= 1
    few = clusters_of(torch.randn(SIZE, 5, generator=draw), Clusters(), vocabulary(), 0)
    assert few.max() + 1 == WORDS // 4  # never more clusters than a quarter of the tokens
    assert (few[:FIRST] == 0).all()


def test_a_table_that_knows_nothing_draws_clusters_alike_and_tokens_alike_within() -> None:
    _, new = drawn(halves(), batch_of())
    assert abs((new >= 50).double().mean() - 0.5) < 0.05
    assert not torch.isin(new, torch.tensor([CLS, SEP])).any() and new.min() >= FIRST
    for part in (slice(FIRST, 50), slice(50, SIZE)):
        assert chi_square(torch.bincount(new, minlength=SIZE)[part]) < 6


def test_what_fools_the_model_is_drawn_more_often() -> None:
    table = halves()
    old, new = torch.full((100,), FIRST), torch.full((100,), 60)
    table.observe(old, new, torch.ones(100, dtype=torch.bool))
    table.observe(old, torch.full((100,), FIRST + 1), torch.zeros(100, dtype=torch.bool))
    assert table.table.tolist() == [[-99.0, 101.0], [1.0, 1.0]]  # below 0 is fine
    wanted = torch.tensor([0.0, 2.0], dtype=torch.float64).softmax(0)
    assert torch.allclose(table.probabilities()[0], wanted)
    assert torch.allclose(table.probabilities()[1], torch.full((2,), 0.5, dtype=torch.float64))
    old, new = drawn(table, batch_of())
    low = old < 50
    assert abs((new[low] >= 50).double().mean() - wanted[1]) < 0.05
    assert abs((new[~low] >= 50).double().mean() - 0.5) < 0.05
    flat = halves(beta=0.0)  # the control
    flat.table.copy_(table.table)
    assert torch.allclose(flat.probabilities(), torch.full((2, 2), 0.5, dtype=torch.float64))
    assert table.log()["cluster_skew"] > 0.1 > flat.log()["cluster_skew"]


def test_its_replacements_become_harder_than_random_ones() -> None:
    """A detector that can tell one cluster from the text and not the other."""
    table, batch = halves(), pack([make_samples([60], s) for s in range(30)], 64)
    text = replace(batch, ids=batch.ids.clamp(max=49))  # a text of the first cluster alone

    def area(skewed: ClusterTable) -> float:
        plan = Uniform(rate=0.3).plan(text, 0.3, 3)
        seen = skewed.corrupt(text, plan, 3).ids
        inside = text.index >= 0
        return auc((seen[inside] >= 50).double(), (seen != text.ids)[inside])

    before = area(table)
    for seed in range(5):
        plan = Uniform(rate=0.3).plan(text, 0.3, 10 + seed)
        seen = table.corrupt(text, plan, 10 + seed).ids
        changed = seen != text.ids
        table.observe(text.ids[changed], seen[changed], seen[changed] < 50)
    assert area(table) < before - 0.1
    assert table.table[0, 0] > table.table[0, 1]


def test_state_is_buffers_alone() -> None:
    table = halves()
    assert not list(table.parameters())
    other = halves()
    table.observe(torch.tensor([FIRST]), torch.tensor([60]), torch.tensor([True]))
    other.load_state_dict(table.state_dict())
    assert torch.equal(other.table, table.table)
