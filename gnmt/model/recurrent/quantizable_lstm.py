"""The LSTM layer that GNMT quantizes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from gnmt.model.clipping import Clip
from gnmt.model.layers import Dropout
from gnmt.model.recurrent.fast_lstm import clipped_lstm
from gnmt.model.recurrent.layers import LayerState, StepwiseLayer, at_last_tokens


class QuantizableLSTM(StepwiseLayer):
    """An LSTM layer without biases and without tanh of the output, whose cells are clipped (Wu et al. 2016, section 6).

    With the gates i, f and o and the candidate g of the products W x + U m, the cell is
    c = clip(f c' + i g, -delta, delta) and the output m = o c (eq. 10 and 11), so it lies in [-delta, delta] too.

    No fused kernel clips inside a step. Training runs `clipped_lstm`, inference the loop of StepwiseLayer, because an
    inference copy replaces the Linear modules.

    Args:
        input_size: Width of the inputs.
        hidden_size: Width of the outputs.
        weight_dropout: Dropout probability of U; see LSTM.
    """

    def __init__(self, input_size: int, hidden_size: int, weight_dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.weight_dropout = Dropout(weight_dropout)
        self.from_inputs = nn.Linear(input_size, 4 * hidden_size, bias=False)
        self.from_hidden = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.clip = Clip()

    def forward(self, inputs_TBI: Tensor, state: LayerState | None = None) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(inputs_TBI, state)
        return self._train(inputs_TBI, state)[0]

    def forward_with_final_state(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, LayerState]:
        if not torch.is_grad_enabled():
            return super().forward_with_final_state(inputs_TBI, lengths_B)
        outputs_TBH, cells_TBH = self._train(inputs_TBI, None)
        return outputs_TBH, (at_last_tokens(outputs_TBH, lengths_B), at_last_tokens(cells_TBH, lengths_B))

    def _train(self, inputs_TBI: Tensor, state: LayerState | None) -> tuple[Tensor, Tensor]:
        weights = self.from_inputs.weight, self.weight_dropout(self.from_hidden.weight)
        return clipped_lstm(inputs_TBI, *weights, self.clip.delta, cast(tuple[Tensor, Tensor] | None, state))

    def project(self, inputs: Tensor) -> Tensor:
        projected: Tensor = self.from_inputs(inputs)
        return projected

    def start(self, num_sequences: int, like: Tensor) -> LayerState:
        hidden_NH = like.new_zeros(num_sequences, self.hidden_size)
        return hidden_NH, hidden_NH.to(torch.promote_types(like.dtype, torch.float32))

    def next_state(self, projected_NP: Tensor, state: LayerState) -> LayerState:
        """Return the next state: the output in its own type, the cell in fp32 or fp64, like the gates."""
        hidden_NH, cell_NH = state
        summed_NG = (projected_NP + self.from_hidden(hidden_NH)).to(cell_NH.dtype)
        input_NH, forget_NH, candidate_NH, output_NH = summed_NG.chunk(4, dim=1)
        cell_NH = self.clip(forget_NH.sigmoid() * cell_NH + input_NH.sigmoid() * candidate_NH.tanh())
        return (output_NH.sigmoid() * cell_NH).to(hidden_NH.dtype), cell_NH

    def bounded(self, sums: Tensor) -> Tensor:
        clipped: Tensor = self.clip(sums)
        return clipped
