"""LSTMs over time. Recurrent code is time-major: [T, B, I]."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn

from gnmt.model.gathered_lstm import gathered_lstm
from gnmt.model.products import onednn_dtypes

LSTMState = tuple[Tensor, Tensor]
"""hidden and cell, both [N, H]."""


class Recurrence(nn.Module):
    """One unidirectional layer, of which encoders and decoders are built; the decoding engine puts its own in place."""

    hidden_size: int

    @abstractmethod
    def over_time(self, inputs_TBI: Tensor) -> Tensor:
        """Outputs [T, B, H] from a zero state. Padding behind a row's end changes only what lies behind it."""

    @abstractmethod
    def start(self, num_sequences: int, like: Tensor) -> LSTMState:
        """The zero state of so many sequences, on the device and in the type of `like`."""

    @abstractmethod
    def step(self, inputs_NI: Tensor, state: LSTMState) -> LSTMState:
        """One step of N sequences: the new hidden (which is the output) and cell, [N, H]."""


GATHERED_FROM_WIDTH = 1536
"""Input and hidden size together from which `gathered_lstm` trains faster than oneDNN's fused bf16 kernel on a CPU.

Measured forward and backward on two Zen 4 cores: 1.3 times as fast from 1024 to 512, 1.1 to 1.3 times from 1024 to
1024, 1.4 to 1.6 times from 2048 to 1024, but 0.75 times from 512 to 512 and below.
"""


class LSTM(nn.LSTM, Recurrence):
    """One unidirectional layer over whole sequences, run by the fused kernel of the device or by `gathered_lstm`."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)

    def over_time(self, inputs_TBI: Tensor) -> Tensor:
        if self.gathering_pays(inputs_TBI):
            return self.with_cells_over_time(inputs_TBI)[0]
        outputs_TBH: Tensor = self(inputs_TBI)[0]
        return outputs_TBH

    def with_cells_over_time(self, inputs_TBI: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and cell states of every step [T, B, H], from a zero state, where fused kernels give the last alone.

        So the final state of each sentence can be taken at its own end. Cells are fp32 or better.
        """
        weights = [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]
        return gathered_lstm(inputs_TBI, *cast(list[Tensor], weights))

    def gathering_pays(self, inputs_TBI: Tensor) -> bool:
        """Whether a step of training is faster so."""
        if inputs_TBI.device.type != "cpu" or not torch.is_grad_enabled():
            return False
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs_TBI.dtype
        return (
            dtype == torch.bfloat16
            and dtype in onednn_dtypes()
            and self.input_size + self.hidden_size >= GATHERED_FROM_WIDTH
        )

    def start(self, num_sequences: int, like: Tensor) -> LSTMState:
        zeros_NH = like.new_zeros(num_sequences, self.hidden_size)
        return zeros_NH, zeros_NH

    def step(self, inputs_NI: Tensor, state: LSTMState) -> LSTMState:
        # The cell function uses the parameters as they are; the module with T=1 would re-pack them at every call.
        weights = [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]
        hidden_NH, cell_NH = torch.lstm_cell(inputs_NI, state, *cast(list[Tensor], weights))
        return hidden_NH, cell_NH


def reverse_by_length(inputs_TBI: Tensor, lengths_B: Tensor) -> Tensor:
    """Turns each sequence round within its own length; padding stays behind it, where it is. Its own inverse."""
    positions_T1 = torch.arange(inputs_TBI.shape[0], device=inputs_TBI.device)[:, None]
    mirrored_TB = lengths_B - 1 - positions_T1
    order_TB = torch.where(mirrored_TB >= 0, mirrored_TB, positions_T1)
    reversed_TBI: Tensor = _Reversed.apply(inputs_TBI, order_TB)  # type: ignore[no-untyped-call]
    return reversed_TBI


class _Reversed(torch.autograd.Function):
    """inputs_TBI[order_TB, column], for an order that is its own inverse, and so its own gradient.

    That of plain indexing must reckon with places that repeat, and adds one by one on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, inputs_TBI: Tensor, order_TB: Tensor) -> Tensor:
        ctx.save_for_backward(order_TB)
        columns_B = torch.arange(inputs_TBI.shape[1], device=inputs_TBI.device)
        return inputs_TBI[order_TB, columns_B]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Reversed.apply(grads[0], *ctx.saved_tensors), None  # type: ignore[no-untyped-call]


class BidirectionalLSTM(nn.Module):
    """Two LSTMs, one of which reads each sentence from its true end; outputs concatenated, [T, B, 2H].

    Wu et al. 2016, section 3.2. Reversal by length, not packing, keeps the fused kernels and
    keeps padding out of the backward direction.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.ahead: Recurrence = LSTM(input_size, hidden_size)
        self.back: Recurrence = LSTM(input_size, hidden_size)

    def over_time(self, inputs_TBI: Tensor, lengths_B: Tensor) -> Tensor:
        """Outputs [T, B, 2H]."""
        ahead_TBH = self.ahead.over_time(inputs_TBI)
        back_TBH = self.back.over_time(reverse_by_length(inputs_TBI, lengths_B))
        return torch.cat((ahead_TBH, reverse_by_length(back_TBH, lengths_B)), dim=-1)
