"""Small layers that several architectures use: dropout, word dropout, positions, and a fast linear map."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.device import onednn_dtypes
from gnmt.errors import InputError

_DROPOUT_LEVELS = 1 << 16  # number of values of the 16 random bits of an element


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014) with a faster mask on CPUs.

    torch's own dropout draws one random number for each element, which takes several percent of a training step on a
    CPU. Here an element needs 16 bits, so one draw of 64 bits from the same global generator serves four elements, and
    the probability is rounded to a multiple of 1/65,536. Other devices use torch's dropout.

    Args:
        probability: Probability with which an element is zeroed.
        variational: Whether one mask is drawn for all time steps of a sentence (Gal and Ghahramani 2016). The inputs
            must then be [T, B, H].
    """

    def __init__(self, probability: float, variational: bool = False) -> None:
        super().__init__(probability)
        self.variational = variational

    def forward(self, inputs: Tensor) -> Tensor:
        """Zero elements with probability p and divide the others by 1 - p; in evaluation return the inputs."""
        if not self.training or self.p == 0:
            return inputs
        shape = torch.Size((1, *inputs.shape[1:])) if self.variational else inputs.shape
        if inputs.device.type != "cpu":
            if shape == inputs.shape:
                return super().forward(inputs)
            return inputs * super().forward(inputs.new_ones(shape))
        keep = round((1 - self.p) * _DROPOUT_LEVELS)
        return inputs * _random_mask(shape, keep).to(inputs.dtype).mul_(_DROPOUT_LEVELS / max(keep, 1))


class WordDropout(Dropout):
    """Dropout of whole embeddings in [B, T, E]."""

    def forward(self, inputs: Tensor, kept_BT: Tensor | None = None) -> Tensor:
        """Zero vectors with probability p and divide the others by 1 - p; in evaluation return the inputs.

        Args:
            inputs: Embeddings [B, T, E].
            kept_BT: True for vectors that stay as they are; None for no such vector.
        """
        if not self.training or self.p == 0:
            return inputs
        factors_BT = super().forward(inputs.new_ones(inputs.shape[:-1]))
        if kept_BT is not None:
            factors_BT = factors_BT.masked_fill(kept_BT, 1.0)
        return inputs * factors_BT[..., None]


def _random_mask(shape: torch.Size, keep: int) -> Tensor:
    """Draw a bool tensor on the CPU whose elements are True with probability keep / 65,536."""
    num_elements = shape.numel()
    draws = torch.empty((num_elements + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    if keep == _DROPOUT_LEVELS:
        return torch.ones(shape, dtype=torch.bool)  # the threshold below would overflow int16
    levels = draws.view(torch.int16)[:num_elements].view(shape)  # uniform over -32,768 to 32,767
    return levels < keep - _DROPOUT_LEVELS // 2


class Positions(nn.Module):
    """Position vectors, learned or sinusoidal; positions are counted from 0.

    Args:
        size: Width of the vectors.
        learned: Number of learned vectors (Gehring et al. 2017, section 3.1), or None for sinusoids (Vaswani et al.
            2017, section 3.5), which have neither parameters nor a limit.
        std: Standard deviation of the normal distribution from which learned vectors are drawn.
    """

    def __init__(self, size: int, learned: int | None, std: float = 0.02) -> None:
        super().__init__()
        self.size = size
        self.table = None if learned is None else nn.Parameter(torch.empty(learned, size).normal_(std=std))

    def forward(self, embedded_BTE: Tensor) -> Tensor:
        """Return the vectors of the first T positions, [T, E]; sinusoids in the embeddings' type.

        Raises:
            InputError: If there are fewer than T learned vectors.
        """
        num_positions = embedded_BTE.shape[1]
        if self.table is None:
            return sinusoids(torch.arange(num_positions, device=embedded_BTE.device), self.size, embedded_BTE.dtype)
        limit = len(self.table)
        if num_positions > limit:
            raise InputError(
                f"a sentence has {num_positions} tokens, but the model has learned_positions={limit}: for training, "
                f"set data.cleaning.max_length_tokens={limit}, or train with more learned_positions, or null; for "
                f"translation, set max_source_tokens={limit}"
            )
        return self.table[:num_positions]

    def at(self, positions: Tensor, like: Tensor) -> Tensor:
        """Return the vectors [..., E] of int64 positions [...]; sinusoids in the type of `like`.

        Positions after the last learned one get its vector. An error would stop the search of the whole batch because
        of one long hypothesis.
        """
        if self.table is None:
            return sinusoids(positions, self.size, like.dtype)
        return nn.functional.embedding(positions.clamp(max=len(self.table) - 1), self.table)


def sinusoids(positions: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return sinusoidal position vectors [..., size] (Vaswani et al. 2017, section 3.5).

    Sine and cosine of position / 10000^(2i/size) alternate. Angles are computed in fp32 or fp64 for every `dtype`,
    because bf16 cannot distinguish neighboring positions above 256.

    Args:
        positions: Positions [...], int64.
        size: Width of the vectors.
        dtype: Type of the result.
    """
    precise = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, size, 2, device=positions.device, dtype=precise) / size
    angles = positions[..., None].to(precise) * torch.exp(-math.log(10000.0) * exponents)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :size].to(dtype)


def product_dtype(inputs: Tensor) -> torch.dtype:
    """Return the type of matrix products with these inputs: autocast's type where it is enabled, else their own."""
    device = inputs.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype


def affine(inputs_NI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """Return inputs W^T + b, [N, O]. It propagates no gradients: call it inside an autograd function.

    On a CPU, `F.linear` first writes the bias into every row and then adds the product. oneDNN's own call adds the
    bias during the product, which saves two passes over the result.

    Args:
        inputs_NI: Inputs; all three tensors have one type.
        weight_OI: W.
        bias_O: b.
    """
    if inputs_NI.device.type == "cpu" and inputs_NI.dtype in onednn_dtypes() and inputs_NI.numel():
        result_NO: Tensor = torch.ops.mkldnn._linear_pointwise(inputs_NI, weight_OI, bias_O, "none", [], "")
        return result_NO
    return F.linear(inputs_NI, weight_OI, bias_O)
