"""GNMT's decoder: a bottom LSTM that queries attention, residual LSTMs above that all see the context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

import torch
from torch import Tensor, nn

from gnmt.model.dropout import Dropout
from gnmt.model.interfaces import Attention, Decoder
from gnmt.model.recurrence import LSTM, LSTMState, Recurrence
from gnmt.types import Encoded, InputError, Memory, Range, State


class LSTMDecoder(Decoder):
    """Wu et al. 2016, figure 1 and eq. 4: only the bottom layer queries attention, and never reads the context.

    So the bottom layer runs over the whole target first, attention over all of it in one piece, and then
    the upper layers, each on the layer below concatenated with the context.

    query: which output of the bottom layer asks at step t. "previous" is that of step t-1, zero at the first
    (the paper); "current" is that of step t (the later GNMT v2).
    num_layers, residual_from, dropout, dropout_over_time: as in the encoder. The decoder starts from zero states.
    """

    def __init__(
        self,
        input_size: Annotated[int, Range(1)],
        hidden_size: Annotated[int, Range(1)],
        num_layers: Annotated[int, Range(2)],
        attention: Attention,
        query: Literal["previous", "current"] = "current",
        residual_from: Annotated[int, Range(3)] | None = 3,
        dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
        dropout_over_time: Literal["fresh", "shared"] = "fresh",
    ) -> None:
        super().__init__()
        if attention.query_size != hidden_size:
            raise InputError(
                f"the attention takes queries of width {attention.query_size}, but the decoder's layers have "
                f"{hidden_size} units: make query_size equal to hidden_size"
            )
        self.input_size = input_size
        self.memory_size = attention.memory_size
        self.output_size = hidden_size
        self.num_layers = num_layers
        self.query = query
        self.residual_from = residual_from
        self.attention = attention
        self.dropout = Dropout(dropout, dropout_over_time)
        self.bottom = LSTM(input_size, hidden_size)
        upper_size = hidden_size + attention.output_size
        self.upper = nn.ModuleList(LSTM(upper_size, hidden_size) for _ in range(num_layers - 1))

    def prepare(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """The attention's projected keys."""
        return {"keys": self.attention.keys(encoded.states_BSH)}

    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Hidden [B, T, H] and attention [B, T, S] for the whole target at once."""
        outputs_TBH = self.bottom.over_time(self.dropout(embedded_BTE.transpose(0, 1)))
        query_TBH = outputs_TBH if self.query == "current" else one_step_later(outputs_TBH)
        context_BTH, weights_BTS = self.attention(query_TBH.transpose(0, 1), memory.extras["keys"], memory)
        context_TBH = context_BTH.transpose(0, 1)
        for number, layer in enumerate(self.layers()[1:], start=2):
            inputs_TBH = outputs_TBH
            outputs_TBH = layer.over_time(self.dropout(torch.cat((inputs_TBH, context_TBH), dim=-1)))
            if self.is_residual(number):
                outputs_TBH = outputs_TBH + inputs_TBH
        return outputs_TBH.transpose(0, 1), weights_BTS

    def start(self, memory: Memory, beam: int) -> State:
        """Zero hidden and cell of every layer: hidden_1, cell_1 of the bottom one and so on, each [B, beam, H]."""
        batch = memory.mask_BS.shape[0]
        return pack([layer.start(batch * beam, memory.states_BSH) for layer in self.layers()], batch)

    def step(self, embedded_BKE: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor, State]:
        """One token for B sentences of K hypotheses; the memory stays at B rows."""
        batch, beam = embedded_BKE.shape[:2]
        bottom, *upper = self.layers()
        bottom_state, *upper_states = unpack(state, self.num_layers)
        new_states = [bottom.step(embedded_BKE.flatten(0, 1), bottom_state)]
        outputs_NH = new_states[0][0]
        query_NH = outputs_NH if self.query == "current" else bottom_state[0]
        context_BKH, weights_BKS = self.attention(query_NH.reshape(batch, beam, -1), memory.extras["keys"], memory)
        context_NH = context_BKH.flatten(0, 1)
        for number, (layer, layer_state) in enumerate(zip(upper, upper_states, strict=True), start=2):
            inputs_NH = outputs_NH
            new_states.append(layer.step(torch.cat((inputs_NH, context_NH), dim=-1), layer_state))
            outputs_NH = new_states[-1][0]
            if self.is_residual(number):
                outputs_NH = outputs_NH + inputs_NH
        return outputs_NH.reshape(batch, beam, -1), weights_BKS, pack(new_states, batch)

    def layers(self) -> list[Recurrence]:
        """All layers, the bottom one first."""
        return [cast(Recurrence, layer) for layer in (self.bottom, *self.upper)]

    def is_residual(self, number: int) -> bool:
        """Whether the layer of that number, counted from 1, adds its input to its output."""
        return self.residual_from is not None and number >= self.residual_from


def one_step_later(outputs_TBH: Tensor) -> Tensor:
    """Moves every output to the next step; the first step gets zeros."""
    return torch.cat((torch.zeros_like(outputs_TBH[:1]), outputs_TBH[:-1]))


def pack(states: list[LSTMState], batch: int) -> State:
    """The layers' hidden and cell [B*K, H] as a State."""
    tensors = {}
    for number, (hidden_NH, cell_NH) in enumerate(states, start=1):
        tensors[f"hidden_{number}"] = hidden_NH.reshape(batch, -1, hidden_NH.shape[1])
        tensors[f"cell_{number}"] = cell_NH.reshape(batch, -1, cell_NH.shape[1])
    return State(tensors)


def unpack(state: State, num_layers: int) -> list[LSTMState]:
    """The layers' hidden and cell, [B*K, H]."""
    tensors = {name: tensor.flatten(0, 1) for name, tensor in state.tensors.items()}
    return [(tensors[f"hidden_{number}"], tensors[f"cell_{number}"]) for number in range(1, num_layers + 1)]
