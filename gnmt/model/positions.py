"""Where in its sentence a token stands, for models that would not know otherwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gnmt.types import InputError


class Positions(nn.Module):
    """One vector [size] for each position, counted from 0.

    learned: so many learned vectors (Gehring et al. 2017, section 3.1), drawn normal with standard deviation `std`;
    None for sinusoids, which have no limit and no parameters (Vaswani et al. 2017, section 3.5).
    """

    def __init__(self, size: int, learned: int | None, std: float = 0.02) -> None:
        super().__init__()
        self.size = size
        self.table = None if learned is None else nn.Parameter(torch.empty(learned, size).normal_(std=std))

    def over_time(self, embedded_BTE: Tensor) -> Tensor:
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
