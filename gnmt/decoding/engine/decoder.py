"""GNMT's decoder for search: what the context adds to the upper layers is multiplied once for each source position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from gnmt.decoding.engine.linear import LinearMaker
from gnmt.decoding.engine.recurrence import FedLSTM
from gnmt.model.attention import AdditiveAttention, DotAttention, GeneralAttention
from gnmt.model.decoders.lstm import LSTMDecoder
from gnmt.model.interfaces import Decoder
from gnmt.model.recurrence import LSTM, Recurrence
from gnmt.model.stack import first_states, is_residual, pack, unpack
from gnmt.types import Encoded, Memory, State


def with_shared_context(decoder: Decoder, fast: Decoder, make: LinearMaker) -> Decoder:
    """SharedContextDecoder where it can stand in for `fast`, a copy of `decoder` made for search; otherwise `fast`.

    It takes LSTM layers under an attention of ours, since one of somebody's own may do more than average the states,
    and of one head, since several look up different parts of a state.
    """
    if not isinstance(fast, LSTMDecoder) or type(decoder) is not LSTMDecoder or len(decoder.upper) == 0:
        return fast
    averages = type(decoder.attention) in (AdditiveAttention, DotAttention, GeneralAttention)
    one_head = getattr(decoder.attention, "num_heads", 1) == 1
    if averages and one_head and all(type(layer) is LSTM for layer in decoder.upper):
        return SharedContextDecoder(decoder, fast, make)
    return fast


class SharedContextDecoder(Decoder):
    """LSTMDecoder (Wu et al. 2016, figure 1), whose upper layers all read the context.

    The context is a mean of the encoder's states, c = sum_s a_s h_s, so W c = sum_s a_s (W h_s). On the right W meets
    the S states of a sentence once; on the left it meets K hypotheses at every step. With 4+4 layers and a beam of 5
    that spares an eighth of all products of a translation. `memory.extras` holds W h_s of all upper layers,
    [B, S, (layers - 1) * 4H].
    """

    def __init__(self, decoder: LSTMDecoder, fast: LSTMDecoder, make: LinearMaker) -> None:
        """From the model's decoder, and a copy whose other modules are made for search already."""
        super().__init__()
        self.input_size, self.memory_size, self.output_size = fast.input_size, fast.memory_size, fast.output_size
        self.by_sentence_sizes = fast.by_sentence_sizes
        width = decoder.bottom.hidden_size
        layers = [cast(LSTM, layer) for layer in decoder.upper]
        self.upper = nn.ModuleList(FedLSTM(layer, width, make) for layer in layers)
        self.from_context = make(torch.cat([FedLSTM.from_fed(layer, width) for layer in layers]), None)
        fast.upper = nn.ModuleList()
        self.fast = fast

    def prepare(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """The attention's projected keys, and what each position's state would add to the upper layers' gates."""
        return {**self.fast.prepare(encoded), "gates": self.from_context(encoded.states_BSH)}

    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Search takes steps; teacher forcing is the model's own matter."""
        raise NotImplementedError("the decoder of the engine only steps: call the model it was made from")

    def start(self, memory: Memory, beam: int) -> State:
        """As that of LSTMDecoder."""
        return pack(first_states(self.layers(), memory, beam, self.fast.bridged), len(memory.mask_BS))

    def step(self, embedded_BKE: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor, State]:
        """As that of LSTMDecoder."""
        batch, beam = embedded_BKE.shape[:2]
        bottom_state, *upper_states = unpack(state, len(self.upper) + 1)
        new_states = [self.fast.bottom.step(embedded_BKE.flatten(0, 1), bottom_state)]
        outputs_NH = new_states[0][0]
        query_NH = outputs_NH if self.fast.query == "current" else bottom_state[0]
        context_BKH, weights_BKS = self.fast.attention(query_NH.view(batch, beam, -1), memory.extras["keys"], memory)
        gates_BSG = memory.extras["gates"]
        from_context_NG = (weights_BKS.to(gates_BSG.dtype) @ gates_BSG).flatten(0, 1).chunk(len(self.upper), dim=1)
        for number, (layer, layer_state) in enumerate(zip(self.upper, upper_states, strict=True), start=2):
            inputs_NH = outputs_NH
            new_states.append(cast(FedLSTM, layer).step_fed(inputs_NH, from_context_NG[number - 2], layer_state))
            outputs_NH = new_states[-1][0]
            if is_residual(number, self.fast.residual_from):
                outputs_NH = outputs_NH + inputs_NH
        hidden_BKH = self.fast.hidden(outputs_NH, context_BKH.flatten(0, 1)).view(batch, beam, -1)
        return hidden_BKH, weights_BKS, pack(new_states, batch)

    def layers(self) -> list[Recurrence]:
        """All layers, the bottom one first."""
        return [cast(Recurrence, layer) for layer in (self.fast.bottom, *self.upper)]
