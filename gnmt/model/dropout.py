"""Dropout whose random numbers cost little."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """nn.Dropout (Srivastava et al. 2014); on a CPU with the mask from 16 random bits an element.

    There torch draws one number for every element, which is several percent of a training step. One draw of 64
    bits serves four elements here, from the same global generator; the probability is rounded to 1/65,536.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Each element 0 with probability p, otherwise divided by 1 - p; the inputs themselves in evaluation."""
        if not self.training or self.p == 0 or inputs.device.type != "cpu":
            return super().forward(inputs)
        keep = round((1 - self.p) * _LEVELS)
        return inputs * kept(inputs.shape, keep).to(inputs.dtype).mul_(_LEVELS / max(keep, 1))


def kept(shape: torch.Size, keep: int) -> Tensor:
    """bool of that shape, each element True with probability keep / 65,536."""
    num_elements = shape.numel()
    draws = torch.empty((num_elements + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    levels = draws.view(torch.int16)[:num_elements].view(shape)  # from -32,768, all equally likely
    return levels < keep - _LEVELS // 2 if keep < _LEVELS else torch.ones(shape, dtype=torch.bool)
