"""Additive attention for search."""

from __future__ import annotations

import torch
from torch import Tensor

from gnmt.decoding.engine.linear import LinearMaker
from gnmt.model.attention import AdditiveAttention, attend
from gnmt.model.interfaces import Attention
from gnmt.types import Memory


class FastAdditiveAttention(Attention):
    """The weights of AdditiveAttention by a sigmoid, in fp32.

    v . tanh(z) = 2v . sigmoid(2z) - sum(v); the sum is the same for all source positions, and softmax does not see it.
    The 2 of 2z lies in both projections. On a CPU the tanh of [B, K, S, A] would be the most expensive thing in it.
    """

    vector_A: Tensor

    def __init__(self, attention: AdditiveAttention, make: LinearMaker) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.query_size = attention.query_size
        self.memory_size = self.output_size = attention.memory_size
        key_projection = attention.key_projection
        self.query_projection = make(2 * attention.query_projection.weight, None)
        self.key_projection = make(2 * key_projection.weight, 2 * key_projection.bias)
        self.vector_A = (2 * attention.score_vector()).detach().float()

    def keys(self, states_BSH: Tensor) -> Tensor:
        keys_BSA: Tensor = self.key_projection(states_BSH)
        return keys_BSA.float()

    def forward(self, query_BTH: Tensor, keys_BSA: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        query_BTA = self.query_projection(query_BTH).float()
        hidden_BTSA = torch.add(query_BTA[:, :, None], keys_BSA[:, None]).sigmoid_()
        heads = zip(hidden_BTSA.chunk(self.num_heads, dim=-1), self.vector_A.chunk(self.num_heads), strict=True)
        return attend([hidden @ vector for hidden, vector in heads], memory)
