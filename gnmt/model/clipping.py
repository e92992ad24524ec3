"""Clipping of activations to a known range, so that a trained model can be quantized (Wu et al. 2016, section 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from gnmt.config.validate import Range
from gnmt.errors import InputError

Bound = Annotated[float, Range(0, 1000, open_low=True)]


@dataclass(frozen=True)
class Clipping:
    """Bounds of activations and logits (Wu et al. 2016, eq. 10 and 13).

    Cells, outputs of layers, residual sums, embeddings, attended states and hidden states are clipped to
    [-delta, delta]. The bound delta falls linearly in training. A checkpoint contains the delta of its update, with
    which it is evaluated and translates.

    Args:
        start: The first delta.
        end: The last delta.
        steps: Updates until delta is `end`.
        logits: Bound gamma of the logits, in training and search.
    """

    start: Bound = 8.0
    end: Bound = 1.0
    steps: Annotated[int, Range(1)] = 4000
    logits: Bound = 25.0

    def __post_init__(self) -> None:
        if self.start < self.end:
            raise InputError(
                f"model.clipping.start={self.start:g} is less than model.clipping.end={self.end:g}: the bound falls in "
                "training, so give a start of at least the end"
            )

    def delta(self, step: int) -> float:
        """Return the bound of activations in update `step`, counted from 0."""
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)


class Clip(nn.Module):
    """Clip to [-delta, delta]. `Seq2Seq.begin_update` sets delta, a buffer, which checkpoints contain."""

    delta: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("delta", torch.ones(()))

    def forward(self, values: Tensor) -> Tensor:
        """Return the clipped values, in their type; the gradient of a clipped value is 0."""
        delta = self.delta.to(values.dtype)
        return values.clamp(-delta, delta)


def is_clipping_delta(name: str) -> bool:
    """Return whether a name in a model's state dict is that of the delta of a `Clip`."""
    return name.endswith("clip.delta")
