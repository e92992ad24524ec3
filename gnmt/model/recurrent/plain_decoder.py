"""A recurrent decoder without attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from torch import Tensor

from gnmt.config.validate import NumLayers, Probability, Range, Size
from gnmt.model.interfaces import Decoder, DecoderState, Encoded, Memory
from gnmt.model.layers import Dropout
from gnmt.model.recurrent.cells import Cell, layer_class
from gnmt.model.recurrent.layers import (
    ResidualStack,
    initial_states,
    initial_states_or_none,
    pack_states,
    state_sizes,
    unpack_states,
)


class PlainDecoder(Decoder):
    """Decoder of Sutskever et al. 2014, which reads the source only through its initial state.

    Each layer starts from the final state of the encoder layer with the same number. Layers, cells and widths of both
    sides must be equal, and the encoder needs `final_states=True`.

    There is no attention, so nothing aligns target with source tokens, and `decoding.coverage_beta` must be 0.

    Args:
        input_size: Width of the embeddings.
        hidden_size: Units of each layer.
        num_layers: Number of layers.
        residual_from: First layer, counted from 1, whose input is added to its output; None for no residual
            connections, as in the paper.
        dropout: Dropout probability of each layer's input.
        variational_dropout: Whether one mask is drawn for all time steps of a sentence (Gal and Ghahramani 2016).
        cell: Kind of the layers; see gnmt.model.recurrent.cells.Cell.
        layer_norm: Whether every gate is normalized (see LayerNormLSTM).

    Raises:
        InputError: For layer normalization of a cell other than an LSTM.
    """

    has_attention = False
    memory_size = None

    def __init__(
        self,
        input_size: Size,
        hidden_size: Size,
        num_layers: NumLayers,
        residual_from: Annotated[int, Range(2)] | None = None,
        dropout: Probability = 0.0,
        variational_dropout: bool = False,
        cell: Cell = "lstm",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = hidden_size
        self.num_layers = num_layers
        self.stack = ResidualStack(
            input_size,
            hidden_size,
            num_layers,
            layer_class(cell, layer_norm, "model.decoder"),
            residual_from,
            Dropout(dropout, variational_dropout),
        )
        self.by_sentence_sizes = state_sizes(self.stack.recurrent_layers(), "final_")

    def prepare(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """Return no tensors, because no step reads the source."""
        return {}

    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, None]:
        """Return hidden states [B, T, H] for a whole target."""
        states = initial_states_or_none(self.stack.recurrent_layers(), memory, bridged=True)
        return self.stack(embedded_BTE.transpose(0, 1), states).transpose(0, 1), None

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """Return the encoder's final states as hidden_1, cell_1 (the bottom layer) and so on, [B, beam, H] each."""
        states = initial_states(self.stack.recurrent_layers(), memory, beam, bridged=True)
        return pack_states(states, len(memory.mask_BS))

    def step(self, embedded_BKE: Tensor, state: DecoderState, memory: Memory) -> tuple[Tensor, None, DecoderState]:
        """Return hidden states [B, K, H], no attention, and the new state."""
        outputs_NH, states = self.stack.step(embedded_BKE.flatten(0, 1), unpack_states(state, self.num_layers))
        return outputs_NH.view(*embedded_BKE.shape[:2], -1), None, pack_states(states, len(embedded_BKE))
