"""GNMT's decoder: the bottom layer queries attention, and all layers above read the context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

import torch
from torch import Tensor, nn

from gnmt.config.validate import NumLayers, Probability, Range, Size
from gnmt.errors import InputError
from gnmt.model.interfaces import Attention, Decoder, DecoderState, Encoded, Memory
from gnmt.model.layers import Dropout
from gnmt.model.recurrent.cells import Cell, layer_class
from gnmt.model.recurrent.layers import (
    Bridge,
    RecurrentLayer,
    forward_layers,
    initial_states,
    initial_states_or_none,
    pack_states,
    shift_one_step,
    state_sizes,
    step_layers,
    unpack_states,
)
from gnmt.model.validate import check_query


class GNMTDecoder(Decoder):
    """GNMT's decoder (Wu et al. 2016, figure 1 and eq. 4).

    Only the bottom layer queries attention, and it never reads the context. Training therefore needs no loop over time:
    the bottom layer runs over the whole target, then attention over all its outputs, and then each upper layer over
    the output of the layer below, concatenated with the context.

    The attention is also the alignment that coverage and figures use.

    Args:
        input_size: Width of the embeddings.
        hidden_size: Units of each layer.
        num_layers: Number of layers; a single one needs `context_to_output`.
        attention: Attention whose `query_size` is `hidden_size`.
        query: The query at step t is an output of the bottom layer. "previous": the output of step t-1 (the paper); at
            the first step, zeros or, with a bridge, the initial state. "current": the output of step t (GNMT v2).
        residual_from: First layer, counted from 1, whose input is added to its output, without the context (eq. 6);
            None for no residual connections.
        dropout: Dropout probability of each layer's input.
        variational_dropout: Whether one mask is drawn for all time steps of a sentence (Gal and Ghahramani 2016).
        weight_dropout: Dropout probability of the recurrent weights (DropConnect; see LSTM).
        cell: Kind of the layers; see gnmt.model.recurrent.cells.Cell.
        layer_norm: Whether every gate is normalized (see LayerNormLSTM).
        bridge: Initial state of the layers; see gnmt.model.recurrent.layers.Bridge.
        context_to_output: Whether the output layer reads the context too. "none": it does not (the paper).
            "concatenated": the context is concatenated to the top layer's output (RNMT+, Chen et al. 2018), so
            `output_size` is the sum of both widths. "added": a projection of the context to `hidden_size` is added to
            the top layer's output, so embeddings can be tied. "readout": the output is tanh(W [h; c; y] + b) of the top
            layer's output h, the context c and the embedding y of the previous token, and has the width of the
            embeddings, so they can be tied whatever `hidden_size` is (Bahdanau et al. 2015, appendix A.2.2, has the
            same inputs). If the output layer reads the context, the layers need not learn to pass source words on, and
            small models learn several times sooner.

    Raises:
        InputError: If `attention` has another query width, if nothing reads the context, or for a cell that does not
            support layer normalization or weight dropout.
    """

    memory_size_key = "attention.memory_size"

    def __init__(
        self,
        input_size: Size,
        hidden_size: Size,
        num_layers: NumLayers,
        attention: Attention,
        query: Literal["previous", "current"] = "current",
        residual_from: Annotated[int, Range(2)] | None = 3,
        dropout: Probability = 0.0,
        variational_dropout: bool = False,
        weight_dropout: Probability = 0.0,
        cell: Cell = "lstm",
        layer_norm: bool = False,
        bridge: Bridge = "none",
        context_to_output: Literal["none", "concatenated", "added", "readout"] = "none",
    ) -> None:
        super().__init__()
        check_query(attention, hidden_size)
        if num_layers == 1 and context_to_output == "none":
            raise InputError(
                "with model.decoder.num_layers=1 and model.decoder.context_to_output=none nothing reads the context: "
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
        elif context_to_output == "readout":
            self.readout = nn.Linear(hidden_size + attention.output_size + input_size, input_size)
            self.output_size = input_size
        self.dropout = Dropout(dropout, variational_dropout)
        make_layer = layer_class(cell, layer_norm, "model.decoder", weight_dropout)
        self.bottom = make_layer(input_size, hidden_size)
        upper_size = hidden_size + attention.output_size
        self.upper = nn.ModuleList(make_layer(upper_size, hidden_size) for _ in range(num_layers - 1))
        if self.bridged:
            self.by_sentence_sizes = state_sizes(self.layers(), "final_")

    def prepare(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """Return the attention's keys as "keys"."""
        return {"keys": self.attention.keys(encoded.states_BSH)}

    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return hidden states [B, T, output_size] and attention [B, T, S] for a whole target."""
        bottom, *upper = self.layers()
        bottom_state, *upper_states = initial_states_or_none(self.layers(), memory, self.bridged)
        outputs_TBH = bottom(self.dropout(embedded_BTE.transpose(0, 1)), bottom_state)
        query_TBH = outputs_TBH
        if self.query == "previous":
            query_TBH = shift_one_step(outputs_TBH, None if bottom_state is None else bottom_state[0])
        context_BTH, weights_BTS = self.attention(query_TBH.transpose(0, 1), memory.extras["keys"], memory)
        context_TBH = context_BTH.transpose(0, 1)
        outputs_TBH = forward_layers(
            upper, outputs_TBH, upper_states, self.dropout, self.residual_from, context_TBH, first_number=2
        )
        return self.hidden(outputs_TBH, context_TBH, embedded_BTE.transpose(0, 1)).transpose(0, 1), weights_BTS

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """Return each layer's initial state as hidden_1, cell_1 (the bottom layer) and so on, [B, beam, H] each."""
        return pack_states(initial_states(self.layers(), memory, beam, self.bridged), len(memory.mask_BS))

    def step(self, embedded_BKE: Tensor, state: DecoderState, memory: Memory) -> tuple[Tensor, Tensor, DecoderState]:
        """Return hidden states [B, K, output_size], attention [B, K, S] and the new state."""
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
        hidden_BKH = self.hidden(outputs_NH, context_NH, embedded_BKE.flatten(0, 1)).reshape(batch, beam, -1)
        return hidden_BKH, weights_BKS, pack_states([new_bottom_state, *new_upper_states], batch)

    def hidden(self, outputs: Tensor, context: Tensor, embedded: Tensor) -> Tensor:
        """Return the output layer's input [..., output_size].

        Args:
            outputs: Outputs of the top layer, [..., hidden_size].
            context: Contexts, [..., attention.output_size].
            embedded: Embeddings of the previous tokens, [..., input_size].
        """
        if self.context_to_output == "readout":
            read: Tensor = self.readout(torch.cat((outputs, context, embedded), dim=-1)).tanh()
            return read
        if self.context_to_output == "added":
            summed: Tensor = outputs + self.readout(context)
            return summed
        return torch.cat((outputs, context), dim=-1) if self.context_to_output == "concatenated" else outputs

    def layers(self) -> list[RecurrentLayer]:
        """Return all layers from the bottom up."""
        return [cast(RecurrentLayer, layer) for layer in (self.bottom, *self.upper)]
