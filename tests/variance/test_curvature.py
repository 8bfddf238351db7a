"""Gradients weighted by curvature: against the whole Gauss-Newton matrix of a linear softmax model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from variance.tiny_mlm import Urn, tiny

from cloze.variance import Decomposition, curvature_directions, decompose, per_token_norms

SEQUENCES, LENGTH, WIDTH, WORDS = 6, 8, 3, 4


class Linear:
    """Logits W x of 6 sequences of 8 tokens with fixed inputs x; gradient and curvature in closed form."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(SEQUENCES, LENGTH, WIDTH, generator=draw, dtype=torch.float64)
        self.labels = torch.randint(0, WORDS, (SEQUENCES, LENGTH), generator=draw)
        start = torch.randn(WORDS, WIDTH, generator=draw, dtype=torch.float64)
        self.parameters = {"weight": start.requires_grad_()}

    def losses(self, labels: Tensor) -> Tensor:
        logits = (self.x @ self.parameters["weight"].T).flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="none")

    def loss(self, sequence: int, mask: Tensor, draw: int) -> Tensor:
        return self.losses(self.labels).view(SEQUENCES, LENGTH)[sequence, mask].mean()

    def sampled(self, draw: int) -> Tensor:
        p = (self.x @ self.parameters["weight"].T).detach().softmax(2).flatten(0, 1)
        generator = torch.Generator().manual_seed(draw)
        return self.losses(torch.multinomial(p, 1, generator=generator))

    def true_labels(self, draw: int) -> Tensor:
        """Random signs, so that the gradients have mean zero: the empirical Fisher matrix."""
        signs = torch.rand(SEQUENCES * LENGTH, generator=torch.Generator().manual_seed(draw)) < 0.5
        return self.losses(self.labels) * (2.0 * signs - 1.0)

    def gauss_newton(self) -> Tensor:
        """[P, P]: the mean over tokens of (diag p − p pᵀ) ⊗ x xᵀ."""
        x = self.x.flatten(0, 1)
        p = (x @ self.parameters["weight"].detach().T).softmax(1)
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        blocks = torch.einsum("nab,nc,nd->acbd", inner, x, x) / len(x)
        return blocks.reshape(WORDS * WIDTH, WORDS * WIDTH)

    def decompose(self, metric: list[list[Tensor]]) -> Decomposition:
        return decompose(self.loss, [LENGTH] * SEQUENCES, 0.25, self.parameters, metric=metric)


def terms(found: Decomposition) -> list[float]:
    estimates = (found.data, found.mask, found.total, found.covariance)
    return [e.value for e in estimates if e is not None and e.value is not None]


def exact(model: Linear) -> Decomposition:
    """With P directions that are the columns of the root of H, times √P, the metric is H itself."""
    size, vectors = torch.linalg.eigh(model.gauss_newton())
    root = vectors * size.clamp(min=0).sqrt() * len(size) ** 0.5
    return model.decompose([[column.view(WORDS, WIDTH)] for column in root.T])


def test_directions_have_the_gauss_newton_matrix() -> None:
    model = Linear()
    h = model.gauss_newton()
    errors = []
    for draws in (100, 3000):
        s = torch.stack(
            [d[0].flatten() for d in curvature_directions(model.sampled, model.parameters, draws)]
        )
        errors.append(float((s.T @ s / draws - h).norm() / h.norm()))
    assert errors[1] < 0.1 and errors[1] < 0.5 * errors[0]
    s = torch.stack([d[0].flatten() for d in curvature_directions(model.true_labels, model.parameters, 3000)])
    assert float((s.T @ s / 3000 - h).norm() / h.norm()) > 0.2  # the control: the empirical Fisher matrix


def test_weighted_terms_approach_those_of_the_whole_matrix() -> None:
    model = Linear()
    wanted = terms(exact(model))
    few, many = (curvature_directions(model.sampled, model.parameters, k) for k in (30, 3000))
    assert terms(model.decompose(many)) == pytest.approx(wanted, rel=0.05)
    assert terms(model.decompose(few)) != pytest.approx(wanted, rel=0.05)
    plain = decompose(model.loss, [LENGTH] * SEQUENCES, 0.25, model.parameters)
    assert terms(plain) != pytest.approx(wanted, rel=0.5)
    wrong = curvature_directions(model.true_labels, model.parameters, 3000)
    assert terms(model.decompose(wrong)) != pytest.approx(wanted, rel=0.05)


def test_directions_along_the_axes_give_the_plain_terms() -> None:
    urn = Urn(seed=4, sequences=8)
    plain = decompose(urn.loss, urn.sizes, urn.rate, urn.parameters)
    axes = [[row] for row in urn.width**0.5 * torch.eye(urn.width, dtype=torch.float64)]
    weighted = decompose(urn.loss, urn.sizes, urn.rate, urn.parameters, metric=axes)
    for name in ("data", "mask", "share", "signal", "noise_scale", "break_even"):
        assert getattr(weighted, name).as_dict() == pytest.approx(getattr(plain, name).as_dict()), name
    assert weighted.groups == {} and list(plain.groups) == ["all"]


def test_directions_follow_the_order_of_the_parameters() -> None:
    """Groups would reorder the gradient; directions are in the order of the mapping, whatever the groups."""
    urn = Urn(seed=4, sequences=8)
    a, b, c = (torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    axes = [[*(row.split(2))] for row in torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))]

    def loss(sequence: int, mask: Tensor, draw: int) -> Tensor:
        return torch.cat([a, b, c]) @ urn.tokens[sequence, mask].mean(0)

    parameters = {"a": a, "b": b, "c": c}
    grouped = decompose(
        loss, urn.sizes, urn.rate, parameters, metric=axes, group=lambda n: "odd" if n != "b" else "even"
    )
    assert terms(grouped) == pytest.approx(
        terms(decompose(loss, urn.sizes, urn.rate, parameters, metric=axes))
    )
    by_hand = Urn(seed=4, sequences=8)
    by_hand.tokens = urn.tokens * torch.arange(1.0, 7.0, dtype=torch.float64) / 6**0.5
    wanted = decompose(by_hand.loss, urn.sizes, urn.rate, by_hand.parameters)
    assert terms(grouped) == pytest.approx(terms(wanted))


def test_unused_parameters_have_no_part_in_a_direction() -> None:
    model = Linear()
    parameters = model.parameters | {"spare": torch.zeros(2, requires_grad=True)}
    directions = curvature_directions(model.sampled, parameters, 2)
    assert [d[1].tolist() for d in directions] == [[0.0, 0.0]] * 2
    assert not directions[0][0].requires_grad


def test_norms_of_single_tokens() -> None:
    model, text = tiny()
    ids = text[0]
    mask = torch.tensor([0, 1, 0, 1, 1, 0, 0], dtype=torch.bool)
    parameters = [model.embedding, model.head]

    def losses() -> Tensor:
        return torch.nn.functional.cross_entropy(
            model(ids.where(~mask, 0))[mask], ids[mask], reduction="none"
        )

    spare = torch.zeros(2, requires_grad=True)
    found = per_token_norms(losses(), [*parameters, spare])
    assert found.dtype == torch.float64 and found.shape == (3,)
    for i in range(3):
        one = torch.autograd.grad(losses()[i], parameters)
        assert float(found[i]) == pytest.approx(float(sum((g**2).sum() for g in one) ** 0.5))
    assert float(per_token_norms(losses(), [model.mix])[0]) != pytest.approx(float(found[0]))
