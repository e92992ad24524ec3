"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.types import Range


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

    def forward(self, hidden_NH: Tensor, output: Callable[[Tensor], Tensor], labels_N: Tensor) -> Tensor:
        """The sum over N tokens of their losses, fp32 scalar. output: hidden states to logits."""
        logits_NV = output(hidden_NH).float()
        nll = F.cross_entropy(logits_NV, labels_N, reduction="sum")
        if not self.training or self.smoothing == 0:
            return nll
        # mean over allowed ids of -log p = logsumexp - mean over allowed ids of the logits
        uniform_loss = (torch.logsumexp(logits_NV, dim=-1) - logits_NV @ self.uniform_V).sum()
        return (1 - self.smoothing) * nll + self.smoothing * uniform_loss
