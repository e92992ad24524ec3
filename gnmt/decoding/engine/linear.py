"""Linear layers for search: products of few rows with a fixed matrix.

`linear_maker` chooses between PackedLinear (oneDNN on a CPU, fp32 and bf16), Int8Linear (oneDNN, int8) and PlainLinear
(CUDA, and CPUs without oneDNN). FixedRangeInt8Linear is for inputs that are clipped in training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.device import onednn_dtypes

LinearMaker = Callable[[Tensor, Tensor | None], nn.Module]
"""A function of W [O, I] and b [O] or None that makes the module x -> x W^T + b. W and b are copied."""

# Number of rows for which oneDNN optimizes the memory layout of packed weights. Other numbers of rows work too.
_TYPICAL_ROWS = 160
_INT8_LARGEST = 127
_INT8_ZERO = 128  # zero point of the activations, whose integers are unsigned


def linear_maker(precision: str, device: torch.device, dtype: torch.dtype) -> LinearMaker:
    """Return the maker of the fastest linear layers for a precision and device. dtype: of their inputs and outputs."""
    if precision == "int8":
        return Int8Linear
    if device.type == "cpu" and dtype in onednn_dtypes():
        return lambda weight, bias: PackedLinear(weight, bias, dtype)
    return lambda weight, bias: PlainLinear(weight, bias, dtype)


class PlainLinear(nn.Module):
    """torch's own product with weights of type `dtype`, for CUDA and for CPUs without oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = _constant(weight, dtype)
        self.bias = None if bias is None else _constant(bias, dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight, self.bias)


class OneDNNLinear(nn.Module):
    """A linear layer with weights in oneDNN's own memory layout. Copies and pickles hold them in the plain layout."""

    packed: Tensor

    def pack(self, weight_OI: Tensor) -> Tensor:
        """Return a matrix in oneDNN's layout."""
        raise NotImplementedError

    def unpack(self) -> Tensor:
        """Return the matrix `packed` in the plain layout."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": self.unpack()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.packed = self.pack(self.packed)


class PackedLinear(OneDNNLinear):
    """oneDNN's product with weights in oneDNN's own memory layout, fp32 or bf16, without loss of precision.

    torch's own product passes plain weights to oneDNN (bf16) or MKL (fp32), which reorder them in every call.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = self.pack(_constant(weight, dtype))
        self.bias = None if bias is None else _constant(bias, dtype)

    def pack(self, weight_OI: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI, _TYPICAL_ROWS)
        return packed

    def unpack(self) -> Tensor:
        return self.packed.to_dense()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")
        return outputs


class Int8Linear(OneDNNLinear):
    """oneDNN's product of 8-bit integers, summed in 32 bits, with fp32 inputs and outputs.

    Each output has its own scale for its weights, w = q * scale with q in [-127, 127], and each row its own scale for
    its activations: the row is divided by its largest absolute value, and its product is multiplied by that value. So
    the result of a row is a function of that row alone, to the last bit. torch's dynamic quantization has one scale for
    all rows, which makes the translation of a sentence depend on the others in its batch.
    """

    output_scale_O: Tensor
    zero_O: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        weight_OI = _constant(weight, torch.float32)
        self.bias = None if bias is None else _constant(bias, torch.float32)
        scale_O = weight_OI.abs().amax(1).clamp_min_(torch.finfo(torch.float32).tiny) / _INT8_LARGEST
        self.output_scale_O = scale_O / _INT8_LARGEST
        self.zero_O = torch.zeros(len(weight_OI), dtype=torch.long)
        self.packed = self.pack((weight_OI / scale_O[:, None]).round_().to(torch.int8))
        self.levels_middle = torch.tensor(_INT8_ZERO + 0.5)

    def pack(self, weight_OI: Tensor) -> Tensor:
        packed: Tensor = torch.ops.onednn.qlinear_prepack(weight_OI, [_TYPICAL_ROWS, weight_OI.shape[1]])
        return packed

    def unpack(self) -> Tensor:
        return self.packed.to_dense().t().contiguous()  # qlinear_prepack transposes

    def forward(self, inputs: Tensor) -> Tensor:
        inputs_NI = inputs.reshape(-1, inputs.shape[-1])
        largest_N1 = inputs_NI.abs().amax(1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny)
        # [-1, 1] becomes 1 to 255. Truncation after adding the half rounds to the nearest integer.
        levels_NI = torch.addcmul(self.levels_middle, inputs_NI, _INT8_LARGEST / largest_N1).to(torch.uint8)
        outputs_NO = self.product(levels_NI)
        if self.bias is None:
            outputs_NO.mul_(largest_N1)
        else:
            torch.addcmul(self.bias, outputs_NO, largest_N1, out=outputs_NO)  # scale and bias in one pass
        return outputs_NO.view(*inputs.shape[:-1], -1)

    def product(self, levels_NI: Tensor) -> Tensor:
        """Return output_scale_O times the integer product of weights and (levels - 128), [N, O], without the bias.

        oneDNN multiplies by one number. With a second scale for the levels, the order of the two multiplications, and
        so the last bit of the result, differs between its kernels for one row and for several.
        """
        outputs_NO: Tensor = torch.ops.onednn.qlinear_pointwise(
            levels_NI,
            1.0,
            _INT8_ZERO,
            self.packed,
            self.output_scale_O,
            self.zero_O,
            None,  # the bias is added after the row's scale
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return outputs_NO


class FixedRangeInt8Linear(Int8Linear):
    """An Int8Linear for inputs in [-bound, bound], which share one scale (Wu et al. 2016, section 6).

    The range is known from training, so no pass over the inputs looks for the largest value of a row, and none over the
    outputs multiplies it. Inputs beyond the range count as its ends.

    Args:
        weight: W.
        bias: b, or None.
        bound: Bound of the inputs.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, bound: float) -> None:
        super().__init__(weight, bias)
        self.output_scale_O = self.output_scale_O * bound
        self.levels_per_unit = torch.tensor(_INT8_LARGEST / bound)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs_NI = inputs.reshape(-1, inputs.shape[-1])
        levels_NI = torch.addcmul(self.levels_middle, inputs_NI, self.levels_per_unit)
        levels_NI.clamp_(_INT8_ZERO - _INT8_LARGEST, _INT8_ZERO + _INT8_LARGEST + 0.5)
        outputs_NO = self.product(levels_NI.to(torch.uint8))
        if self.bias is not None:
            outputs_NO.add_(self.bias)
        return outputs_NO.view(*inputs.shape[:-1], -1)


def _constant(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a contiguous copy of the given data type without gradients."""
    return parameter.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
