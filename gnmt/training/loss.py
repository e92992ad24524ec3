"""What training minimises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.types import Range

CHUNK_ELEMENTS = 2**21
"""Logits held at a time: small enough for a CPU's cache, large enough for full matrix products."""


class LabelSmoothedCrossEntropy(nn.Module):
    """Cross-entropy against a target that gives `smoothing` of its mass to all ids that can occur.

    loss = (1 - smoothing) * -log p(y) + smoothing * mean over the allowed ids of -log p; natural logs in fp32.
    never_produced: ids that no sentence ever holds (PAD, BOS, and UNK where byte fallback makes it impossible);
    they get no mass, or they would sometimes be produced. Smoothed in training mode only: in eval mode this is
    the plain cross-entropy, whose exponential is the perplexity.
    """

    uniform_V: Tensor

    def __init__(
        self,
        vocabulary_size: Annotated[int, Range(4)],
        never_produced: Sequence[int],
        smoothing: Annotated[float, Range(0, 1, open_high=True)] = 0.1,
    ) -> None:
        super().__init__()
        self.smoothing = smoothing
        allowed_V = torch.ones(vocabulary_size)
        allowed_V[list(never_produced)] = 0
        self.register_buffer("uniform_V", allowed_V / allowed_V.sum(), persistent=False)

    def forward(self, hidden_NH: Tensor, output_layer: nn.Linear, labels_N: Tensor) -> Tensor:
        """The sum over N tokens of their losses, fp32 scalar. labels_N: int64."""
        smoothing = self.smoothing if self.training else 0.0
        loss_sum: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_NH,
            output_layer.weight,
            output_layer.bias,
            labels_N,
            self.uniform_V,
            smoothing,
            torch.is_grad_enabled(),  # inside, it is always off
        )
        return loss_sum


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Logits, loss and gradients chunk by chunk, so that [N, V] is never held.

    The gradient of a sum of losses does not depend on what follows but for a factor, so it is computed together
    with the loss, while a chunk's logits are in cache, and backward only multiplies.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor,
        labels_N: Tensor,
        uniform_V: Tensor,
        smoothing: float,
        with_gradient: bool,
    ) -> Tensor:
        wanted = with_gradient and any(ctx.needs_input_grad)
        # One cast for all chunks, where autocast would cast the weight again in each.
        weight = weight_VH.to(product_dtype(hidden_NH))
        bias = bias_V.to(weight.dtype)
        loss_sum = hidden_NH.new_zeros((), dtype=torch.promote_types(hidden_NH.dtype, torch.float32))
        grad_hidden_NH = torch.empty_like(hidden_NH) if wanted else None
        grad_weight_VH = torch.zeros_like(weight_VH) if wanted else None
        grad_bias_V = torch.zeros_like(bias_V) if wanted else None
        size = max(1, CHUNK_ELEMENTS // weight_VH.shape[0])
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for start in range(0, hidden_NH.shape[0], size):
                chunk = slice(start, start + size)
                hidden, labels = hidden_NH[chunk].to(weight.dtype), labels_N[chunk]
                log_probs = F.log_softmax(F.linear(hidden, weight, bias).to(loss_sum.dtype), dim=-1)
                label_log_probs = log_probs.gather(1, labels[:, None])
                loss_sum -= (1 - smoothing) * label_log_probs.sum()
                if smoothing:
                    loss_sum -= smoothing * (log_probs @ uniform_V.to(log_probs.dtype)).sum()
                if grad_hidden_NH is None or grad_weight_VH is None or grad_bias_V is None:
                    continue
                grad = log_probs.exp_()
                if smoothing:
                    grad -= smoothing * uniform_V
                grad.scatter_add_(1, labels[:, None], torch.full_like(label_log_probs, smoothing - 1))
                grad_bias_V += grad.sum(0)
                grad = grad.to(weight.dtype)
                grad_hidden_NH[chunk] = grad @ weight
                grad_weight_VH += grad.T @ hidden
        ctx.save_for_backward(grad_hidden_NH, grad_weight_VH, grad_bias_V)
        return loss_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        factor = grads[0]
        # In the factor's type: rounded to bf16, it would scale the whole gradient by up to 0.4% too much or too little.
        scaled = ((saved.to(factor.dtype) * factor).to(saved.dtype) for saved in ctx.saved_tensors)
        return (*scaled, None, None, None, None)


def product_dtype(hidden: Tensor) -> torch.dtype:
    """The type in which a matrix product of these hidden states runs: autocast's where that is on."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
