"""Matrix products of training that torch's own modules do not send the shortest way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def affine(inputs_NI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """inputs W^T + b, [N, O], all of one type. For use inside autograd functions: gradients do not go through it.

    On a CPU, torch writes the bias into every row first and has the product added to it; oneDNN's own call adds the
    bias while it makes the product, and spares two passes over the result.
    """
    if inputs_NI.device.type == "cpu" and inputs_NI.dtype in onednn_dtypes() and inputs_NI.numel():
        result_NO: Tensor = torch.ops.mkldnn._linear_pointwise(inputs_NI, weight_OI, bias_O, "none", [], "")
        return result_NO
    return F.linear(inputs_NI, weight_OI, bias_O)


def onednn_dtypes() -> tuple[torch.dtype, ...]:
    """The types that oneDNN multiplies on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)
