"""Transformer encoder and decoder (Vaswani et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.config.validate import Range
from gnmt.errors import InputError
from gnmt.model.interfaces import Decoder, DecoderState, Encoded, Encoder, Memory
from gnmt.model.layers import Dropout, Positions

Norm = Literal["pre", "post"]


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself (section 3.2.2): one product for queries, keys and values.

    dropout: of the attention weights, in training.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.projection = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, inputs_BTH: Tensor, mask_BT: Tensor | None) -> Tensor:
        """[B, T, H] over the positions where the mask is True; None: over a position's own and all before it."""
        query_BhTD, keys_BhTD, values_BhTD = (
            split_heads(tensor_BTH, self.num_heads) for tensor_BTH in self.projection(inputs_BTH).chunk(3, dim=-1)
        )
        mask = None if mask_BT is None else mask_BT[:, None, None]
        context_BhTD = attend(query_BhTD, keys_BhTD, values_BhTD, mask, self.dropout if self.training else 0.0)
        outputs_BTH: Tensor = self.output(join_heads(context_BhTD))
        return outputs_BTH

    def step(
        self, inputs_BKH: Tensor, keys_BKTH: Tensor, values_BKTH: Tensor, length_BK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One position further: its output [B, K, H], and keys and values with its own, [B, K, T + 1, H].

        length_BK: int64, how many of the T earlier positions are each row's.
        """
        query_BKH, key_BKH, value_BKH = self.projection(inputs_BKH).chunk(3, dim=-1)
        keys_BKTH, values_BKTH = appended(keys_BKTH, key_BKH, length_BK), appended(values_BKTH, value_BKH, length_BK)
        positions_T = torch.arange(keys_BKTH.shape[2], device=length_BK.device)
        mask_NT = positions_T <= length_BK.flatten()[:, None]
        context_NhTD = attend(
            split_heads(query_BKH.reshape(-1, 1, query_BKH.shape[2]), self.num_heads),
            split_heads(keys_BKTH.flatten(0, 1), self.num_heads),
            split_heads(values_BKTH.flatten(0, 1), self.num_heads),
            mask_NT[:, None, None],
        )
        return self.output(join_heads(context_NhTD).view(query_BKH.shape)), keys_BKTH, values_BKTH


class SourceAttention(nn.Module):
    """Multi-head attention to the encoder's states, whose keys and values are projected once (section 3.2.3).

    Every target position may look at every real source position, so the hypotheses of a sentence take the place of
    time in a step: nothing is copied for the beam.
    """

    def __init__(self, hidden_size: int, memory_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(hidden_size, hidden_size)
        self.projection = nn.Linear(memory_size, 2 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def prepare(self, states_BSM: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each [B, S, H]."""
        keys_BSH, values_BSH = self.projection(states_BSM).chunk(2, dim=-1)
        return keys_BSH, values_BSH

    def forward(self, inputs_BTH: Tensor, keys_BSH: Tensor, values_BSH: Tensor, mask_BS: Tensor) -> Tensor:
        """[B, T, H], by the fused kernel, which does not say where it looked."""
        context_BhTD = attend(
            split_heads(self.query(inputs_BTH), self.num_heads),
            split_heads(keys_BSH, self.num_heads),
            split_heads(values_BSH, self.num_heads),
            mask_BS[:, None, None],
            self.dropout if self.training else 0.0,
        )
        outputs_BTH: Tensor = self.output(join_heads(context_BhTD))
        return outputs_BTH

    def with_weights(
        self, inputs_BTH: Tensor, keys_BSH: Tensor, values_BSH: Tensor, mask_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same, and the weights [B, T, S] in fp32 or better, before dropout: the mean over the heads."""
        query_BhTD = split_heads(self.query(inputs_BTH), self.num_heads)
        keys_BhSD, values_BhSD = split_heads(keys_BSH, self.num_heads), split_heads(values_BSH, self.num_heads)
        scores_BhTS = (query_BhTD / query_BhTD.shape[-1] ** 0.5) @ keys_BhSD.transpose(2, 3)
        scores_BhTS = scores_BhTS.to(torch.promote_types(scores_BhTS.dtype, torch.float32))
        weights_BhTS = scores_BhTS.masked_fill(~mask_BS[:, None, None], float("-inf")).softmax(dim=-1)
        kept_BhTS = F.dropout(weights_BhTS, self.dropout, self.training)
        outputs_BTH = self.output(join_heads(kept_BhTS.to(values_BhSD.dtype) @ values_BhSD))
        return outputs_BTH, weights_BhTS.mean(1)


class FeedForward(nn.Module):
    """Two layers with a ReLU between them, at each position by itself (section 3.3)."""

    def __init__(self, hidden_size: int, feed_forward_size: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_size, feed_forward_size)
        self.outer = nn.Linear(feed_forward_size, hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.outer(self.dropout(torch.relu(self.inner(inputs))))
        return outputs


class Residual(nn.Module):
    """What stands around a sublayer: layer normalization, dropout of its output, and the connection past it.

    post: norm(x + sublayer(x)), as in the paper. pre: x + sublayer(norm(x)), which trains without a careful warm-up
    (Xiong et al. 2020); a stack of these needs one more norm at its end.
    """

    def __init__(self, hidden_size: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.is_pre = norm == "pre"
        self.norm = nn.LayerNorm(hidden_size)
        self.dropout = Dropout(dropout)

    def before(self, inputs: Tensor) -> Tensor:
        """What the sublayer reads."""
        read: Tensor = self.norm(inputs) if self.is_pre else inputs
        return read

    def after(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Its outputs joined with what it was given."""
        joined: Tensor = inputs + self.dropout(outputs)
        return joined if self.is_pre else self.norm(joined)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention (equation 1): [B, heads, T, D] like query; keys and values [B, heads, S, D].

    mask: bool, broadcast to [B, heads, T, S], where a query may look; None: at its own position and all before it.
    Gradients in bf16 on a CPU come from plain products: the backward of torch's fused kernel is slow there (torch
    2.13, two Zen 4 cores: 35 ms against 5 for 136 sentences of 15 tokens, 105 against 70 for 4 of 500), while in fp32
    and without gradients the fused kernel is the better one.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, keys, values, mask, dropout, is_causal=mask is None)
    if mask is None:
        mask = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=query.device).tril()
    scores_BhTS = (query * query.shape[-1] ** -0.5) @ keys.transpose(2, 3)
    weights_BhTS = scores_BhTS.masked_fill(~mask, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return F.dropout(weights_BhTS, dropout).to(values.dtype) @ values


def final_norm(hidden_size: int, norm: Norm) -> nn.Module:
    """What ends a stack of layers."""
    return nn.LayerNorm(hidden_size) if norm == "pre" else nn.Identity()


def check_heads(hidden_size: int, num_heads: int, key: str) -> None:
    """Raises InputError where the heads cannot share the width; key: the component's in a config, for the message."""
    if hidden_size % num_heads:
        raise InputError(
            f"{key}.num_heads={num_heads} does not divide {key}.hidden_size={hidden_size}: every head takes an equal "
            "part of the width, so choose a divisor of it"
        )


def xavier(module: nn.Module) -> None:
    """Weights of every Linear uniform after Glorot and Bengio (2010), as in the paper's code; biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)


def split_heads(tensor_BTH: Tensor, num_heads: int) -> Tensor:
    """[B, T, H] as [B, heads, T, H / heads], a view."""
    return tensor_BTH.view(*tensor_BTH.shape[:2], num_heads, -1).transpose(1, 2)


def join_heads(tensor_BhTD: Tensor) -> Tensor:
    """Undoes split_heads."""
    return tensor_BhTD.transpose(1, 2).flatten(2)


def appended(entries_BKTH: Tensor, entry_BKH: Tensor, length_BK: Tensor) -> Tensor:
    """The entries [B, K, T + 1, H] with one more behind each row's own; what lies behind that is of no meaning."""
    grown_BKTH = torch.cat((entries_BKTH.to(entry_BKH.dtype), entry_BKH[:, :, None]), dim=2)
    flat_NTH = grown_BKTH.flatten(0, 1)
    rows_N = torch.arange(len(flat_NTH), device=length_BK.device)
    flat_NTH[rows_N, length_BK.flatten()] = entry_BKH.flatten(0, 1)
    return flat_NTH.view(grown_BKTH.shape)


class TransformerEncoder(Encoder):
    """Vaswani et al. 2017, section 3.1 and figure 1. It gives [B, S, hidden_size] and nothing else.

    hidden_size: of the embeddings, which are multiplied by its square root, and of every layer. norm: where layer
    normalization stands, see gnmt.model.transformer.Residual. learned_positions: so many learned positions, or
    None for sinusoids. dropout: of embeddings with positions, and of each sublayer's output; attention_dropout: of
    attention weights; feed_forward_dropout: between the two layers of a feed-forward network.
    Raises InputError where num_heads does not divide hidden_size.
    """

    input_size_key = "hidden_size"

    def __init__(
        self,
        hidden_size: Annotated[int, Range(1)],
        num_layers: Annotated[int, Range(1)],
        num_heads: Annotated[int, Range(1)],
        feed_forward_size: Annotated[int, Range(1)],
        norm: Norm = "pre",
        learned_positions: Annotated[int, Range(1)] | None = None,
        dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.1,
        attention_dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
        feed_forward_dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
    ) -> None:
        super().__init__()
        check_heads(hidden_size, num_heads, "model.encoder")
        self.input_size = self.output_size = hidden_size
        self.max_tokens = learned_positions
        self.positions = Positions(hidden_size, learned_positions)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(
                SelfAttention(hidden_size, num_heads, attention_dropout),
                FeedForward(hidden_size, feed_forward_size, feed_forward_dropout),
                [Residual(hidden_size, norm, dropout) for _ in range(2)],
            )
            for _ in range(num_layers)
        )
        self.norm = final_norm(hidden_size, norm)

    def initialize(self) -> None:
        """Xavier weights and zero biases: small uniform ones would leave attention without a scale."""
        xavier(self)

    def forward(self, embedded_BSE: Tensor, lengths_B: Tensor) -> Encoded:
        """States [B, S, hidden_size]."""
        mask_BS = torch.arange(embedded_BSE.shape[1], device=lengths_B.device) < lengths_B[:, None]
        scaled_BSE = embedded_BSE * math.sqrt(self.input_size)
        states_BSH = self.dropout(scaled_BSE + self.positions(scaled_BSE))
        for layer in self.layers:
            states_BSH = layer(states_BSH, mask_BS)
        return Encoded(self.norm(states_BSH))


class TransformerEncoderLayer(nn.Module):
    """Self-attention over the whole sentence, then a feed-forward network."""

    def __init__(self, attention: SelfAttention, feed_forward: FeedForward, residuals: list[Residual]) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.around_attention, self.around_feed_forward = residuals

    def forward(self, states_BSH: Tensor, mask_BS: Tensor) -> Tensor:
        """[B, S, H] from [B, S, H]; padding, where the mask is False, is looked at by nobody."""
        outputs_BSH = self.attention(self.around_attention.before(states_BSH), mask_BS)
        states_BSH = self.around_attention.after(states_BSH, outputs_BSH)
        outputs_BSH = self.feed_forward(self.around_feed_forward.before(states_BSH))
        return self.around_feed_forward.after(states_BSH, outputs_BSH)


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

    def initialize(self) -> None:
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
        hidden_BTH = self.dropout(scaled_BTE + self.positions(scaled_BTE))
        alignment_BTS: Tensor | None = None
        for number, layer in enumerate(self.numbered_layers(), start=1):
            hidden_BTH = layer.look_back(hidden_BTH)
            hidden_BTH, weights_BTS = layer.look_at_source(hidden_BTH, memory, number)
            alignment_BTS = alignment_BTS if weights_BTS is None else weights_BTS
        assert alignment_BTS is not None
        return self.norm(hidden_BTH), alignment_BTS

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """No step taken: `length` [B, K], and by step each layer's keys and values of the target, [B, K, 0, H]."""
        batch, states_BSH = memory.mask_BS.shape[0], memory.states_BSH
        empty_BKTH = states_BSH.new_zeros(batch, beam, 0, self.output_size)
        names = [f"{name}_{number}" for number in range(1, len(self.layers) + 1) for name in ("keys", "values")]
        length_BK = torch.zeros(batch, beam, dtype=torch.long, device=states_BSH.device)
        return DecoderState({"length": length_BK}, dict.fromkeys(names, empty_BKTH))

    def step(self, embedded_BKE: Tensor, state: DecoderState, memory: Memory) -> tuple[Tensor, Tensor, DecoderState]:
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
        return self.norm(hidden_BKH), alignment_BKS, DecoderState({"length": length_BK + 1}, by_step)

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
