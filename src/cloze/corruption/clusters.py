"""Random tokens that are hard to detect: which kinds fool the model is learnt as it is trained."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cloze.config import Config
from cloze.corruption.replace import Vocabulary
from cloze.corruption.view import View
from cloze.data.batch import Batch
from cloze.masking.plan import MaskPlan
from cloze.processes import summed
from cloze.random import Stream, uniform


class Clusters(Config):
    """Hidden tokens become random ones of a cluster that is drawn by what was detected before (2309.08272).

    Tokens are clustered once: by their embeddings where the model is a trained one, else by their neighbours
    in the training text (`corruption/neighbours.py`).
    """

    kind: Literal["clusters"] = "clusters"
    number: int = Field(100, ge=2, description="of clusters, at most a quarter of the tokens")
    beta: float = Field(2.0, ge=0.0, description="how much harder clusters are preferred; 0: all alike")

    def describe(self) -> str:
        """A word for tables."""
        return "clusters"


class ClusterTable(nn.Module):
    """Which tokens are in which cluster, and how often replacements between clusters fooled the model.

    Everything that it learns is buffers: saved, resumed, and in no optimiser.

    Args:
        config: number of clusters and so on.
        cluster: [vocabulary] int64 below `config.number`, the cluster of each token.
        vocabulary: of which the ordinary ids may be drawn; each cluster has some.
    """

    def __init__(self, config: Clusters, cluster: Tensor, vocabulary: Vocabulary):
        super().__init__()
        self.beta = config.beta
        own = cluster[vocabulary.ordinary]
        sizes = torch.bincount(own, minlength=int(cluster.max()) + 1)
        self.register_buffer("cluster", cluster)
        self.register_buffer("members", vocabulary.ordinary[own.argsort(stable=True)])
        self.register_buffer("first", sizes.cumsum(0) - sizes)
        self.register_buffer("sizes", sizes)
        self.register_buffer("table", torch.ones(sizes.numel(), sizes.numel(), dtype=torch.float64))
        self.cluster: Tensor
        self.members: Tensor
        self.first: Tensor
        self.sizes: Tensor
        self.table: Tensor

    def probabilities(self) -> Tensor:
        """[clusters, clusters] float64: of a token of one (rows), the clusters of its replacement.

        Each row of the table from 0 to 1, times beta, through a softmax. Empty clusters are never drawn.
        """
        low = self.table.min(1, keepdim=True).values
        width = (self.table.max(1, keepdim=True).values - low).clamp(min=1.0)
        score = self.beta * (self.table - low) / width
        return score.masked_fill(self.sizes == 0, -torch.inf).softmax(1)

    def corrupt(self, batch: Batch, plan: MaskPlan, seed: int) -> View:
        """The batch with its hidden tokens replaced, each by its own counter-based draws."""
        places = plan.hidden.flatten().nonzero().squeeze(1)
        old = batch.ids.flatten()[places]
        sample = batch.segments.flatten()[places]
        name = (batch.keys[sample], batch.visits[sample], batch.index.flatten()[places])
        below = self.probabilities().cumsum(1)[self.cluster[old]]
        u = uniform(seed, Stream.CLUSTER, *name)[:, None] * below[:, -1:]
        target = torch.searchsorted(below, u, right=True).squeeze(1).clamp(max=self.sizes.numel() - 1)
        number = (uniform(seed, Stream.TOKEN, *name) * self.sizes[target]).to(torch.int64)
        new = self.members[self.first[target] + number]
        return View.of(batch, batch.ids.flatten().index_copy(0, places, new).view_as(batch.ids))

    def observe(self, old: Tensor, new: Tensor, fooled: Tensor) -> None:
        """Learn from the replaced tokens of a step, over all processes.

        Args:
            old, new: [N] ids of the originals and of what stood in their place, all of them different.
            fooled: [N] bool, the model took the replacement for an original.
        """
        size = self.table.shape[0]
        pair = self.cluster[old] * size + self.cluster[new]
        change = torch.where(fooled, 1.0, -1.0).to(self.table)
        delta = torch.zeros_like(self.table).flatten().index_add_(0, pair, change).view_as(self.table)
        self.table += summed(delta)[0]

    def log(self) -> dict[str, float]:
        """How far from uniform the draws are: 1 − entropy / its maximum, over rows."""
        p = self.probabilities()
        entropy = -torch.special.xlogy(p, p).sum(1).mean()
        return {"cluster_skew": 1.0 - float(entropy / (self.sizes > 0).sum().double().log())}


def kmeans(vectors: Tensor, number: int, seed: int, rounds: int = 15) -> Tensor:
    """[n] int64, clusters of unit vectors [n, width] by Lloyd's algorithm; none is empty if n ≥ number.

    Starts from `number` of them, drawn at random. An empty cluster takes the vector that is farthest from its
    own centre.
    """
    vectors = F.normalize(vectors.double(), dim=1)
    draw = torch.Generator().manual_seed(seed)
    centres = vectors[torch.randperm(vectors.shape[0], generator=draw)[:number]]
    cluster = torch.zeros(vectors.shape[0], dtype=torch.int64)
    for _ in range(rounds):
        distance = 1.0 - vectors @ F.normalize(centres, dim=1).T
        nearest, cluster = distance.min(1)
        far = nearest.argsort(descending=True)
        missing = (torch.bincount(cluster, minlength=number) == 0).nonzero().flatten().tolist()
        for i, empty in enumerate(missing):
            cluster[far[i]] = empty
        sums = torch.zeros(number, vectors.shape[1], dtype=torch.float64).index_add_(0, cluster, vectors)
        centres = sums / torch.bincount(cluster, minlength=number).clamp(min=1)[:, None]
    return cluster


def clusters_of(vectors: Tensor, config: Clusters, vocabulary: Vocabulary, seed: int) -> Tensor:
    """[vocabulary] int64, the cluster of each token: k-means of the ordinary ones; the others are in 0."""
    number = max(2, min(config.number, vocabulary.ordinary.numel() // 4))
    cluster = torch.zeros(max(vocabulary.size, vectors.shape[0]), dtype=torch.int64)
    cluster[vocabulary.ordinary] = kmeans(vectors[vocabulary.ordinary], number, seed)
    return cluster
