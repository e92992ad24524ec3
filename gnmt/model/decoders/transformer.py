"""The Transformer's decoder: layers of causal self-attention, attention to the source, and feed-forward networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, cast

import torch
from torch import Tensor, nn

from gnmt.model.dropout import Dropout
from gnmt.model.interfaces import Decoder
from gnmt.model.positions import Positions
from gnmt.model.self_attention import (
    FeedForward,
    Norm,
    Residual,
    SelfAttention,
    SourceAttention,
    check_heads,
    final_norm,
    xavier,
)
from gnmt.types import Encoded, InputError, Memory, Range, State


class TransformerDecoder(Decoder):
    """Vaswani et al. 2017, section 3.1 and figure 1. Of what an encoder says it reads the states alone.

    hidden_size, norm, learned_positions and dropouts: as in the encoder. memory_size: width of the encoder's states.
    alignment_layer: the layer, counted from 1, whose attention to the source is what the decoder gives as its
    attention, as the mean over the heads; None for the last but one, which aligns best (Garg et al. 2019).
    Raises InputError where num_heads does not divide hidden_size or alignment_layer is above num_layers.
    """

    input_size_key = "hidden_size"

    def __init__(
        self,
        hidden_size: Annotated[int, Range(1)],
        memory_size: Annotated[int, Range(1)],
        num_layers: Annotated[int, Range(1)],
        num_heads: Annotated[int, Range(1)],
        feed_forward_size: Annotated[int, Range(1)],
        norm: Norm = "pre",
        learned_positions: Annotated[int, Range(1)] | None = None,
        alignment_layer: Annotated[int, Range(1)] | None = None,
        dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.1,
        attention_dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
        feed_forward_dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
    ) -> None:
        super().__init__()
        check_heads(hidden_size, num_heads, "model.decoder")
        if alignment_layer is not None and alignment_layer > num_layers:
            raise InputError(
                f"model.decoder.alignment_layer={alignment_layer}, but model.decoder.num_layers={num_layers}: choose "
                "one of them, or null for the last but one"
            )
        self.input_size = self.output_size = hidden_size
        self.memory_size = memory_size
        self.alignment_layer = alignment_layer or max(1, num_layers - 1)
        self.max_tokens = learned_positions
        self.positions = Positions(hidden_size, learned_positions)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(
                SelfAttention(hidden_size, num_heads, attention_dropout),
                SourceAttention(hidden_size, memory_size, num_heads, attention_dropout),
                FeedForward(hidden_size, feed_forward_size, feed_forward_dropout),
                [Residual(hidden_size, norm, dropout) for _ in range(3)],
                gives_weights=number == self.alignment_layer,
            )
            for number in range(1, num_layers + 1)
        )
        self.norm = final_norm(hidden_size, norm)

    def initialise(self) -> None:
        """Xavier weights and zero biases, as in the encoder."""
        xavier(self)

    def prepare(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """Each layer's keys and values of the source: keys_1, values_1 of the lowest and so on, [B, S, H]."""
        extras = {}
        for number, layer in enumerate(self.numbered_layers(), start=1):
            extras[f"keys_{number}"], extras[f"values_{number}"] = layer.source_attention.prepare(encoded.states_BSH)
        return extras

    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Hidden [B, T, H], and the attention [B, T, S] of the alignment layer, for the whole target at once."""
        scaled_BTE = embedded_BTE * math.sqrt(self.input_size)
        hidden_BTH = self.dropout(scaled_BTE + self.positions.over_time(scaled_BTE))
        alignment_BTS: Tensor | None = None
        for number, layer in enumerate(self.numbered_layers(), start=1):
            hidden_BTH = layer.look_back(hidden_BTH)
            hidden_BTH, weights_BTS = layer.look_at_source(hidden_BTH, memory, number)
            alignment_BTS = alignment_BTS if weights_BTS is None else weights_BTS
        assert alignment_BTS is not None
        return self.norm(hidden_BTH), alignment_BTS

    def start(self, memory: Memory, beam: int) -> State:
        """No step taken: `length` [B, K], and by step each layer's keys and values of the target, [B, K, 0, H]."""
        batch, states_BSH = memory.mask_BS.shape[0], memory.states_BSH
        empty_BKTH = states_BSH.new_zeros(batch, beam, 0, self.output_size)
        names = [f"{name}_{number}" for number in range(1, len(self.layers) + 1) for name in ("keys", "values")]
        length_BK = torch.zeros(batch, beam, dtype=torch.long, device=states_BSH.device)
        return State({"length": length_BK}, dict.fromkeys(names, empty_BKTH))

    def step(self, embedded_BKE: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor, State]:
        """One token for B sentences of K hypotheses, each at its own position."""
        length_BK = state.tensors["length"]
        scaled_BKE = embedded_BKE * math.sqrt(self.input_size)
        hidden_BKH = scaled_BKE + self.positions.at(length_BK, scaled_BKE)
        by_step: dict[str, Tensor] = {}
        alignment_BKS: Tensor | None = None
        for number, layer in enumerate(self.numbered_layers(), start=1):
            keys, values = f"keys_{number}", f"values_{number}"
            hidden_BKH, by_step[keys], by_step[values] = layer.look_back_by_step(
                hidden_BKH, state.by_step[keys], state.by_step[values], length_BK
            )
            hidden_BKH, weights_BKS = layer.look_at_source(hidden_BKH, memory, number)
            alignment_BKS = alignment_BKS if weights_BKS is None else weights_BKS
        assert alignment_BKS is not None
        return self.norm(hidden_BKH), alignment_BKS, State({"length": length_BK + 1}, by_step)

    def numbered_layers(self) -> list[TransformerDecoderLayer]:
        """The layers, the lowest first."""
        return [cast(TransformerDecoderLayer, layer) for layer in self.layers]


class TransformerDecoderLayer(nn.Module):
    """Self-attention to what was said, attention to the source, and a feed-forward network.

    gives_weights: whether it says where it looked, for which it leaves the fused kernel.
    """

    def __init__(
        self,
        self_attention: SelfAttention,
        source_attention: SourceAttention,
        feed_forward: FeedForward,
        residuals: list[Residual],
        gives_weights: bool,
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.source_attention = source_attention
        self.feed_forward = feed_forward
        self.around_self_attention, self.around_source_attention, self.around_feed_forward = residuals
        self.gives_weights = gives_weights

    def look_back(self, hidden_BTH: Tensor) -> Tensor:
        """The first sublayer, over the whole target."""
        outputs_BTH = self.self_attention(self.around_self_attention.before(hidden_BTH), None)
        return self.around_self_attention.after(hidden_BTH, outputs_BTH)

    def look_back_by_step(
        self, hidden_BKH: Tensor, keys_BKTH: Tensor, values_BKTH: Tensor, length_BK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The first sublayer for one more token, and keys and values with that token's."""
        outputs_BKH, keys_BKTH, values_BKTH = self.self_attention.step(
            self.around_self_attention.before(hidden_BKH), keys_BKTH, values_BKTH, length_BK
        )
        return self.around_self_attention.after(hidden_BKH, outputs_BKH), keys_BKTH, values_BKTH

    def look_at_source(self, hidden_BTH: Tensor, memory: Memory, number: int) -> tuple[Tensor, Tensor | None]:
        """The other sublayers, for a whole target or for K hypotheses: hidden, and weights [B, T, S] or None."""
        source = memory.extras[f"keys_{number}"], memory.extras[f"values_{number}"], memory.mask_BS
        inputs_BTH, weights_BTS = self.around_source_attention.before(hidden_BTH), None
        if self.gives_weights:
            outputs_BTH, weights_BTS = self.source_attention.with_weights(inputs_BTH, *source)
        else:
            outputs_BTH = self.source_attention(inputs_BTH, *source)
        hidden_BTH = self.around_source_attention.after(hidden_BTH, outputs_BTH)
        outputs_BTH = self.feed_forward(self.around_feed_forward.before(hidden_BTH))
        return self.around_feed_forward.after(hidden_BTH, outputs_BTH), weights_BTS
