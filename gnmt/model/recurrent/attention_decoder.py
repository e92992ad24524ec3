"""A decoder whose top layer queries attention, with or without input feeding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from gnmt.config.validate import Range
from gnmt.model.interfaces import Attention, Decoder, DecoderState, Encoded, Memory
from gnmt.model.layers import Dropout
from gnmt.model.recurrent.gnmt_decoder import Bridge
from gnmt.model.recurrent.layers import (
    Cell,
    ResidualStack,
    initial_states,
    layer_class,
    pack_states,
    shift_one_step,
    state_sizes,
    states_over_time,
    unpack_states,
)
from gnmt.model.validate import check_query


class AttentionDecoder(Decoder):
    """A stack of layers, then attention, then h~ = tanh(W [context; h]), which goes to the output layer.

    query "current" (Luong et al. 2015, section 3.1): the top layer's output h_t of this step asks. query "previous"
    (Bahdanau et al. 2015): that of the step before asks, at the first step the top layer's starting state.

    input_feeding: the bottom layer also reads what attention found: with query=current the h~ of the step before (Luong
    et al. 2015, section 3.3), with query=previous the context of this step, as the paper's recurrence does. Each step
    then needs the one before it in full, so training runs a loop over time in Python, of one product a layer and
    step, several times slower than the fused layers and the one attention over the whole target that
    input_feeding=False keeps. Search takes step after step in any case, and pays little.

    num_layers, residual_from, dropout, variational_dropout, cell, layer_norm: as in the encoder. bridge: see
    gnmt.model.recurrent.gnmt_decoder.
    """

    memory_size_key = "attention.memory_size"

    def __init__(
        self,
        input_size: Annotated[int, Range(1)],
        hidden_size: Annotated[int, Range(1)],
        num_layers: Annotated[int, Range(1)],
        attention: Attention,
        query: Literal["previous", "current"] = "current",
        input_feeding: bool = True,
        residual_from: Annotated[int, Range(2)] | None = None,
        dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
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
        fed_size = hidden_size if query == "current" else attention.output_size
        self.stack = ResidualStack(
            input_size + fed_size * input_feeding,
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
        """The attention's projected keys."""
        return {"keys": self.attention.keys(encoded.states_BSH)}

    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Hidden [B, T, H] and attention [B, T, S]; step after step with input feeding."""
        return (self.by_steps if self.input_feeding else self.at_once)(embedded_BTE, memory)

    def at_once(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """The whole stack over time first, then one attention for all steps."""
        states = states_over_time(self.stack.recurrent_layers(), memory, self.bridged)
        outputs_TBH = self.stack(embedded_BTE.transpose(0, 1), states)
        query_TBH = outputs_TBH
        if self.query == "previous":
            top_state = states[-1]
            query_TBH = shift_one_step(outputs_TBH, None if top_state is None else top_state[0])
        context_BTH, weights_BTS = self.attention(query_TBH.transpose(0, 1), memory.extras["keys"], memory)
        return self.combine(context_BTH, outputs_TBH.transpose(0, 1)), weights_BTS

    def by_steps(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """`step` after `step`, with the dropout of training."""
        state = self.start(memory, 1)
        hidden, weights = [], []
        for step, masks in enumerate(self.stack.dropout_masks(embedded_BTE.shape[1], embedded_BTE[:, 0])):
            hidden_B1H, weights_B1S, state = self.masked_step(embedded_BTE[:, step, None], state, memory, masks)
            hidden.append(hidden_B1H)
            weights.append(weights_B1S)
        return torch.cat(hidden, dim=1), torch.cat(weights, dim=1)

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """hidden_1, cell_1 and so on of the layers, `asked` or `fed` for the step to come; each [B, beam, H]."""
        batch = len(memory.mask_BS)
        states = initial_states(self.stack.recurrent_layers(), memory, beam, self.bridged)
        top_BKH = states[-1][0].view(batch, beam, -1)
        if self.query == "previous":
            return DecoderState({**pack_states(states, batch).tensors, "asked": top_BKH})
        fed = {"fed": torch.zeros_like(top_BKH)} if self.input_feeding else {}
        return DecoderState({**pack_states(states, batch).tensors, **fed})

    def step(self, embedded_BKE: Tensor, state: DecoderState, memory: Memory) -> tuple[Tensor, Tensor, DecoderState]:
        """One token for B sentences of K hypotheses; the memory stays at B rows."""
        return self.masked_step(embedded_BKE, state, memory, None)

    def masked_step(
        self, embedded_BKE: Tensor, state: DecoderState, memory: Memory, masks: list[Tensor] | None
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """The same with masks of dropout on the layers' inputs."""
        if self.query == "previous":
            context_BKH, weights_BKS = self.attention(state.tensors["asked"], memory.extras["keys"], memory)
            outputs_BKH, after = self.through_stack(embedded_BKE, context_BKH, state, masks)
            new_state = DecoderState({**after.tensors, "asked": outputs_BKH})
            return self.combine(context_BKH, outputs_BKH), weights_BKS, new_state
        outputs_BKH, after = self.through_stack(embedded_BKE, state.tensors.get("fed"), state, masks)
        context_BKH, weights_BKS = self.attention(outputs_BKH, memory.extras["keys"], memory)
        hidden_BKH = self.combine(context_BKH, outputs_BKH)
        fed = {"fed": hidden_BKH} if self.input_feeding else {}
        return hidden_BKH, weights_BKS, DecoderState({**after.tensors, **fed})

    def through_stack(
        self, embedded_BKE: Tensor, fed_BKH: Tensor | None, state: DecoderState, masks: list[Tensor] | None
    ) -> tuple[Tensor, DecoderState]:
        """The layers' step on the embedding and on what is fed where it is: the top output [B, K, H], new states."""
        inputs_BKI = embedded_BKE
        if self.input_feeding and fed_BKH is not None:
            inputs_BKI = torch.cat((embedded_BKE, fed_BKH.to(embedded_BKE.dtype)), dim=-1)
        outputs_NH, states = self.stack.step(inputs_BKI.flatten(0, 1), unpack_states(state, self.num_layers), masks)
        return outputs_NH.view(*embedded_BKE.shape[:2], -1), pack_states(states, len(embedded_BKE))

    def combine(self, context_BTH: Tensor, outputs_BTH: Tensor) -> Tensor:
        """h~ (Luong et al. 2015, eq. 5)."""
        return torch.tanh(self.combination(torch.cat((context_BTH, outputs_BTH.to(context_BTH.dtype)), dim=-1)))
