"""Triton kernels that compute the scores of additive attention, forward and backward.

`fused_additive_scores` equals `gnmt.model.attention.chunked_additive_scores`. The elements [B, T, S, A] exist only in
registers: forward reads queries and keys and writes scores, and backward computes the elements again. Gradients are
summed in a fixed order, without atomic operations, so repeated calls give bitwise equal results.

Importing this module needs Triton, which CUDA builds of torch bring. With TRITON_INTERPRET=1 in the environment before
the import, the kernels run on a CPU, slowly, for tests.

The kernels compute tanh(x) as 1 - 2r with r = 1 / (1 + exp(2x)). Its derivative is 4 (r - r^2). Arithmetic and sums
have the type of the scores: fp32, or fp64 for fp64 queries.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

KEYS, ROWS, UNITS = 32, 16, 64
"""Elements that a program holds at a time: KEYS x UNITS in forward, ROWS x UNITS in backward; powers of two."""

# Numbers that change from batch to batch. Without these lists, Triton would compile a kernel anew for some values.
_SHAPES = ["num_queries", "num_keys", "num_rows", "num_columns"]
_STRIDES_OF_SCORES = ["grad_batch_stride", "grad_row_stride", "grad_column_stride"]


def fused_additive_scores(query_BTA: Tensor, keys_BSA: Tensor, vector_A: Tensor) -> Tensor:
    """Return v . tanh(q + k) of every query with every key, [B, T, S] in fp32, or in fp64 for fp64 queries.

    Args:
        query_BTA: Queries, fp16, bf16, fp32 or fp64.
        keys_BSA: Keys.
        vector_A: The vector v.
    """
    scores_BTS: Tensor = _FusedScores.apply(query_BTA, keys_BSA, vector_A)
    return scores_BTS


class _FusedScores(torch.autograd.Function):
    """Autograd function of `fused_additive_scores`."""

    @staticmethod
    def forward(ctx: Any, query_BTA: Tensor, keys_BSA: Tensor, vector_A: Tensor) -> Tensor:
        query_BTA, keys_BSA = with_adjacent_units(query_BTA), with_adjacent_units(keys_BSA)
        ctx.save_for_backward(query_BTA, keys_BSA, vector_A)
        batch, num_queries, width = query_BTA.shape
        num_keys = keys_BSA.shape[1]
        scores_BTS = query_BTA.new_empty(
            batch, num_queries, num_keys, dtype=torch.promote_types(query_BTA.dtype, torch.float32)
        )
        with torch.cuda.device_of(query_BTA):
            scores_kernel[(batch * triton.cdiv(num_keys, KEYS) * num_queries,)](
                query_BTA,
                keys_BSA,
                vector_A.contiguous(),
                scores_BTS,
                num_queries,
                num_keys,
                width,
                *query_BTA.stride()[:2],
                *keys_BSA.stride()[:2],
                KEYS=KEYS,
                UNITS=UNITS,
            )
        return scores_BTS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_BTA, keys_BSA, vector_A = ctx.saved_tensors
        [grad_BTS] = grads
        grad_query_BTA, sums_NA = gradient(query_BTA, keys_BSA, vector_A, grad_BTS, of_vector=True)
        grad_keys_BSA, _ = gradient(keys_BSA, query_BTA, vector_A, grad_BTS.transpose(1, 2), of_vector=False)
        return grad_query_BTA, grad_keys_BSA, sums_NA.sum(0).to(vector_A.dtype)


def gradient(
    rows_BRA: Tensor, columns_BCA: Tensor, vector_A: Tensor, grad_BRC: Tensor, *, of_vector: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradient of queries or keys, which have the same role in q + k.

    Args:
        rows_BRA: The tensor whose gradient is computed: queries or keys.
        columns_BCA: The other one.
        vector_A: The vector v.
        grad_BRC: Gradient of the scores.
        of_vector: Whether to compute the gradient of v too.

    Returns:
        The gradient of `rows_BRA`, and summands [N, A] of the gradient of v, with N = 0 without `of_vector`.
    """
    batch, num_rows, width = rows_BRA.shape
    num_blocks = triton.cdiv(num_rows, ROWS)
    grad_BRA = torch.empty_like(rows_BRA, memory_format=torch.contiguous_format)
    sums_NA = grad_BRC.new_empty(batch * num_blocks if of_vector else 0, width)
    with torch.cuda.device_of(rows_BRA):
        gradient_kernel[(batch * num_blocks * triton.cdiv(width, UNITS),)](
            rows_BRA,
            columns_BCA,
            vector_A.contiguous(),
            grad_BRC,
            grad_BRA,
            sums_NA,
            num_rows,
            columns_BCA.shape[1],
            width,
            *rows_BRA.stride()[:2],
            *columns_BCA.stride()[:2],
            *grad_BRC.stride(),
            OF_VECTOR=of_vector,
            ROWS=ROWS,
            UNITS=UNITS,
        )
    return grad_BRA, sums_NA


def with_adjacent_units(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy, with the elements of its last dimension next to each other in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


# Kernels. tl.load and tl.store with a mask do nothing outside of the tensors and read zeros there.


@triton.jit
def complement(sums):
    """Return r = 1 / (1 + exp(2x)), with which tanh(x) = 1 - 2r."""
    return 1.0 / (1.0 + tl.exp(2.0 * sums))


@triton.jit(do_not_specialize=_SHAPES[:2])
def scores_kernel(
    query_ptr,
    keys_ptr,
    vector_ptr,
    scores_ptr,
    num_queries,
    num_keys,
    width,
    query_batch_stride,
    query_stride,
    keys_batch_stride,
    keys_stride,
    KEYS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Compute the scores of one query with KEYS keys. Neighboring programs read the same keys."""
    program = tl.program_id(0)
    num_blocks = tl.cdiv(num_keys, KEYS)
    query_index = program % num_queries
    keys = (program // num_queries % num_blocks) * KEYS + tl.arange(0, KEYS)
    row = (program // num_queries // num_blocks).to(tl.int64)
    dtype = scores_ptr.dtype.element_ty
    query_ptr += row * query_batch_stride + query_index * query_stride
    keys_ptr += row * keys_batch_stride
    is_key = keys < num_keys
    total = tl.zeros([KEYS, UNITS], dtype)
    for start in range(0, width, UNITS):
        units = start + tl.arange(0, UNITS)
        is_unit = units < width
        query = tl.load(query_ptr + units, is_unit, 0.0).to(dtype)
        vector = tl.load(vector_ptr + units, is_unit, 0.0).to(dtype)
        key = tl.load(
            keys_ptr + keys[:, None] * keys_stride + units[None, :], is_key[:, None] & is_unit[None, :], 0.0
        ).to(dtype)
        total += vector[None, :] * (1.0 - 2.0 * complement(query[None, :] + key))
    scores_ptr += (row * num_queries + query_index) * num_keys
    tl.store(scores_ptr + keys, tl.sum(total, 1), is_key)


@triton.jit(do_not_specialize=_SHAPES[2:] + _STRIDES_OF_SCORES)
def gradient_kernel(
    rows_ptr,
    columns_ptr,
    vector_ptr,
    grad_ptr,
    result_ptr,
    sums_ptr,
    num_rows,
    num_columns,
    width,
    rows_batch_stride,
    rows_stride,
    columns_batch_stride,
    columns_stride,
    grad_batch_stride,
    grad_row_stride,
    grad_column_stride,
    OF_VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Compute the gradient of UNITS units of ROWS rows, and these rows' summand of the gradient of v if OF_VECTOR."""
    program = tl.program_id(0)
    num_row_blocks, num_unit_blocks = tl.cdiv(num_rows, ROWS), tl.cdiv(width, UNITS)
    units = (program % num_unit_blocks) * UNITS + tl.arange(0, UNITS)
    block = (program // num_unit_blocks).to(tl.int64)
    rows = (block % num_row_blocks) * ROWS + tl.arange(0, ROWS)
    batch_row = block // num_row_blocks
    dtype = grad_ptr.dtype.element_ty
    is_row, is_unit = rows < num_rows, units < width
    is_element = is_row[:, None] & is_unit[None, :]
    rows_ptr += batch_row * rows_batch_stride
    row = tl.load(rows_ptr + rows[:, None] * rows_stride + units[None, :], is_element, 0.0).to(dtype)
    columns_ptr += batch_row * columns_batch_stride + units[None, :]
    grad_ptr += batch_row * grad_batch_stride + rows[:, None] * grad_row_stride
    slopes, tanh_sums = tl.zeros([ROWS, UNITS], dtype), tl.zeros([ROWS, UNITS], dtype)
    for _ in range(num_columns):
        column = tl.load(columns_ptr, is_unit[None, :], 0.0).to(dtype)
        grad = tl.load(grad_ptr, is_row[:, None], 0.0)
        rest = complement(row + column)
        slopes += grad * (rest - rest * rest)
        if OF_VECTOR:
            tanh_sums += grad * (1.0 - 2.0 * rest)
        columns_ptr += columns_stride
        grad_ptr += grad_column_stride
    vector = tl.load(vector_ptr + units, is_unit, 0.0).to(dtype)
    result_ptr += batch_row * num_rows * width
    tl.store(result_ptr + rows[:, None] * width + units[None, :], 4.0 * vector[None, :] * slopes, is_element)
    if OF_VECTOR:
        tl.store(sums_ptr + block * width + units, tl.sum(tanh_sums, 0), is_unit)
