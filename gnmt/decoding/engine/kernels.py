"""Triton kernels of a search step: the LSTM cell, attention, the best candidates and the hypotheses that stay.

Each function equals plain PyTorch, which runs on a CPU and where Triton is missing, in `InferenceLSTM.apply_gates`,
`InferenceAttention.forward`, `gnmt.decoding.beam.best_candidates` and `gnmt.model.interfaces.select_beams`. Plain
PyTorch launches eight to twenty-five small kernels for each of them, and every one reads and writes memory.

Importing this module needs Triton, which CUDA builds of torch bring. With TRITON_INTERPRET=1 in the environment before
the import, the kernels run on a CPU, slowly, for tests. All arithmetic is fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnmt.model.attention_kernels import with_adjacent_units

UNITS = 512
"""Units that a program of `lstm_cell` computes; a power of two."""

TILE = 4096
"""Elements [S, A] or [S, H] that a program of `attend_additively` holds at a time; a power of two."""

LARGEST_SOURCE = 1024
"""Source positions up to which `attend_additively` holds the scores of a query at once; a power of two."""

BLOCK, MOST_CANDIDATES = 1024, 64
"""Columns that a program of `best_candidates` reads, a power of two, and the largest number of candidates.

The latter is at most half of the former, so that each round halves the number of blocks.
"""

ELEMENTS = 1024
"""Elements of one hypothesis that a program of `select_beams` copies, of each tensor; a power of two."""


def lstm_cell(gates_NG: Tensor, added_NG: Tensor | None, cell_NH: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the hidden state h' = o tanh(c') in `dtype`, and the cell c' = f c + i tanh(g) in fp32, [N, H].

    Args:
        gates_NG: Input, forget, doubled cell and output gate before the sigmoid, [N, 4H]; see InferenceLSTM.
        added_NG: A second summand of the gates, or None.
        cell_NH: The cell c, fp32.
        dtype: Data type of the hidden state.
    """
    rows, width = cell_NH.shape
    gates_NG, cell_NH = with_adjacent_units(gates_NG), with_adjacent_units(cell_NH)
    added_NG = gates_NG if added_NG is None else with_adjacent_units(added_NG)
    hidden_NH = torch.empty(rows, width, dtype=dtype, device=cell_NH.device)
    new_cell_NH = torch.empty(rows, width, dtype=torch.float32, device=cell_NH.device)
    with torch.cuda.device_of(gates_NG):
        lstm_cell_kernel[(rows, triton.cdiv(width, UNITS))](
            gates_NG,
            added_NG,
            cell_NH,
            hidden_NH,
            new_cell_NH,
            width,
            gates_NG.stride(0),
            added_NG.stride(0),
            cell_NH.stride(0),
            HAS_SUMMAND=added_NG is not gates_NG,
            UNITS=UNITS,
        )
    return hidden_NH, new_cell_NH


def attend_additively(
    query_BKA: Tensor, keys_BSA: Tensor, vector_A: Tensor, states_BSH: Tensor, mask_BS: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the contexts [B, K, H] in the states' type and the weights [B, K, S] in fp32 of additive attention.

    Args:
        query_BKA: Queries of the hypotheses.
        keys_BSA: Keys.
        vector_A: The vector v of the scores v . tl.sigmoid(q + k), fp32; see InferenceAttention.
        states_BSH: Encoder states.
        mask_BS: bool, True for real source tokens. S is at most LARGEST_SOURCE.
    """
    (batch, beam, width), (num_positions, num_units) = query_BKA.shape, states_BSH.shape[1:]
    query_BKA, keys_BSA, states_BSH = (with_adjacent_units(part) for part in (query_BKA, keys_BSA, states_BSH))
    context_BKH = states_BSH.new_empty(batch, beam, num_units)
    weights_BKS = torch.empty(batch, beam, num_positions, dtype=torch.float32, device=query_BKA.device)
    positions = triton.next_power_of_2(num_positions)
    with torch.cuda.device_of(query_BKA):
        attend_kernel[(batch * beam,)](
            query_BKA,
            keys_BSA,
            vector_A.contiguous(),
            states_BSH,
            mask_BS.contiguous(),
            context_BKH,
            weights_BKS,
            beam,
            num_positions,
            width,
            num_units,
            *query_BKA.stride()[:2],
            *keys_BSA.stride()[:2],
            *states_BSH.stride()[:2],
            POSITIONS=positions,
            UNITS=max(1, TILE // positions),
        )
    return context_BKH, weights_BKS


def best_candidates(total_BN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest values of each row, fp32 [B, count], and their columns, int64.

    The largest value comes first, and ties are ordered by column. NaN comes before all numbers.

    Args:
        total_BN: fp32, with at least `count` columns.
        count: Number of values, at most MOST_CANDIDATES.
    """
    total_BN = with_adjacent_units(total_BN)
    rows, width = total_BN.shape
    values_BN, columns_BN = total_BN, None  # None: the column of a value is its place
    while True:  # each round keeps the best of each block, until there is one block
        num_blocks = triton.cdiv(width, BLOCK)
        best_BM = total_BN.new_empty(rows, num_blocks * count)
        best_columns_BM = torch.empty(rows, num_blocks * count, dtype=torch.int64, device=total_BN.device)
        with torch.cuda.device_of(total_BN):
            best_kernel[(rows, num_blocks)](
                values_BN,
                best_columns_BM if columns_BN is None else columns_BN,
                best_BM,
                best_columns_BM,
                width,
                num_blocks * count,
                values_BN.stride(0),
                HAS_COLUMNS=columns_BN is not None,
                COUNT=count,
                BLOCK=BLOCK,
            )
        if num_blocks == 1:
            return total_BN.gather(1, best_columns_BM), best_columns_BM
        values_BN, columns_BN, width = best_BM, best_columns_BM, num_blocks * count


def select_beams(tensors: Sequence[Tensor], beams_BN: Tensor) -> list[Tensor]:
    """Return the hypotheses [B, N, ...] with the given beam indices from each tensor [B, K, ...].

    One kernel copies all tensors, whatever their shapes and data types.

    Args:
        tensors: One or more tensors of hypotheses.
        beams_BN: Beam indices, int64.
    """
    beam, beams_BN = tensors[0].shape[1], beams_BN.contiguous()
    sources = tuple(tensor.contiguous() for tensor in tensors)
    copies = tuple(tensor.new_empty(*beams_BN.shape, *tensor.shape[2:]) for tensor in sources)
    widths = tuple(tensor[0, 0].numel() for tensor in sources)
    with torch.cuda.device_of(beams_BN):
        select_kernel[(beams_BN.numel(), max(1, triton.cdiv(max(widths), ELEMENTS)))](
            sources, copies, widths, beams_BN, beam, beams_BN.shape[1], ELEMENTS=ELEMENTS
        )
    return list(copies)


# Kernels. tl.load and tl.store with a mask do nothing outside of the tensors.


@triton.jit
def lstm_cell_kernel(
    gates_ptr,
    added_ptr,
    cell_ptr,
    hidden_ptr,
    new_cell_ptr,
    width,
    gates_stride,
    added_stride,
    cell_stride,
    HAS_SUMMAND: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Compute UNITS units of one row."""
    row = tl.program_id(0).to(tl.int64)
    units = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    is_unit = units < width
    gates_ptr += row * gates_stride + units
    added_ptr += row * added_stride + units
    entering = tl.load(gates_ptr, is_unit, 0.0).to(tl.float32)
    kept = tl.load(gates_ptr + width, is_unit, 0.0).to(tl.float32)
    doubled = tl.load(gates_ptr + 2 * width, is_unit, 0.0).to(tl.float32)
    leaving = tl.load(gates_ptr + 3 * width, is_unit, 0.0).to(tl.float32)
    if HAS_SUMMAND:
        entering += tl.load(added_ptr, is_unit, 0.0).to(tl.float32)
        kept += tl.load(added_ptr + width, is_unit, 0.0).to(tl.float32)
        doubled += tl.load(added_ptr + 2 * width, is_unit, 0.0).to(tl.float32)
        leaving += tl.load(added_ptr + 3 * width, is_unit, 0.0).to(tl.float32)
    cell = tl.load(cell_ptr + row * cell_stride + units, is_unit, 0.0)
    cell = tl.sigmoid(kept) * cell + tl.sigmoid(entering) * (2.0 * tl.sigmoid(doubled) - 1.0)
    hidden = tl.sigmoid(leaving) * (2.0 * tl.sigmoid(2.0 * cell) - 1.0)
    tl.store(new_cell_ptr + row * width + units, cell, is_unit)
    tl.store(hidden_ptr + row * width + units, hidden.to(hidden_ptr.dtype.element_ty), is_unit)


@triton.jit(do_not_specialize=["num_positions"])
def attend_kernel(
    query_ptr,
    keys_ptr,
    vector_ptr,
    states_ptr,
    mask_ptr,
    context_ptr,
    weights_ptr,
    beam,
    num_positions,
    width,
    num_units,
    query_batch_stride,
    query_stride,
    keys_batch_stride,
    keys_stride,
    states_batch_stride,
    states_stride,
    POSITIONS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Attend from one hypothesis. Neighboring programs read the same keys and states."""
    program = tl.program_id(0).to(tl.int64)
    sentence = program // beam
    positions = tl.arange(0, POSITIONS)
    is_position = positions < num_positions
    query_ptr += sentence * query_batch_stride + program % beam * query_stride
    keys_ptr += sentence * keys_batch_stride
    states_ptr += sentence * states_batch_stride
    scores = tl.zeros([POSITIONS], tl.float32)
    for start in range(0, width, UNITS):
        units = start + tl.arange(0, UNITS)
        is_unit = units < width
        query = tl.load(query_ptr + units, is_unit, 0.0).to(tl.float32)
        vector = tl.load(vector_ptr + units, is_unit, 0.0)
        keys = tl.load(
            keys_ptr + positions[:, None] * keys_stride + units[None, :], is_position[:, None] & is_unit[None, :], 0.0
        ).to(tl.float32)
        scores += tl.sum(vector[None, :] * tl.sigmoid(query[None, :] + keys), 1)
    is_real = tl.load(mask_ptr + sentence * num_positions + positions, is_position, 0) != 0
    scores = tl.where(is_real, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 0))
    weights = weights / tl.sum(weights, 0)
    tl.store(weights_ptr + program * num_positions + positions, weights, is_position)
    for start in range(0, num_units, UNITS):
        units = start + tl.arange(0, UNITS)
        is_unit = units < num_units
        states = tl.load(
            states_ptr + positions[:, None] * states_stride + units[None, :],
            is_real[:, None] & is_unit[None, :],
            0.0,
        ).to(tl.float32)
        context = tl.sum(weights[:, None] * states, 0)
        tl.store(context_ptr + program * num_units + units, context.to(context_ptr.dtype.element_ty), is_unit)


@triton.jit(do_not_specialize=["width", "best_width"])
def best_kernel(
    values_ptr,
    columns_ptr,
    best_ptr,
    best_columns_ptr,
    width,
    best_width,
    values_stride,
    HAS_COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the COUNT largest values of BLOCK elements of a row and their columns, the largest first.

    One int64 key packs value and column, as in gnmt.decoding.beam._best_columns. No two keys are equal, so the next
    one is the largest below. A block with fewer elements writes the column -1 for the missing ones.
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    places = block * BLOCK + tl.arange(0, BLOCK)
    is_element = places < width
    values = tl.load(values_ptr + row * values_stride + places, is_element, 0.0)
    columns = places.to(tl.int64)
    if HAS_COLUMNS:
        columns = tl.load(columns_ptr + row * width + places, is_element, -1)
        is_element = columns >= 0
    values = tl.where(values == values, values, float("inf")) + 0.0  # -0 becomes 0
    bits = values.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    none = tl.full([BLOCK], -(2**63), tl.int64)
    keys = tl.where(is_element, (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - columns), none)
    best_ptr += row * best_width + block * COUNT
    best_columns_ptr += row * best_width + block * COUNT
    for rank in range(COUNT):
        key = tl.max(keys, 0)
        keys = tl.where(keys == key, none, keys)
        high = (key >> 32).to(tl.int32)
        value = (high ^ ((high >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        tl.store(best_ptr + rank, value)
        tl.store(best_columns_ptr + rank, tl.where(key == -(2**63), -1, 0xFFFFFFFF - (key & 0xFFFFFFFF)))


@triton.jit(do_not_specialize=["widths", "beam", "num_selected"])
def select_kernel(
    source_ptrs,
    copy_ptrs,
    widths,
    beams_ptr,
    beam,
    num_selected,
    ELEMENTS: tl.constexpr,
):
    """Copy ELEMENTS elements of one hypothesis from each tensor."""
    row = tl.program_id(0).to(tl.int64)
    elements = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    selected = row // num_selected * beam + tl.load(beams_ptr + row)
    for index in tl.static_range(len(source_ptrs)):
        is_element = elements < widths[index]
        copied = tl.load(source_ptrs[index] + selected * widths[index] + elements, is_element)
        tl.store(copy_ptrs[index] + row * widths[index] + elements, copied, is_element)
