"""Attention over the encoder's states."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from gnmt.model.interfaces import Attention
from gnmt.types import Memory, Range


class AdditiveAttention(Attention):
    """Additive attention (Bahdanau et al. 2015, appendix A.1.2), normalised as in the public GNMT implementations.

    score(q, k) = g * v/|v| . tanh(W_q q + W_k k + b); the normalisation is that of Salimans and Kingma (2016).
    Without it, score(q, k) = v . tanh(W_q q + W_k k + b).

    initial_scale: where g starts. 1 lets the weights become sharp soon; 1/sqrt(hidden_size), as in
    tensorflow/nmt, learns several times more slowly on small corpora.
    """

    def __init__(
        self,
        query_size: Annotated[int, Range(1)],
        memory_size: Annotated[int, Range(1)],
        hidden_size: Annotated[int, Range(1)],
        normalise: bool = True,
        initial_scale: Annotated[float, Range(0, open_low=True)] = 1.0,
    ) -> None:
        super().__init__()
        self.query_size = query_size
        self.memory_size = self.output_size = memory_size
        self.query_projection = nn.Linear(query_size, hidden_size, bias=False)
        self.key_projection = nn.Linear(memory_size, hidden_size)
        self.direction = nn.Parameter(torch.empty(hidden_size).uniform_(-1, 1))
        self.scale = nn.Parameter(torch.tensor(float(initial_scale))) if normalise else None

    def keys(self, states_BSH: Tensor) -> Tensor:
        """W_k k + b for every source position, [B, S, A]."""
        keys_BSA: Tensor = self.key_projection(states_BSH)
        return keys_BSA

    def forward(self, query_BTH: Tensor, keys_BSA: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Context [B, T, H] (Wu et al. 2016, eq. 4) and weights [B, T, S], in fp32 or better."""
        query_BTA = self.query_projection(query_BTH)
        hidden_BTSA = torch.tanh(query_BTA[:, :, None] + keys_BSA[:, None])
        scores_BTS = hidden_BTSA @ self.score_vector().to(hidden_BTSA.dtype)
        scores_BTS = scores_BTS.to(torch.promote_types(scores_BTS.dtype, torch.float32))
        scores_BTS = scores_BTS.masked_fill(~memory.mask_BS[:, None], float("-inf"))
        weights_BTS = torch.softmax(scores_BTS, dim=-1)
        context_BTH = weights_BTS.to(memory.states_BSH.dtype) @ memory.states_BSH
        return context_BTH, weights_BTS

    def score_vector(self) -> Tensor:
        """g * v/|v|, or v where the score is not normalised; [A]."""
        if self.scale is None:
            return self.direction
        vector_A: Tensor = self.scale * self.direction / torch.linalg.vector_norm(self.direction)
        return vector_A
