"""A decoder without attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from torch import Tensor

from gnmt.config.validate import Range
from gnmt.model.interfaces import Decoder, DecoderState, Encoded, Memory
from gnmt.model.layers import Dropout
from gnmt.model.recurrent.layers import (
    Cell,
    ResidualStack,
    initial_states,
    layer_class,
    pack_states,
    state_sizes,
    states_over_time,
    unpack_states,
)


class PlainDecoder(Decoder):
    """Sutskever et al. 2014: all that it knows of the source is the state that it starts from.

    Each layer starts from the state with which the encoder's layer of its number ended, so both sides have as many
    layers, of one cell and one width (the encoder's final_states=true hands the states over). There is no attention:
    decoding.coverage_beta must be 0, and nothing aligns target with source tokens.
    num_layers, residual_from, dropout, variational_dropout, cell, layer_norm: as in the encoder; the paper has no
    residual connections.
    """

    has_attention = False
    memory_size = None

    def __init__(
        self,
        input_size: Annotated[int, Range(1)],
        hidden_size: Annotated[int, Range(1)],
        num_layers: Annotated[int, Range(1)],
        residual_from: Annotated[int, Range(2)] | None = None,
        dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
        variational_dropout: bool = False,
        cell: Cell = "lstm",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = hidden_size
        self.num_layers = num_layers
        kind = layer_class(cell, layer_norm, "model.decoder")
        self.stack = ResidualStack(
            input_size, hidden_size, num_layers, kind, residual_from, Dropout(dropout, variational_dropout)
        )
        self.by_sentence_sizes = state_sizes(self.stack.recurrent_layers(), "final_")

    def prepare(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """Nothing: no step looks at the source."""
        return {}

    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, None]:
        """Hidden [B, T, H] for the whole target at once."""
        states = states_over_time(self.stack.recurrent_layers(), memory, bridged=True)
        return self.stack(embedded_BTE.transpose(0, 1), states).transpose(0, 1), None

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """The encoder's final states as hidden_1, cell_1 and so on, each [B, beam, H]."""
        return pack_states(
            initial_states(self.stack.recurrent_layers(), memory, beam, bridged=True), len(memory.mask_BS)
        )

    def step(self, embedded_BKE: Tensor, state: DecoderState, memory: Memory) -> tuple[Tensor, None, DecoderState]:
        """One token for B sentences of K hypotheses."""
        outputs_NH, states = self.stack.step(embedded_BKE.flatten(0, 1), unpack_states(state, self.num_layers))
        return outputs_NH.view(*embedded_BKE.shape[:2], -1), None, pack_states(states, len(embedded_BKE))
