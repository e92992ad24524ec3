"""A recurrent decoder whose top layer queries attention, with or without input feeding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from gnmt.config.validate import NumLayers, Probability, Range, Size
from gnmt.model.interfaces import Attention, Decoder, DecoderState, Encoded, Memory
from gnmt.model.layers import Dropout
from gnmt.model.recurrent.cells import Cell, layer_class
from gnmt.model.recurrent.layers import (
    Bridge,
    ResidualStack,
    initial_states,
    initial_states_or_none,
    pack_states,
    shift_one_step,
    state_sizes,
    unpack_states,
)
from gnmt.model.validate import check_query


class AttentionDecoder(Decoder):
    """A stack of recurrent layers, attention above it, and h~ = tanh(W [context; h]) as the output layer's input.

    The hidden state h is the top layer's output, and h~ is the attentional hidden state of Luong et al. 2015, eq. 5.

    With input feeding, the bottom layer also reads a result of attention, so each step depends on all of the previous
    step, and training runs a loop over time in Python. Without input feeding, fused kernels run over the whole target
    and attention is computed for all steps at once, so training is several times faster. In search the difference is
    small.

    The attention is also the alignment that coverage and figures use.

    Args:
        input_size: Width of the embeddings.
        hidden_size: Units of each layer.
        num_layers: Number of layers.
        attention: Attention whose `query_size` is `hidden_size`.
        query: The query at step t is an output of the top layer. "current": the output of step t (Luong et al. 2015,
            section 3.1). "previous": the output of step t-1; at the first step, the top layer's initial state (Bahdanau
            et al. 2015).
        input_feeding: Whether the bottom layer reads a result of attention besides the embedding. With query="current"
            it is the h~ of step t-1 (Luong et al. 2015, section 3.3), with query="previous" the context of step t
            (Bahdanau et al. 2015).
        residual_from: First layer, counted from 1, whose input is added to its output; None for no residual
            connections.
        dropout: Dropout probability of each layer's input.
        variational_dropout: Whether one mask is drawn for all time steps of a sentence (Gal and Ghahramani 2016).
        cell: Kind of the layers; see gnmt.model.recurrent.cells.Cell.
        layer_norm: Whether every gate is normalized (see LayerNormLSTM).
        bridge: Initial state of the layers; see gnmt.model.recurrent.layers.Bridge.

    Raises:
        InputError: If `attention` has another query width, or for layer normalization of a cell other than an LSTM.
    """

    memory_size_key = "attention.memory_size"

    def __init__(
        self,
        input_size: Size,
        hidden_size: Size,
        num_layers: NumLayers,
        attention: Attention,
        query: Literal["previous", "current"] = "current",
        input_feeding: bool = True,
        residual_from: Annotated[int, Range(2)] | None = None,
        dropout: Probability = 0.0,
        variational_dropout: bool = False,
        cell: Cell = "lstm",
        layer_norm: bool = False,
        bridge: Bridge = "none",
    ) -> None:
        super().__init__()
        check_query(attention, hidden_size)
        self.input_size = input_size
        self.memory_size = attention.memory_size
        self.output_size = hidden_size
        self.num_layers = num_layers
        self.query = query
        self.input_feeding = input_feeding
        self.bridged = bridge == "final"
        self.attention = attention
        feed_size = hidden_size if query == "current" else attention.output_size
        self.stack = ResidualStack(
            input_size + (feed_size if input_feeding else 0),
            hidden_size,
            num_layers,
            layer_class(cell, layer_norm, "model.decoder"),
            residual_from,
            Dropout(dropout, variational_dropout),
        )
        self.combination = nn.Linear(attention.output_size + hidden_size, hidden_size, bias=False)
        if self.bridged:
            self.by_sentence_sizes = state_sizes(self.stack.recurrent_layers(), "final_")

    def prepare(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """Return the attention's keys as "keys"."""
        return {"keys": self.attention.keys(encoded.states_BSH)}

    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return hidden states [B, T, H] and attention [B, T, S] for a whole target."""
        if self.input_feeding:
            return self._forward_by_steps(embedded_BTE, memory)
        return self._forward_at_once(embedded_BTE, memory)

    def _forward_at_once(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Run the stack over the whole target, then compute attention for all steps."""
        states = initial_states_or_none(self.stack.recurrent_layers(), memory, self.bridged)
        outputs_TBH = self.stack(embedded_BTE.transpose(0, 1), states)
        query_TBH = outputs_TBH
        if self.query == "previous":
            top_state = states[-1]
            query_TBH = shift_one_step(outputs_TBH, None if top_state is None else top_state[0])
        context_BTH, weights_BTS = self.attention(query_TBH.transpose(0, 1), memory.extras["keys"], memory)
        return self._combine(context_BTH, outputs_TBH.transpose(0, 1)), weights_BTS

    def _forward_by_steps(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Run `_step` for each token of the target, with dropout in training."""
        state = self.start(memory, 1)
        hidden, weights = [], []
        for step, masks in enumerate(self.stack.dropout_masks(embedded_BTE.shape[1], embedded_BTE[:, 0])):
            hidden_B1H, weights_B1S, state = self._step(embedded_BTE[:, step, None], state, memory, masks)
            hidden.append(hidden_B1H)
            weights.append(weights_B1S)
        return torch.cat(hidden, dim=1), torch.cat(weights, dim=1)

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """Return the initial state, tensors [B, beam, H].

        It holds hidden_1, cell_1 (the bottom layer) and so on. With query="previous", `query` is the first query;
        otherwise, with input feeding, `attentional` is the h~ that the first step reads, which is zero.
        """
        batch = len(memory.mask_BS)
        states = initial_states(self.stack.recurrent_layers(), memory, beam, self.bridged)
        top_BKH = states[-1][0].view(batch, beam, -1)
        tensors = dict(pack_states(states, batch).tensors)
        if self.query == "previous":
            tensors["query"] = top_BKH
        elif self.input_feeding:
            tensors["attentional"] = torch.zeros_like(top_BKH)
        return DecoderState(tensors)

    def step(self, embedded_BKE: Tensor, state: DecoderState, memory: Memory) -> tuple[Tensor, Tensor, DecoderState]:
        """Return hidden states [B, K, H], attention [B, K, S] and the new state."""
        return self._step(embedded_BKE, state, memory, None)

    def _step(
        self, embedded_BKE: Tensor, state: DecoderState, memory: Memory, masks: list[Tensor] | None
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """Run one step; `masks` are the dropout masks [B * K, I] of the layers' inputs, or None for no dropout."""
        keys_BSA = memory.extras["keys"]
        if self.query == "previous":
            context_BKH, weights_BKS = self.attention(state.tensors["query"], keys_BSA, memory)
            outputs_BKH, tensors = self._step_stack(
                embedded_BKE, context_BKH if self.input_feeding else None, state, masks
            )
            tensors["query"] = outputs_BKH
            return self._combine(context_BKH, outputs_BKH), weights_BKS, DecoderState(tensors)
        outputs_BKH, tensors = self._step_stack(embedded_BKE, state.tensors.get("attentional"), state, masks)
        context_BKH, weights_BKS = self.attention(outputs_BKH, keys_BSA, memory)
        hidden_BKH = self._combine(context_BKH, outputs_BKH)
        if self.input_feeding:
            tensors["attentional"] = hidden_BKH
        return hidden_BKH, weights_BKS, DecoderState(tensors)

    def _step_stack(
        self, embedded_BKE: Tensor, feed_BKH: Tensor | None, state: DecoderState, masks: list[Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run one step of the stack; return the top layer's output [B, K, H] and the layers' new states by name.

        The bottom layer reads the embedding concatenated with `feed_BKH`, or without it if that is None.
        """
        inputs_BKI = embedded_BKE
        if feed_BKH is not None:
            inputs_BKI = torch.cat((embedded_BKE, feed_BKH.to(embedded_BKE.dtype)), dim=-1)
        outputs_NH, states = self.stack.step(inputs_BKI.flatten(0, 1), unpack_states(state, self.num_layers), masks)
        return outputs_NH.view(*embedded_BKE.shape[:2], -1), dict(pack_states(states, len(embedded_BKE)).tensors)

    def _combine(self, context_BTH: Tensor, outputs_BTH: Tensor) -> Tensor:
        """Return h~ (Luong et al. 2015, eq. 5), which quantizable layers clip because the bottom layer may read it."""
        hidden_BTH = torch.tanh(self.combination(torch.cat((context_BTH, outputs_BTH.to(context_BTH.dtype)), dim=-1)))
        return self.stack.recurrent_layers()[0].bounded(hidden_BTH)
