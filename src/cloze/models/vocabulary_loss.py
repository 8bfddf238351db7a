"""Cross entropy over the vocabulary from hidden states, without keeping logits.

The loss and its gradients are made together, chunk by chunk, so that no [tokens × vocabulary] tensor
outlives its chunk, in training or in evaluation. What proposals learn from falls out for free:
the norm of softmax − one-hot and of the gradient at the hidden state.
Reference in the tests: plain logits, and `torch.nn.functional.linear_cross_entropy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 256 * 2**20  # logits of one chunk, in float32


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """What one pass over the vocabulary gives; N predicted tokens.

    Attributes:
        total: scalar, Σ weight · loss; the only differentiable one.
        loss: [N] float32 (float64 if the hidden states are), negative log-likelihood in nats.
        guess: [N] int64, the most probable token.
        residual: [N] float32, ‖softmax − one-hot‖₂ (unweighted); empty unless asked for in training.
        hidden_gradient: [N] float32, ‖∂loss/∂hidden‖₂ (unweighted); empty unless asked for in training.
    """

    total: Tensor
    loss: Tensor
    guess: Tensor
    residual: Tensor
    hidden_gradient: Tensor


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        hidden, weight, bias, labels, weights, rows, norms = args
        needs = ctx.needs_input_grad
        wants = any(needs[:3])
        count = hidden.shape[0]
        grad_hidden = torch.empty_like(hidden) if wants else None
        # Several chunks are added up in float32: bf16 would lose the later ones.
        kept = weight.dtype if count <= rows else torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=kept) if needs[1] and not 0 < count <= rows else None
        grad_bias = torch.zeros_like(bias, dtype=kept) if bias is not None and needs[2] else None
        outputs: list[list[Tensor]] = [[], [], [], []]
        for start in range(0, count, rows):
            part = slice(start, min(start + rows, count))
            h, y, w = hidden[part], labels[part, None], weights[part]
            log_p = torch.log_softmax(torch.nn.functional.linear(h, weight, bias), 1, dtype=weights.dtype)
            outputs[0].append(-log_p.gather(1, y).squeeze(1))
            outputs[1].append(log_p.argmax(dim=1))
            if not wants:
                continue
            p = log_p.exp_()
            p.scatter_add_(1, y, p.new_full(y.shape, -1.0))  # softmax − one-hot
            g = p.to(h.dtype)
            at_hidden = g @ weight
            if norms:
                outputs[2].append(torch.linalg.vector_norm(p, dim=1))
                outputs[3].append(torch.linalg.vector_norm(at_hidden, dim=1, dtype=weights.dtype))
            assert grad_hidden is not None
            grad_hidden[part] = at_hidden * w[:, None].to(h.dtype)
            # Weights go to the small factor of a product: the large one is read as it is.
            if grad_weight is not None:
                grad_weight += g.T @ (h * w[:, None].to(h.dtype))
            elif needs[1]:
                grad_weight = g.T @ (h * w[:, None].to(h.dtype))
            if grad_bias is not None:
                grad_bias += w.to(h.dtype) @ g
        # Each empty one is a tensor of its own: compiled code cannot return one twice.
        joined = [torch.cat(o) if o else weights.new_zeros(0) for o in outputs]
        if not outputs[1]:
            joined[1] = labels.new_zeros(0)
        total = (joined[0] * weights).sum()
        if wants:
            ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
            ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(*joined)
        ctx.set_materialize_grads(False)
        return total, *joined

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        if scale is None:
            return (None,) * 7
        saved = ctx.saved_tensors
        wanted = ctx.dtypes
        scaled = (
            None if g is None else (g * scale.to(g.dtype)).to(d) for g, d in zip(saved, wanted, strict=True)
        )
        return *scaled, None, None, None, None


def vocabulary_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    weights: Tensor | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    norms: bool = False,
) -> TokenLosses:
    """Weighted cross entropy of `hidden @ weight.T + bias` against `labels`.

    Args:
        hidden: [N, width], what the head gives just before the vocabulary. N may be 0.
        weight: [vocabulary, width]; bias: [vocabulary] or None.
        labels: [N] int64 in [0, vocabulary).
        weights: [N] float32, weight of each token's loss in `total`; None is 1.
        chunk_bytes: largest size of the logits that exist at one time.
        norms: also give `residual` and `hidden_gradient`, at the cost of a pass over the logits.
    """
    if weights is None:
        weights = torch.ones_like(labels, dtype=torch.float32)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if not torch.is_grad_enabled():  # or the function would make gradients that nobody asks for
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    weights = weights.to(torch.promote_types(hidden.dtype, torch.float32))
    rows = max(1, chunk_bytes // (weights.element_size() * weight.shape[0]))
    with torch.autocast(hidden.device.type, enabled=False):
        outputs = _VocabularyLoss.apply(hidden, weight, bias, labels, weights, rows, norms)
    return TokenLosses(*outputs)
