"""The convolutional encoder: gated convolutions over the source, each layer seeing farther than the one below."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from gnmt.model.convolution import SUM_SCALE, GatedConvolution, NormalisedLinear
from gnmt.model.dropout import Dropout
from gnmt.model.interfaces import Encoder
from gnmt.model.positions import Positions
from gnmt.types import Encoded, InputError, Range


class ConvolutionalEncoder(Encoder):
    """Gehring et al. 2017, section 3.2. States have the embeddings' width, whatever the layers have.

    Beside the states it gives, by token, `embedded` [B, S, input_size]: the embeddings with their positions, which the
    convolutional decoder adds to the states.
    input_size: of embeddings and states. hidden_size: of every layer. kernel_size: positions that a convolution sees,
    odd, so that it is the same in both directions. learned_positions: so many learned positions, or None for
    sinusoids. dropout: of the embeddings, and of every convolution's input.
    Raises InputError for an even kernel_size.
    """

    def __init__(
        self,
        input_size: Annotated[int, Range(1)],
        hidden_size: Annotated[int, Range(1)],
        num_layers: Annotated[int, Range(1)],
        kernel_size: Annotated[int, Range(1)] = 3,
        learned_positions: Annotated[int, Range(1)] | None = 1024,
        dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.1,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise InputError(
                f"model.encoder.kernel_size={kernel_size} is even: a window must reach as far back as ahead, so "
                f"choose {kernel_size - 1} or {kernel_size + 1}"
            )
        self.input_size = self.output_size = input_size
        self.max_tokens = learned_positions
        self.positions = Positions(input_size, learned_positions, std=0.1)
        self.dropout = Dropout(dropout)
        self.enter = NormalisedLinear(input_size, hidden_size, gain=1 - dropout)
        self.layers = nn.ModuleList(GatedConvolution(hidden_size, kernel_size, dropout) for _ in range(num_layers))
        self.leave = NormalisedLinear(hidden_size, input_size)

    def forward(self, embedded_BSE: Tensor, lengths_B: Tensor) -> Encoded:
        """States [B, S, input_size] and `embedded`. Padding is zero before every convolution, as what is outside."""
        padding_BS1 = (torch.arange(embedded_BSE.shape[1], device=lengths_B.device) >= lengths_B[:, None])[..., None]
        positioned_BSE = self.dropout(embedded_BSE + self.positions.over_time(embedded_BSE))
        states_BSH = self.enter(positioned_BSE)
        for layer in self.layers:
            assert isinstance(layer, GatedConvolution)
            inputs_BSH = states_BSH.masked_fill(padding_BS1, 0.0)
            states_BSH = (layer.over_time(inputs_BSH, layer.kernel_size // 2) + inputs_BSH) * SUM_SCALE
        return Encoded(self.leave(states_BSH), {"embedded": positioned_BSE})
