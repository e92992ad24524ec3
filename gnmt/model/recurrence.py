"""Layers over time. Recurrent code is time-major: [T, B, I]."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from gnmt.model.gathered_lstm import gathered_lstm
from gnmt.model.products import onednn_dtypes

CellState = tuple[Tensor, ...]
"""What a layer carries from step to step, each [N, H]: (hidden, cell) of an LSTM, (hidden,) of a GRU."""

HOLD = 1e4
"""A gate's input that opens or shuts it fully in every precision."""


class Recurrence(nn.Module):
    """One unidirectional layer, of which encoders and decoders are built; the decoding engine puts its own in place."""

    hidden_size: int

    @abstractmethod
    def over_time(self, inputs_TBI: Tensor, state: CellState | None = None) -> Tensor:
        """Outputs [T, B, H] from that state or zeros. Padding behind a row's end changes only what lies behind it."""

    @abstractmethod
    def over_time_to_end(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, CellState]:
        """Outputs [T, B, H] from zeros, and the state at each row's true end, [B, H]; lengths_B: 1 or more."""

    @abstractmethod
    def start(self, num_sequences: int, like: Tensor) -> CellState:
        """The zero state of so many sequences, on the device and in the type of `like`."""

    @abstractmethod
    def step(self, inputs_NI: Tensor, state: CellState) -> CellState:
        """One step of N sequences: the new state, [N, H] each. The first of it is the output."""


class SteppedRecurrence(Recurrence):
    """A layer without a kernel for whole sequences: one product for the inputs of all steps, then a loop over time.

    A subclass has `project`, `next_state` and `start`.
    """

    @abstractmethod
    def project(self, inputs: Tensor) -> Tensor:
        """What can be done for the inputs of all steps at once, [..., I] to [..., P]."""

    @abstractmethod
    def next_state(self, projected_NP: Tensor, state: CellState) -> CellState:
        """The state one step later."""

    def over_time(self, inputs_TBI: Tensor, state: CellState | None = None) -> Tensor:
        return torch.stack([after[0] for after in self._states(inputs_TBI, state)])

    def over_time_to_end(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, CellState]:
        stacked = [torch.stack(tensors) for tensors in zip(*self._states(inputs_TBI, None), strict=True)]
        return stacked[0], tuple(at_ends(tensor_TBH, lengths_B) for tensor_TBH in stacked)

    def step(self, inputs_NI: Tensor, state: CellState) -> CellState:
        return self.next_state(self.project(inputs_NI), state)

    def _states(self, inputs_TBI: Tensor, state: CellState | None) -> list[CellState]:
        """The state after each step."""
        states = []
        state = self.start(inputs_TBI.shape[1], inputs_TBI) if state is None else state
        for projected_BP in self.project(inputs_TBI).unbind(0):
            state = self.next_state(projected_BP, state)
            states.append(state)
        return states


GATHERED_FROM_WIDTH = 1536
"""Input and hidden size together from which `gathered_lstm` trains faster than oneDNN's fused bf16 kernel on a CPU.

Forward and backward on two Sapphire Rapids cores: 1.4 times as fast from 1024 to 512 and 1.7 times from 1024 to 1024,
but 0.8 times from 512 to 512 and less below (docs/results/training.md).
"""


class LSTM(nn.LSTM, Recurrence):
    """One unidirectional layer over whole sequences, run by the fused kernel of the device or by `gathered_lstm`."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)

    def over_time(self, inputs_TBI: Tensor, state: CellState | None = None) -> Tensor:
        if state is None and self.gathering_pays(inputs_TBI):
            return gathered_lstm(inputs_TBI, *self._weights())[0]
        first = None if state is None else (state[0][None], state[1][None])
        with weights_apart():
            outputs_TBH: Tensor = self(inputs_TBI, first)[0]
        return outputs_TBH

    def over_time_to_end(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, CellState]:
        if self.gathering_pays(inputs_TBI):
            outputs_TBH, cells_TBH = gathered_lstm(inputs_TBI, *self._weights())
            return outputs_TBH, (at_ends(outputs_TBH, lengths_B), at_ends(cells_TBH, lengths_B))
        # The fused kernel gives the cell of the last step alone, and packing would wait for the lengths to come from
        # the device. So one more input, which is 1 in the padding, shuts the input gate and opens the forget gate:
        # behind a row's end its cell stays what it was.
        padding_TB = torch.arange(inputs_TBI.shape[0], device=inputs_TBI.device)[:, None] >= lengths_B
        widened_TBI = torch.cat((inputs_TBI, padding_TB[..., None].to(inputs_TBI.dtype)), dim=2)
        from_inputs_GI, *others = self._weights()
        hold_4H = from_inputs_GI.detach().new_zeros(4, self.hidden_size)
        hold_4H[0], hold_4H[1] = -HOLD, HOLD
        weights = [torch.cat((from_inputs_GI, hold_4H.view(-1, 1)), dim=1), *others]
        zeros_1BH = inputs_TBI.new_zeros(1, inputs_TBI.shape[1], self.hidden_size)
        with weights_apart():
            outputs_TBH, _, cell_1BH = torch.lstm(
                widened_TBI, (zeros_1BH, zeros_1BH), weights, True, 1, 0.0, self.training, False, False
            )
        return outputs_TBH, (at_ends(outputs_TBH, lengths_B), cell_1BH[0])

    def gathering_pays(self, inputs_TBI: Tensor) -> bool:
        """Whether a step of training is faster with `gathered_lstm`."""
        if inputs_TBI.device.type != "cpu" or not torch.is_grad_enabled():
            return False
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs_TBI.dtype
        return (
            dtype == torch.bfloat16
            and dtype in onednn_dtypes()
            and self.input_size + self.hidden_size >= GATHERED_FROM_WIDTH
        )

    def start(self, num_sequences: int, like: Tensor) -> CellState:
        zeros_NH = like.new_zeros(num_sequences, self.hidden_size)
        return zeros_NH, zeros_NH

    def step(self, inputs_NI: Tensor, state: CellState) -> CellState:
        # The cell function uses the parameters as they are; the module with T=1 would re-pack them at every call.
        hidden_NH, cell_NH = torch.lstm_cell(inputs_NI, state, *self._weights())
        return hidden_NH, cell_NH

    def _weights(self) -> list[Tensor]:
        return cast(list[Tensor], [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0])


@contextmanager
def weights_apart() -> Iterator[None]:
    """Without cuDNN's warning that it copies the weights together at each call, which is nothing next to the products.

    It does so with weights that are new at each call, and with those in bf16, which torch does not lay together.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single contiguous chunk")
        yield


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


def at_ends(states_TBH: Tensor, lengths_B: Tensor) -> Tensor:
    """Each row's state at its last real step, [B, H]."""
    return states_TBH[lengths_B - 1, torch.arange(len(lengths_B), device=lengths_B.device)]


class Bidirectional(nn.Module):
    """Two layers, one of which reads each sentence from its true end; outputs concatenated, [T, B, 2H].

    Wu et al. 2016, section 3.2. Reversal by length, not packing, keeps the fused kernels and
    keeps padding out of the backward direction. kind: what makes a layer from the widths of input and hidden state.
    """

    def __init__(self, input_size: int, hidden_size: int, kind: Callable[[int, int], Recurrence] = LSTM) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.ahead = kind(input_size, hidden_size)
        self.back = kind(input_size, hidden_size)

    def over_time(self, inputs_TBI: Tensor, lengths_B: Tensor) -> Tensor:
        """Outputs [T, B, 2H]."""
        ahead_TBH = self.ahead.over_time(inputs_TBI)
        back_TBH = self.back.over_time(reverse_by_length(inputs_TBI, lengths_B))
        return torch.cat((ahead_TBH, reverse_by_length(back_TBH, lengths_B)), dim=-1)

    def over_time_to_end(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, CellState]:
        """Outputs, and both directions' last states concatenated, [B, 2H]: at the true end, and at the beginning."""
        ahead_TBH, ahead_state = self.ahead.over_time_to_end(inputs_TBI, lengths_B)
        back_TBH, back_state = self.back.over_time_to_end(reverse_by_length(inputs_TBI, lengths_B), lengths_B)
        outputs_TBH = torch.cat((ahead_TBH, reverse_by_length(back_TBH, lengths_B)), dim=-1)
        return outputs_TBH, tuple(torch.cat(both, dim=-1) for both in zip(ahead_state, back_state, strict=True))
