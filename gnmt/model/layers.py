"""Dropout, positions, and linear maps that every architecture uses."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.device import onednn_dtypes
from gnmt.errors import InputError

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """nn.Dropout (Srivastava et al. 2014); on a CPU with the mask from 16 random bits an element.

    There torch draws one number for every element, which is several percent of a training step. One draw of 64
    bits serves four elements here, from the same global generator; the probability is rounded to 1/65,536.
    variational: draw one mask for all time steps of a sentence, inputs [T, B, H] (Gal and Ghahramani 2016).
    """

    def __init__(self, probability: float, variational: bool = False) -> None:
        super().__init__(probability)
        self.variational = variational

    def forward(self, inputs: Tensor) -> Tensor:
        """Each element 0 with probability p, otherwise divided by 1 - p; the inputs themselves in evaluation."""
        if not self.training or self.p == 0:
            return inputs
        shape = torch.Size((1, *inputs.shape[1:])) if self.variational else inputs.shape
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


class Positions(nn.Module):
    """One vector [size] for each position, counted from 0.

    learned: so many learned vectors (Gehring et al. 2017, section 3.1), drawn normal with standard deviation `std`;
    None for sinusoids, which have no limit and no parameters (Vaswani et al. 2017, section 3.5).
    """

    def __init__(self, size: int, learned: int | None, std: float = 0.02) -> None:
        super().__init__()
        self.size = size
        self.table = None if learned is None else nn.Parameter(torch.empty(learned, size).normal_(std=std))

    def forward(self, embedded_BTE: Tensor) -> Tensor:
        """The first T vectors, [T, E], in the embeddings' type. Raises InputError where fewer are learned."""
        num_positions = embedded_BTE.shape[1]
        if self.table is None:
            return sinusoids(torch.arange(num_positions, device=embedded_BTE.device), self.size, embedded_BTE.dtype)
        if num_positions > len(self.table):
            raise InputError(
                f"a sentence of {num_positions} tokens meets a model with learned_positions={len(self.table)}: leave "
                f"longer ones out of training (data.cleaning.max_length_tokens={len(self.table)}), cut what is "
                f"translated (max_source_tokens={len(self.table)}), or train with more learned_positions, or null"
            )
        return self.table[:num_positions]

    def at(self, positions: Tensor, like: Tensor) -> Tensor:
        """The vectors [..., E] of int64 positions [...], in the type of `like`.

        Behind the last learned position comes that one again: a hypothesis that search lets grow longer than any
        sentence of training must not end the search of others.
        """
        if self.table is None:
            return sinusoids(positions, self.size, like.dtype)
        return nn.functional.embedding(positions.clamp(max=len(self.table) - 1), self.table)


def sinusoids(positions: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """sin and cos of position / 10000^(2i/size), side by side: [..., size]; Vaswani et al. 2017, section 3.5.

    The angles are fp32 or better whatever the type: in bf16, positions above 256 would fall together.
    """
    precise = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, size, 2, device=positions.device, dtype=precise) / size
    angles = positions[..., None].to(precise) * torch.exp(-math.log(10000.0) * exponents)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :size].to(dtype)


def affine(inputs_NI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """inputs W^T + b, [N, O], all of one type. For use inside autograd functions: gradients do not go through it.

    On a CPU, torch writes the bias into every row first and has the product added to it; oneDNN's own call adds the
    bias while it makes the product, and spares two passes over the result.
    """
    if inputs_NI.device.type == "cpu" and inputs_NI.dtype in onednn_dtypes() and inputs_NI.numel():
        result_NO: Tensor = torch.ops.mkldnn._linear_pointwise(inputs_NI, weight_OI, bias_O, "none", [], "")
        return result_NO
    return F.linear(inputs_NI, weight_OI, bias_O)
