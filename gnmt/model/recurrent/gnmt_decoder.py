"""GNMT's decoder: a bottom layer that queries attention, residual layers above that all see the context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

import torch
from torch import Tensor, nn

from gnmt.config.validate import Range
from gnmt.errors import InputError
from gnmt.model.interfaces import Attention, Decoder, DecoderState, Encoded, Memory
from gnmt.model.layers import Dropout
from gnmt.model.recurrent.layers import (
    Cell,
    RecurrentLayer,
    forward_layers,
    initial_states,
    layer_class,
    pack_states,
    shift_one_step,
    state_sizes,
    states_over_time,
    step_layers,
    unpack_states,
)
from gnmt.model.validate import check_query

Bridge = Literal["none", "final"]
"""none: the decoder starts from zeros; final: each layer from the state that the encoder's layer of its number ended
with, as it is, so that layers, cells and widths must match (the encoder's final_states=true hands it over)."""

ContextToOutput = Literal["none", "concatenated", "added"]


class GNMTDecoder(Decoder):
    """Wu et al. 2016, figure 1 and eq. 4: only the bottom layer queries attention, and never reads the context.

    So the bottom layer runs over the whole target first, attention over all of it in one piece, and then
    the upper layers, each on the layer below concatenated with the context.

    query: which output of the bottom layer asks at step t. "previous" is that of step t-1, zero at the first
    (the paper; with a bridge, the state bridged); "current" is that of step t (the later GNMT v2).
    num_layers, residual_from, dropout, variational_dropout, cell, layer_norm: as in the encoder. bridge: see Bridge.
    context_to_output: how the context reaches the output layer beside the top layer's output. "concatenated" (RNMT+,
    Chen et al. 2018), so that output_size is the sum of both widths; "added" through a projection, which keeps
    output_size at hidden_size, as tied embeddings need it; "none" (the paper). It spares the layers the learning of
    how to carry a word from the source to the output, and small models learn several times sooner. A single layer needs
    it, since nothing else would read the context.
    """

    memory_size_key = "attention.memory_size"

    def __init__(
        self,
        input_size: Annotated[int, Range(1)],
        hidden_size: Annotated[int, Range(1)],
        num_layers: Annotated[int, Range(1)],
        attention: Attention,
        query: Literal["previous", "current"] = "current",
        residual_from: Annotated[int, Range(2)] | None = 3,
        dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
        variational_dropout: bool = False,
        cell: Cell = "lstm",
        layer_norm: bool = False,
        bridge: Bridge = "none",
        context_to_output: ContextToOutput = "none",
    ) -> None:
        super().__init__()
        check_query(attention, hidden_size)
        if num_layers == 1 and context_to_output == "none":
            raise InputError(
                "with model.decoder.num_layers=1 nothing reads what attention finds, since the bottom layer only asks: "
                "use model.decoder.context_to_output=added or model.decoder.num_layers=2"
            )
        self.input_size = input_size
        self.memory_size = attention.memory_size
        self.output_size = hidden_size + (attention.output_size if context_to_output == "concatenated" else 0)
        self.num_layers = num_layers
        self.query = query
        self.residual_from = residual_from
        self.bridged = bridge == "final"
        self.context_to_output = context_to_output
        self.attention = attention
        if context_to_output == "added":
            self.readout = nn.Linear(attention.output_size, hidden_size, bias=False)
        self.dropout = Dropout(dropout, variational_dropout)
        kind = layer_class(cell, layer_norm, "model.decoder")
        self.bottom = kind(input_size, hidden_size)
        upper_size = hidden_size + attention.output_size
        self.upper = nn.ModuleList(kind(upper_size, hidden_size) for _ in range(num_layers - 1))
        if self.bridged:
            self.by_sentence_sizes = state_sizes(self.layers(), "final_")

    def prepare(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """The attention's projected keys."""
        return {"keys": self.attention.keys(encoded.states_BSH)}

    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Hidden [B, T, output_size] and attention [B, T, S] for the whole target at once."""
        bottom, *upper = self.layers()
        bottom_state, *upper_states = states_over_time(self.layers(), memory, self.bridged)
        outputs_TBH = bottom(self.dropout(embedded_BTE.transpose(0, 1)), bottom_state)
        query_TBH = outputs_TBH
        if self.query == "previous":
            query_TBH = shift_one_step(outputs_TBH, None if bottom_state is None else bottom_state[0])
        context_BTH, weights_BTS = self.attention(query_TBH.transpose(0, 1), memory.extras["keys"], memory)
        context_TBH = context_BTH.transpose(0, 1)
        outputs_TBH = forward_layers(
            upper, outputs_TBH, upper_states, self.dropout, self.residual_from, context_TBH, first_number=2
        )
        return self.hidden(outputs_TBH, context_TBH).transpose(0, 1), weights_BTS

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """Hidden and cell of every layer: hidden_1, cell_1 of the bottom one and so on, each [B, beam, H]."""
        return pack_states(initial_states(self.layers(), memory, beam, self.bridged), len(memory.mask_BS))

    def step(self, embedded_BKE: Tensor, state: DecoderState, memory: Memory) -> tuple[Tensor, Tensor, DecoderState]:
        """One token for B sentences of K hypotheses; the memory stays at B rows."""
        batch, beam = embedded_BKE.shape[:2]
        bottom, *upper = self.layers()
        bottom_state, *upper_states = unpack_states(state, self.num_layers)
        new_bottom_state = bottom.step(embedded_BKE.flatten(0, 1), bottom_state)
        outputs_NH = new_bottom_state[0]
        query_NH = outputs_NH if self.query == "current" else bottom_state[0]
        context_BKH, weights_BKS = self.attention(query_NH.reshape(batch, beam, -1), memory.extras["keys"], memory)
        context_NH = context_BKH.flatten(0, 1)
        outputs_NH, new_upper_states = step_layers(
            upper, outputs_NH, upper_states, self.residual_from, context_NH, first_number=2
        )
        hidden_BKH = self.hidden(outputs_NH, context_NH).reshape(batch, beam, -1)
        return hidden_BKH, weights_BKS, pack_states([new_bottom_state, *new_upper_states], batch)

    def hidden(self, outputs: Tensor, context: Tensor) -> Tensor:
        """What the output layer gets of the top layer's output and the context."""
        if self.context_to_output == "added":
            summed: Tensor = outputs + self.readout(context)
            return summed
        return torch.cat((outputs, context), dim=-1) if self.context_to_output == "concatenated" else outputs

    def layers(self) -> list[RecurrentLayer]:
        """All layers, the bottom one first."""
        return [cast(RecurrentLayer, layer) for layer in (self.bottom, *self.upper)]
