"""What training minimises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.types import Range

CHUNK_TOKENS = 512
"""Tokens whose logits are held at a time: enough for full matrix products."""


class LabelSmoothedCrossEntropy(nn.Module):
    """Cross-entropy against a target that gives `smoothing` of its mass to all ids that can occur.

    loss = (1 - smoothing) * -log p(y) + smoothing * mean over the allowed ids of -log p; natural logs.
    The logits are of the type of the products (bf16 under autocast), sums over tokens fp32.
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

    With z the logits of a token, u the distribution of the smoothed mass and s its share,
    loss = log sum exp z - (1 - s) z_y - s u.z. The part with u is linear in the hidden states: over all tokens
    its value and its gradients are products with one row, W'u, and need no pass over the logits.
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
        dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
        # One cast for all chunks, where autocast would cast the weight again in each.
        weight = weight_VH.to(product_dtype(hidden_NH))
        bias = bias_V.to(weight.dtype)
        loss_sum = hidden_NH.new_zeros((), dtype=dtype)
        grad_hidden_NH = torch.empty_like(hidden_NH) if wanted else None
        grad_weight_VH = torch.zeros_like(weight_VH) if wanted else None
        grad_bias_V = torch.zeros_like(bias_V) if wanted else None
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for start in range(0, hidden_NH.shape[0], CHUNK_TOKENS):
                chunk = slice(start, start + CHUNK_TOKENS)
                hidden, labels = hidden_NH[chunk].to(weight.dtype), labels_N[chunk, None]
                logits = F.linear(hidden, weight, bias)
                # Training keeps the probabilities in the type of the products, which is what the gradient needs.
                probabilities = torch.softmax(logits if wanted else logits.to(dtype), dim=-1)
                # The largest probability is exp(largest logit - normaliser), and never too small for its logarithm.
                normaliser = logits.amax(1).to(dtype) - probabilities.amax(1).to(dtype).log()
                loss_sum += (normaliser - (1 - smoothing) * logits.gather(1, labels).squeeze(1).to(dtype)).sum()
                if grad_hidden_NH is None or grad_weight_VH is None or grad_bias_V is None:
                    continue
                grad = probabilities.scatter_add_(1, labels, probabilities.new_full(labels.shape, smoothing - 1))
                grad_bias_V += grad.sum(0, dtype=dtype)
                grad_hidden_NH[chunk] = grad @ weight
                grad_weight_VH += grad.T @ hidden
            if smoothing:
                uniform_V = uniform_V.to(weight_VH.dtype)
                mean_row_H, mean_bias = uniform_V @ weight_VH, uniform_V @ bias_V
                num_tokens, hidden_sum_H = hidden_NH.shape[0], hidden_NH.sum(0, dtype=weight_VH.dtype)
                loss_sum -= smoothing * (hidden_sum_H @ mean_row_H + num_tokens * mean_bias)
                if grad_hidden_NH is not None and grad_weight_VH is not None and grad_bias_V is not None:
                    grad_hidden_NH -= smoothing * mean_row_H.to(grad_hidden_NH.dtype)
                    grad_weight_VH.addr_(uniform_V, hidden_sum_H, alpha=-smoothing)
                    grad_bias_V -= smoothing * num_tokens * uniform_V
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
