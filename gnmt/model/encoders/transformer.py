"""The Transformer's encoder: layers of self-attention and feed-forward networks."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from gnmt.model.dropout import Dropout
from gnmt.model.interfaces import Encoder
from gnmt.model.positions import Positions
from gnmt.model.self_attention import FeedForward, Norm, Residual, SelfAttention, check_heads, final_norm, xavier
from gnmt.types import Encoded, Range


class TransformerEncoder(Encoder):
    """Vaswani et al. 2017, section 3.1 and figure 1. It gives [B, S, hidden_size] and nothing else.

    hidden_size: of the embeddings, which are multiplied by its square root, and of every layer. norm: where layer
    normalisation stands, see gnmt.model.self_attention.Residual. learned_positions: so many learned positions, or
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

    def initialise(self) -> None:
        """Xavier weights and zero biases: small uniform ones would leave attention without a scale."""
        xavier(self)

    def forward(self, embedded_BSE: Tensor, lengths_B: Tensor) -> Encoded:
        """States [B, S, hidden_size]."""
        mask_BS = torch.arange(embedded_BSE.shape[1], device=lengths_B.device) < lengths_B[:, None]
        scaled_BSE = embedded_BSE * math.sqrt(self.input_size)
        states_BSH = self.dropout(scaled_BSE + self.positions.over_time(scaled_BSE))
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
