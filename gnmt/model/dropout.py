"""Dropout whose random numbers cost little."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """nn.Dropout (Srivastava et al. 2014); on a CPU with the mask from 16 random bits an element.

    There torch draws one number for every element, which is several percent of a training step. One draw of 64
    bits serves four elements here, from the same global generator; the probability is rounded to 1/65,536.
    over_time: "fresh" draws for every element of [T, B, H]; "shared" draws once for all T of a sentence (variational
    dropout, Gal and Ghahramani 2016), so that a unit is missing for a whole sentence and cannot be made up for by the
    same unit a step later.
    """

    def __init__(self, probability: float, over_time: Literal["fresh", "shared"] = "fresh") -> None:
        super().__init__(probability)
        self.over_time = over_time

    def forward(self, inputs: Tensor) -> Tensor:
        """Each element 0 with probability p, otherwise divided by 1 - p; the inputs themselves in evaluation."""
        if not self.training or self.p == 0:
            return inputs
        shape = torch.Size((1, *inputs.shape[1:])) if self.over_time == "shared" else inputs.shape
        if inputs.device.type != "cpu":
            return (
                inputs * super().forward(inputs.new_ones(shape)) if shape != inputs.shape else super().forward(inputs)
            )
        keep = round((1 - self.p) * _LEVELS)
        return inputs * kept(shape, keep).to(inputs.dtype).mul_(_LEVELS / max(keep, 1))


class WordDropout(Dropout):
    """Drops whole vectors of [B, T, E]."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Each vector zero with probability p, otherwise divided by 1 - p; the inputs themselves in evaluation."""
        if not self.training or self.p == 0:
            return inputs
        return inputs * super().forward(inputs.new_ones(inputs.shape[:-1]))[..., None]


def kept(shape: torch.Size, keep: int) -> Tensor:
    """bool of that shape, each element True with probability keep / 65,536."""
    num_elements = shape.numel()
    draws = torch.empty((num_elements + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    levels = draws.view(torch.int16)[:num_elements].view(shape)  # from -32,768, all equally likely
    return levels < keep - _LEVELS // 2 if keep < _LEVELS else torch.ones(shape, dtype=torch.bool)
