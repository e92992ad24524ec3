"""Layers over time other than the LSTM, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.model.recurrence import LSTM, CellState, Recurrence, SteppedRecurrence, at_ends
from gnmt.types import InputError

Cell = Literal["lstm", "gru"]


def layer_kind(cell: Cell, layer_norm: bool, key: str) -> Callable[[int, int], Recurrence]:
    """What makes a layer of that cell from the widths of its input and of its hidden state.

    key: the component's in a config, for the message where there is no such layer.
    """
    if cell == "gru" and layer_norm:
        raise InputError(
            f"{key}.layer_norm=true goes with {key}.cell=lstm only, not with cell=gru: set one of them otherwise"
        )
    if layer_norm:
        return LayerNormLSTM
    return GRU if cell == "gru" else LSTM


class GRU(nn.GRU, Recurrence):
    """Gated recurrent units (Cho et al. 2014), run by torch's kernel over whole sequences.

    As in torch and cuDNN, the reset gate stands behind the product with the hidden state, not before it.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)

    def over_time(self, inputs_TBI: Tensor, state: CellState | None = None) -> Tensor:
        outputs_TBH: Tensor = self(inputs_TBI, None if state is None else state[0][None])[0]
        return outputs_TBH

    def over_time_to_end(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, CellState]:
        outputs_TBH = self.over_time(inputs_TBI)
        return outputs_TBH, (at_ends(outputs_TBH, lengths_B),)

    def start(self, num_sequences: int, like: Tensor) -> CellState:
        return (like.new_zeros(num_sequences, self.hidden_size),)

    def step(self, inputs_NI: Tensor, state: CellState) -> CellState:
        weights = [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]
        return (torch.gru_cell(inputs_NI, state[0], *cast(list[Tensor], weights)),)


class LayerNormLSTM(SteppedRecurrence):
    """An LSTM whose gates are each normalised over their units before the nonlinearity (Ba et al. 2016).

    Per gate, as in Chen et al. 2018, section 4.1: each of the four has a mean, a variance, a gain and a bias of its
    own; the cell is not normalised. gate = gain * norm(W x + U h) + bias, so W and U need no biases.
    Normalising needs the previous hidden state, so no fused kernel serves: a loop over time in Python, some ten small
    operations a step, several times slower than `LSTM`. The inputs of all steps are multiplied in one product.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.from_inputs = nn.Linear(input_size, 4 * hidden_size, bias=False)
        self.from_hidden = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.gain = nn.Parameter(torch.ones(4, hidden_size))
        self.bias = nn.Parameter(torch.zeros(4, hidden_size))

    def project(self, inputs: Tensor) -> Tensor:
        projected: Tensor = self.from_inputs(inputs)
        return projected

    def start(self, num_sequences: int, like: Tensor) -> CellState:
        hidden_NH = like.new_zeros(num_sequences, self.hidden_size)
        return hidden_NH, hidden_NH.to(torch.promote_types(like.dtype, torch.float32))

    def next_state(self, projected_NP: Tensor, state: CellState) -> CellState:
        """Gates and cell in fp32 or better, the hidden state in the type that it came in."""
        hidden_NH, cell_NH = state
        summed_N4H = (projected_NP + self.from_hidden(hidden_NH)).unflatten(1, (4, self.hidden_size))
        normalised_N4H = F.layer_norm(summed_N4H.to(cell_NH.dtype), (self.hidden_size,))
        write_NH, remember_NH, new_NH, show_NH = (normalised_N4H * self.gain + self.bias).unbind(1)
        cell_NH = remember_NH.sigmoid() * cell_NH + write_NH.sigmoid() * new_NH.tanh()
        return (show_NH.sigmoid() * cell_NH.tanh()).to(hidden_NH.dtype), cell_NH
