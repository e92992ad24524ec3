"""Weight-normalised layers and gated convolutions over time (Gehring et al. 2017, sections 3.2 and 3.5)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.model.dropout import Dropout

SUM_SCALE = math.sqrt(0.5)
"""What a sum of two terms of equal variance is multiplied by to keep that variance (section 3.5)."""


class NormalisedLinear(nn.Module):
    """x W^T + b with W = g v/|v| for each output (Salimans and Kingma 2016).

    Weights start normal with variance gain / input_size, after section 3.5 and appendix A: a layer behind dropout with
    probability p has the gain 1 - p, one before a gated linear unit four times as much. Biases start at zero.
    """

    def __init__(self, input_size: int, output_size: int, gain: float = 1.0) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(output_size, input_size).normal_(std=math.sqrt(gain / input_size)))
        self.scale = nn.Parameter(torch.linalg.vector_norm(self.direction.detach(), dim=1))
        self.bias = nn.Parameter(torch.zeros(output_size))

    @property
    def weight(self) -> Tensor:
        """[O, I]."""
        lengths_O1 = torch.linalg.vector_norm(self.direction, dim=1, keepdim=True)
        weight_OI: Tensor = self.direction * (self.scale[:, None] / lengths_O1)
        return weight_OI

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., O] of [..., I]."""
        return F.linear(inputs, self.weight, self.bias)


class GatedConvolution(nn.Module):
    """Dropout, a convolution over kernel_size positions, a gated linear unit, and the connection past them.

    The convolution is a product with the positions of its window side by side, so the same weights serve a whole
    sentence and one step of search. dropout: of what it reads; the connection past it is not touched.
    """

    def __init__(self, hidden_size: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.dropout = Dropout(dropout)
        self.product = NormalisedLinear(kernel_size * hidden_size, 2 * hidden_size, gain=4 * (1 - dropout))

    def over_time(self, inputs_BTH: Tensor, num_before: int) -> Tensor:
        """GLU of the convolution, [B, T, H]; a window has num_before earlier positions, the others are later ones."""
        num_after = self.kernel_size - 1 - num_before
        padded_BPH = F.pad(self.dropout(inputs_BTH), (0, 0, num_before, num_after))
        num_steps = inputs_BTH.shape[1]
        windows_BTW = torch.cat([padded_BPH[:, place : place + num_steps] for place in range(self.kernel_size)], dim=2)
        return self.gated(windows_BTW)

    def step(self, inputs_BKH: Tensor, earlier_BKPH: Tensor) -> tuple[Tensor, Tensor]:
        """GLU [B, K, H] of the window that ends here, and the kernel_size - 1 inputs [B, K, P, H] for the next step."""
        window_BKPH = torch.cat((earlier_BKPH.to(inputs_BKH.dtype), inputs_BKH[:, :, None]), dim=2)
        return self.gated(window_BKPH.flatten(2)), window_BKPH[:, :, 1:]

    def gated(self, windows: Tensor) -> Tensor:
        """a * sigmoid(b), where a and b are the halves of the product."""
        outputs: Tensor = F.glu(self.product(windows), dim=-1)
        return outputs


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The tensor itself, to the last bit; its gradient is multiplied by the factor."""
    fixed = tensor.detach()
    return fixed + (tensor - fixed) * factor
