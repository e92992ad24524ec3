"""Attention over the encoder's states: additive, dot and general scores.

Every class computes scores [B, T, S] in its own way, and `attend` turns them into weights and contexts. The elements
[B, T, S, A] of additive scores would not fit into memory, so `additive_scores` calls the Triton kernels of
attention_kernels.py, or computes in chunks by an autograd function at the end of the file.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from gnmt.config.validate import Range, Size
from gnmt.device import triton_runs
from gnmt.errors import InputError
from gnmt.model.interfaces import Attention, Memory
from gnmt.model.validate import check_heads

CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""Elements of [B, T, S, A] that additive attention computes at a time: few enough for a CPU core's cache, or enough to
occupy a GPU."""


class AdditiveAttention(Attention):
    """Additive attention (Bahdanau et al. 2015, appendix A.1.2), normalized as in the public GNMT implementations.

    The score is `g * v/|v| . tanh(W_q q + W_k k + b)` with weight normalization (Salimans and Kingma 2016), or
    `v . tanh(W_q q + W_k k + b)` without.

    With several heads (RNMT+, Chen et al. 2018, section 4.1), each head has an equal part of the hidden units and of v,
    and its own g. It averages an equal part of the states' units, without a projection of its own; the encoder's
    `projection_size` adds one projection for all heads. The contexts are concatenated. The returned weights, which
    alignment and coverage use, are the mean over the heads.

    Args:
        query_size: Width of the queries.
        memory_size: Width of the encoder's states, a multiple of `num_heads`.
        hidden_size: Width A of the hidden layer, a multiple of `num_heads`.
        normalize: Whether v is normalized.
        initial_scale: Initial value of g. With 1 the attention weights become sharp early. With 1/sqrt(hidden_size),
            the value in tensorflow/nmt, models learn several times more slowly on small corpora.
        num_heads: Number of heads.

    Raises:
        InputError: If `num_heads` does not divide both sizes.
    """

    def __init__(
        self,
        query_size: Size,
        memory_size: Size,
        hidden_size: Size,
        normalize: bool = True,
        initial_scale: Annotated[float, Range(0, 1000, open_low=True)] = 1.0,
        num_heads: Size = 1,
    ) -> None:
        super().__init__()
        check_heads("model.decoder.attention", num_heads, hidden_size=hidden_size, memory_size=memory_size)
        self.num_heads = num_heads
        self.query_size = query_size
        self.memory_size = self.output_size = memory_size
        self.query_projection = nn.Linear(query_size, hidden_size, bias=False)
        self.key_projection = nn.Linear(memory_size, hidden_size)
        self.direction = nn.Parameter(torch.empty(hidden_size).uniform_(-1, 1))
        scale = torch.tensor(float(initial_scale)) if num_heads == 1 else torch.full((num_heads,), initial_scale)
        self.scale = nn.Parameter(scale) if normalize else None

    def keys(self, states_BSH: Tensor) -> Tensor:
        """Return W_k k + b for every source position, [B, S, A]."""
        keys_BSA: Tensor = self.key_projection(states_BSH)
        return keys_BSA

    def forward(self, query_BTH: Tensor, keys_BSA: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return the context [B, T, H] (Wu et al. 2016, eq. 4) and the weights [B, T, S] in fp32 or fp64."""
        query_BTA = self.query_projection(query_BTH)
        heads = zip(
            query_BTA.chunk(self.num_heads, dim=-1),
            keys_BSA.chunk(self.num_heads, dim=-1),
            self.score_vector().chunk(self.num_heads),
            strict=True,
        )
        return attend([additive_scores(*head) for head in heads], memory)

    def score_vector(self) -> Tensor:
        """Return g * v/|v| of all heads, concatenated, or v without normalization; [A]."""
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
    """Dot-product attention (Luong et al. 2015, section 3.1, "dot"): the score is `q . k`.

    Args:
        query_size: Width of the queries, equal to `memory_size`.
        memory_size: Width of the encoder's states.
        scaled: Whether scores are divided by sqrt(memory_size) (Vaswani et al. 2017, section 3.2.1). Without it the
            softmax can be almost one-hot before anything is learned.

    Raises:
        InputError: If the two sizes differ.
    """

    def __init__(
        self,
        query_size: Size,
        memory_size: Size,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        if query_size != memory_size:
            raise InputError(
                f"dot attention multiplies queries of width model.decoder.attention.query_size={query_size} with "
                f"states of width model.decoder.attention.memory_size={memory_size}: make them equal, or use "
                "model/attention=general or additive"
            )
        self.query_size = query_size
        self.memory_size = self.output_size = memory_size
        self.factor: float = memory_size**-0.5 if scaled else 1.0

    def keys(self, states_BSH: Tensor) -> Tensor:
        """Return the states unchanged, [B, S, H]."""
        return states_BSH

    def forward(self, query_BTH: Tensor, keys_BSA: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return the context [B, T, H] and the weights [B, T, S] in fp32 or fp64."""
        return attend([product_scores(query_BTH, keys_BSA) * self.factor], memory)


class GeneralAttention(Attention):
    """Bilinear attention (Luong et al. 2015, section 3.1, "general"): the score is `q . W k`.

    Args:
        query_size: Width of the queries.
        memory_size: Width of the encoder's states.
    """

    def __init__(self, query_size: Size, memory_size: Size) -> None:
        super().__init__()
        self.query_size = query_size
        self.memory_size = self.output_size = memory_size
        self.key_projection = nn.Linear(memory_size, query_size, bias=False)

    def keys(self, states_BSH: Tensor) -> Tensor:
        """Return W k for every source position, [B, S, query_size]."""
        keys_BSA: Tensor = self.key_projection(states_BSH)
        return keys_BSA

    def forward(self, query_BTH: Tensor, keys_BSA: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return the context [B, T, H] and the weights [B, T, S] in fp32 or fp64."""
        return attend([product_scores(query_BTH, keys_BSA)], memory)


def attend(scores_of_heads: Sequence[Tensor], memory: Memory) -> tuple[Tensor, Tensor]:
    """Average the encoder's states, weighted by the softmax of the scores.

    Args:
        scores_of_heads: Scores [B, T, S] of each head. Each head averages an equal part of the states' units.
        memory: Memory of the B source sentences; its padding gets no weight.

    Returns:
        Contexts of all heads, concatenated, [B, T, H], and the heads' mean weights [B, T, S] in the scores' type.
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
    """Return q . k of every query with every key, [B, T, S].

    The product runs in the keys' type; the result is fp32 or fp64.
    """
    scores_BTS = query_BTA.to(keys_BSA.dtype) @ keys_BSA.transpose(1, 2)
    return scores_BTS.to(torch.promote_types(scores_BTS.dtype, torch.float32))


def additive_scores(query_BTA: Tensor, keys_BSA: Tensor, vector_A: Tensor) -> Tensor:
    """Return v . tanh(q + k) of every query with every key, [B, T, S] in fp32 or fp64.

    On a GPU on which Triton compiles the kernels of attention_kernels.py, they run; otherwise the chunks of
    `chunked_additive_scores`. Both compute the same up to rounding. The kernels read and write no element of
    [B, T, S, A] in memory, where the chunks read and write each one several times.

    Args:
        query_BTA: Queries, in any floating-point type.
        keys_BSA: Keys.
        vector_A: The vector v.
    """
    if query_BTA.numel() and keys_BSA.numel() and kernels_run(query_BTA.device):
        from gnmt.model.attention_kernels import fused_additive_scores

        return fused_additive_scores(query_BTA, keys_BSA, vector_A)
    return chunked_additive_scores(query_BTA, keys_BSA, vector_A)


@functools.cache
def kernels_run(device: torch.device) -> bool:
    """Return whether the Triton kernels of additive scores run on a device; see `triton_runs`."""

    def trial() -> None:
        from gnmt.model.attention_kernels import fused_additive_scores

        with torch.inference_mode(False), torch.enable_grad():
            query_BTA = torch.zeros(1, 1, 64, device=device, requires_grad=True)
            scores_BTS = fused_additive_scores(query_BTA, query_BTA, query_BTA[0, 0])
            torch.autograd.grad(scores_BTS.sum(), query_BTA)

    return triton_runs(device, trial, "attention")


def chunked_additive_scores(query_BTA: Tensor, keys_BSA: Tensor, vector_A: Tensor) -> Tensor:
    """Return v . tanh(q + k) of every query with every key, [B, T, S] in fp32 or fp64.

    Forward and backward hold at most CHUNK_ELEMENTS elements of [B, T, S, A] at a time; backward recomputes them.
    """
    scores_BTS: Tensor = _ChunkedScores.apply(query_BTA, keys_BSA, vector_A)  # type: ignore[no-untyped-call]
    return scores_BTS


class _ChunkedScores(torch.autograd.Function):
    """Autograd function of `chunked_additive_scores`.

    It computes v . tanh(x) as 2v . sigmoid(2x) - sum(v), because torch's sigmoid takes a sixth of the time of its tanh
    on a CPU.
    """

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
            # One pass over memory computes grad * sigmoid * (1 - sigmoid).
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
    """Yield the rows and target steps of each chunk: several whole rows, or some steps of one row."""
    batch, num_steps, width = query_BTA.shape
    elements_per_step = max(1, keys_BSA.shape[1] * width)
    steps_per_chunk = max(1, CHUNK_ELEMENTS.get(query_BTA.device.type, 2**26) // elements_per_step)
    rows = max(1, steps_per_chunk // max(1, num_steps))
    steps = min(steps_per_chunk, max(1, num_steps))
    for row in range(0, batch, rows):
        for step in range(0, num_steps, steps):
            yield slice(row, row + rows), slice(step, step + steps)
