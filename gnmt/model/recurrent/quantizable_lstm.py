"""The LSTM layer that GNMT quantizes."""

from __future__ import annotations

from torch import Tensor

from gnmt.model.clipping import Clip
from gnmt.model.recurrent.fast_lstm import clipped_lstm
from gnmt.model.recurrent.layers import HandDerivedLSTM, LayerState


class QuantizableLSTM(HandDerivedLSTM):
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
        super().__init__(input_size, hidden_size, weight_dropout)
        self.clip = Clip()

    def train_steps(
        self, inputs_TBI: Tensor, weight_ih_GI: Tensor, weight_hh_GH: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        return clipped_lstm(inputs_TBI, weight_ih_GI, weight_hh_GH, self.clip.delta, state)

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
