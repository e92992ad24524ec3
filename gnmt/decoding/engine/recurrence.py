"""LSTMs for search: their matrices as few packed products, their gates as one sigmoid.

tanh(x) = 2 sigmoid(2x) - 1, and on a CPU torch's sigmoid takes a sixth of the time of its tanh. With the rows of the
cell gate (g) doubled beforehand, one sigmoid serves all four gates. The results differ by rounding, 1e-7.
Gates and cell are fp32 in every precision (sums over time lose too much in bf16), hidden states of the inputs' type.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnmt.decoding.engine.linear import LinearMaker
from gnmt.model.recurrence import LSTM, CellState, SteppedRecurrence


class FastLSTM(SteppedRecurrence):
    """What both kinds share: a subclass has `project`, what the inputs add to the gates, and `gates`."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def gates(self, projected_NP: Tensor, hidden_NH: Tensor) -> Tensor:
        """Input, forget, doubled cell and output gate before their sigmoid, [N, 4H], in memory of their own."""
        raise NotImplementedError

    def start(self, num_sequences: int, like: Tensor) -> CellState:
        hidden_NH = like.new_zeros(num_sequences, self.hidden_size)
        return hidden_NH, torch.zeros_like(hidden_NH, dtype=torch.float32)

    def next_state(self, projected_NP: Tensor, state: CellState) -> CellState:
        return self.opened(self.gates(projected_NP, state[0]), state)

    def opened(self, gates_NG: Tensor, state: CellState) -> CellState:
        """c' = f c + i tanh(g), h' = o tanh(c'), with both tanh as sigmoids; the gates' memory is written over."""
        hidden_NH, cell_NH = state
        gates_NG = gates_NG.float().sigmoid_()
        input_NH, forget_NH, doubled_NH, output_NH = gates_NG.chunk(4, dim=1)
        cell_NH = (forget_NH * cell_NH).add_(input_NH * doubled_NH, alpha=2).sub_(input_NH)
        squashed_NH = (2 * cell_NH).sigmoid_()
        new_hidden_NH = squashed_NH.mul_(output_NH).mul_(2).sub_(output_NH)
        return new_hidden_NH.to(hidden_NH.dtype), cell_NH


class StepLSTM(FastLSTM):
    """A decoder's layer, whose inputs come step by step: [input, hidden] times one merged matrix."""

    def __init__(self, lstm: LSTM, make: LinearMaker) -> None:
        super().__init__(lstm.hidden_size)
        from_inputs_GI, from_hidden_GH, bias_G = _with_doubled_cell_gate(lstm)
        self.merged = make(torch.cat((from_inputs_GI, from_hidden_GH), dim=1), bias_G)

    def project(self, inputs: Tensor) -> Tensor:
        return inputs

    def gates(self, projected_NP: Tensor, hidden_NH: Tensor) -> Tensor:
        gates_NG: Tensor = self.merged(torch.cat((projected_NP, hidden_NH), dim=1))
        return gates_NG


class FedLSTM(StepLSTM):
    """The same for a layer whose last inputs were multiplied elsewhere; `step_fed` adds what came of them."""

    def __init__(self, lstm: LSTM, num_own_inputs: int, make: LinearMaker) -> None:
        FastLSTM.__init__(self, lstm.hidden_size)
        from_inputs_GI, from_hidden_GH, bias_G = _with_doubled_cell_gate(lstm)
        self.merged = make(torch.cat((from_inputs_GI[:, :num_own_inputs], from_hidden_GH), dim=1), bias_G)

    @staticmethod
    def from_fed(lstm: LSTM, num_own_inputs: int) -> Tensor:
        """The weights of the inputs behind the layer's own, [4H, others]."""
        return _with_doubled_cell_gate(lstm)[0][:, num_own_inputs:]

    def step_fed(self, inputs_NI: Tensor, added_NG: Tensor, state: CellState) -> CellState:
        """One step, with [N, 4H] more for the gates."""
        return self.opened(self.gates(inputs_NI, state[0]).add_(added_NG), state)


class SequenceLSTM(FastLSTM):
    """An encoder's layer, whose inputs are all there: one product for all of them, and one for each hidden state."""

    def __init__(self, lstm: LSTM, make: LinearMaker) -> None:
        super().__init__(lstm.hidden_size)
        from_inputs_GI, from_hidden_GH, bias_G = _with_doubled_cell_gate(lstm)
        self.from_inputs = make(from_inputs_GI, bias_G)
        self.from_hidden = make(from_hidden_GH, None)

    def project(self, inputs: Tensor) -> Tensor:
        projected: Tensor = self.from_inputs(inputs)
        return projected

    def gates(self, projected_NP: Tensor, hidden_NH: Tensor) -> Tensor:
        gates_NG: Tensor = self.from_hidden(hidden_NH)
        return gates_NG.add_(projected_NP)


def _with_doubled_cell_gate(lstm: LSTM) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [4H, I] and [4H, H] and the sum of the biases [4H], with twice the rows of the third gate (g)."""
    named = {name: parameter.detach() for name, parameter in lstm.named_parameters()}
    factor_G = torch.ones_like(named["bias_ih_l0"])
    factor_G[2 * lstm.hidden_size : 3 * lstm.hidden_size] = 2
    bias_G = (named["bias_ih_l0"] + named["bias_hh_l0"]) * factor_G
    return named["weight_ih_l0"] * factor_G[:, None], named["weight_hh_l0"] * factor_G[:, None], bias_G
