"""Attention over the encoder's states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from gnmt.config.validate import Range
from gnmt.errors import InputError
from gnmt.model.interfaces import Attention, Memory

CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""Of [B, T, S, A], held at a time: what stays in a core's cache, and enough work for a GPU."""


class AdditiveAttention(Attention):
    """Additive attention (Bahdanau et al. 2015, appendix A.1.2), normalized as in the public GNMT implementations.

    score(q, k) = g * v/|v| . tanh(W_q q + W_k k + b); the normalization is that of Salimans and Kingma (2016).
    Without it, score(q, k) = v . tanh(W_q q + W_k k + b).

    initial_scale: where g starts. 1 lets the weights become sharp soon; 1/sqrt(hidden_size), as in
    tensorflow/nmt, learns several times more slowly on small corpora.
    num_heads: with N > 1 (RNMT+, Chen et al. 2018, section 4.1) the hidden units, v and g are split among N heads, and
    each looks up an N-th of the states' units: a linear layer on the encoder's states (its projection_size) stands
    before them in place of one projection a head. The contexts are concatenated; the weights that are returned, for
    alignment and coverage, are the mean over the heads.
    """

    def __init__(
        self,
        query_size: Annotated[int, Range(1)],
        memory_size: Annotated[int, Range(1)],
        hidden_size: Annotated[int, Range(1)],
        normalize: bool = True,
        initial_scale: Annotated[float, Range(0, open_low=True)] = 1.0,
        num_heads: Annotated[int, Range(1)] = 1,
    ) -> None:
        super().__init__()
        for name, size in (("hidden_size", hidden_size), ("memory_size", memory_size)):
            if size % num_heads:
                raise InputError(
                    f"model.decoder.attention.{name}={size} cannot be split among "
                    f"model.decoder.attention.num_heads={num_heads}: "
                    f"make {name} a multiple of num_heads"
                )
        self.num_heads = num_heads
        self.query_size = query_size
        self.memory_size = self.output_size = memory_size
        self.query_projection = nn.Linear(query_size, hidden_size, bias=False)
        self.key_projection = nn.Linear(memory_size, hidden_size)
        self.direction = nn.Parameter(torch.empty(hidden_size).uniform_(-1, 1))
        scale = torch.tensor(float(initial_scale)) if num_heads == 1 else torch.full((num_heads,), initial_scale)
        self.scale = nn.Parameter(scale) if normalize else None

    def keys(self, states_BSH: Tensor) -> Tensor:
        """W_k k + b for every source position, [B, S, A]."""
        keys_BSA: Tensor = self.key_projection(states_BSH)
        return keys_BSA

    def forward(self, query_BTH: Tensor, keys_BSA: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Context [B, T, H] (Wu et al. 2016, eq. 4) and weights [B, T, S], in fp32 or better."""
        query_BTA = self.query_projection(query_BTH)
        heads = zip(
            query_BTA.chunk(self.num_heads, dim=-1),
            keys_BSA.chunk(self.num_heads, dim=-1),
            self.score_vector().chunk(self.num_heads),
            strict=True,
        )
        return attend([additive_scores(*head) for head in heads], memory)

    def score_vector(self) -> Tensor:
        """g * v/|v| of each head, or v where the score is not normalized; [A]."""
        if self.scale is None:
            return self.direction
        if self.num_heads == 1:
            vector_A: Tensor = self.scale * self.direction / torch.linalg.vector_norm(self.direction)
            return vector_A
        direction_NA = self.direction.view(self.num_heads, -1)
        norm_N1 = torch.linalg.vector_norm(direction_NA, dim=1, keepdim=True)
        vectors_NA: Tensor = self.scale[:, None] * direction_NA / norm_N1
        return vectors_NA.flatten()


class DotAttention(Attention):
    """Luong et al. 2015, section 3.1, "dot": score(q, k) = q . k, of queries and states of one width.

    scaled: divided by sqrt(width), as in Vaswani et al. 2017, section 3.2.1, which keeps the softmax from being almost
    one-hot before anything is learned.
    """

    def __init__(
        self,
        query_size: Annotated[int, Range(1)],
        memory_size: Annotated[int, Range(1)],
        scaled: bool = False,
    ) -> None:
        super().__init__()
        if query_size != memory_size:
            raise InputError(
                f"dot attention multiplies queries, model.decoder.attention.query_size={query_size} with states, "
                f"model.decoder.attention.memory_size={memory_size}: make them equal, or use "
                "model/attention=general or additive"
            )
        self.query_size = query_size
        self.memory_size = self.output_size = memory_size
        self.factor: float = memory_size**-0.5 if scaled else 1.0

    def keys(self, states_BSH: Tensor) -> Tensor:
        """The states themselves, [B, S, H]."""
        return states_BSH

    def forward(self, query_BTH: Tensor, keys_BSA: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Context [B, T, H] and weights [B, T, S], in fp32 or better."""
        return attend([product_scores(query_BTH, keys_BSA) * self.factor], memory)


class GeneralAttention(Attention):
    """Luong et al. 2015, section 3.1, "general": score(q, k) = q . W k, so that widths may differ."""

    def __init__(self, query_size: Annotated[int, Range(1)], memory_size: Annotated[int, Range(1)]) -> None:
        super().__init__()
        self.query_size = query_size
        self.memory_size = self.output_size = memory_size
        self.key_projection = nn.Linear(memory_size, query_size, bias=False)

    def keys(self, states_BSH: Tensor) -> Tensor:
        """W k for every source position, [B, S, Q]."""
        keys_BSA: Tensor = self.key_projection(states_BSH)
        return keys_BSA

    def forward(self, query_BTH: Tensor, keys_BSA: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Context [B, T, H] and weights [B, T, S], in fp32 or better."""
        return attend([product_scores(query_BTH, keys_BSA)], memory)


def attend(scores_of_heads: Sequence[Tensor], memory: Memory) -> tuple[Tensor, Tensor]:
    """Context [B, T, H] and mean weights [B, T, S], of the scores' type, from each head's scores [B, T, S].

    Padding gets no weight. Each head looks up its part of the states' units.
    """
    contexts, weights = [], []
    for scores_BTS, states_BSH in zip(
        scores_of_heads, memory.states_BSH.chunk(len(scores_of_heads), dim=-1), strict=True
    ):
        weights_BTS = torch.softmax(scores_BTS.masked_fill(~memory.mask_BS[:, None], float("-inf")), dim=-1)
        contexts.append(weights_BTS.to(states_BSH.dtype) @ states_BSH)
        weights.append(weights_BTS)
    if len(weights) == 1:
        return contexts[0], weights[0]
    return torch.cat(contexts, dim=-1), torch.stack(weights).mean(0)


def product_scores(query_BTA: Tensor, keys_BSA: Tensor) -> Tensor:
    """q . k of every query with every key, [B, T, S], in fp32 or better (of a product in the inputs' precision)."""
    scores_BTS = query_BTA.to(keys_BSA.dtype) @ keys_BSA.transpose(1, 2)
    return scores_BTS.to(torch.promote_types(scores_BTS.dtype, torch.float32))


def additive_scores(query_BTA: Tensor, keys_BSA: Tensor, vector_A: Tensor) -> Tensor:
    """v . tanh(q + k) of every query with every key, [B, T, S], in fp32 or better.

    [B, T, S, A] is never held beyond a chunk, in either direction: backward computes it again.
    """
    scores_BTS: Tensor = _AdditiveScores.apply(query_BTA, keys_BSA, vector_A)  # type: ignore[no-untyped-call]
    return scores_BTS


class _AdditiveScores(torch.autograd.Function):
    """With tanh(x) = 2 sigmoid(2x) - 1, since a sigmoid takes a sixth of the time of a tanh on a CPU."""

    @staticmethod
    def forward(ctx: Any, query_BTA: Tensor, keys_BSA: Tensor, vector_A: Tensor) -> Tensor:
        ctx.save_for_backward(query_BTA, keys_BSA, vector_A)
        dtype = torch.promote_types(query_BTA.dtype, torch.float32)
        double_query_BTA, double_keys_BSA = 2 * query_BTA.to(dtype), 2 * keys_BSA.to(dtype)
        double_vector_A = 2 * vector_A.to(dtype)
        scores_BTS = double_query_BTA.new_empty((*query_BTA.shape[:2], keys_BSA.shape[1]))
        with torch.autocast(query_BTA.device.type, enabled=False):
            for rows, steps in _chunks(query_BTA, keys_BSA):
                sigmoid_BTSA = (double_query_BTA[rows, steps, None] + double_keys_BSA[rows, None]).sigmoid_()
                scores_BTS[rows, steps] = sigmoid_BTSA @ double_vector_A
            return scores_BTS.sub_(vector_A.sum())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_BTA, keys_BSA, vector_A = ctx.saved_tensors
        grad_BTS = grads[0]
        double_query_BTA, double_keys_BSA = 2 * query_BTA.to(grad_BTS.dtype), 2 * keys_BSA.to(grad_BTS.dtype)
        sum_over_keys_BTA, sum_over_queries_BSA = torch.zeros_like(double_query_BTA), torch.zeros_like(double_keys_BSA)
        weighted_A = torch.zeros_like(vector_A, dtype=grad_BTS.dtype)
        for rows, steps in _chunks(query_BTA, keys_BSA):
            sigmoid_BTSA = (double_query_BTA[rows, steps, None] + double_keys_BSA[rows, None]).sigmoid_()
            grad_chunk_BTS = grad_BTS[rows, steps]
            weighted_A += grad_chunk_BTS.reshape(-1) @ sigmoid_BTSA.flatten(0, 2)
            # grad * sigmoid * (1 - sigmoid), in one pass
            slope_BTSA = torch.ops.aten.sigmoid_backward(
                grad_chunk_BTS[..., None].expand_as(sigmoid_BTSA), sigmoid_BTSA
            )
            sum_over_keys_BTA[rows, steps] = slope_BTSA.sum(2)
            sum_over_queries_BSA[rows] += slope_BTSA.sum(1)
        factor_A = 4 * vector_A
        return (
            (sum_over_keys_BTA * factor_A).to(query_BTA.dtype),
            (sum_over_queries_BSA * factor_A).to(keys_BSA.dtype),
            (2 * weighted_A - grad_BTS.sum()).to(vector_A.dtype),
        )


def _chunks(query_BTA: Tensor, keys_BSA: Tensor) -> Iterator[tuple[slice, slice]]:
    """The rows and target steps that are computed at once: several whole rows, or a part of one."""
    batch, num_steps, width = query_BTA.shape
    elements_of_a_step = max(1, keys_BSA.shape[1] * width)
    steps_at_once = max(1, CHUNK_ELEMENTS.get(query_BTA.device.type, 2**26) // elements_of_a_step)
    rows = max(1, steps_at_once // max(1, num_steps))
    steps = min(steps_at_once, max(1, num_steps))
    for row in range(0, batch, rows):
        for step in range(0, num_steps, steps):
            yield slice(row, row + rows), slice(step, step + steps)
