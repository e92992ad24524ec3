"""Triton kernels of a search step: the LSTM cell, attention, the best candidates, and the update of hypotheses.

Each function equals plain PyTorch, which runs on a CPU and where Triton is missing, in `InferenceLSTM.apply_gates`,
`InferenceAttention.forward`, `gnmt.decoding.beam.best_candidates`, `gnmt.decoding.beam.update_hypotheses` and
`gnmt.model.interfaces.select_beams`. Plain PyTorch launches eight to sixty small kernels for each of them, and every
one reads and writes memory.

Importing this module needs Triton, which CUDA builds of torch bring. With TRITON_INTERPRET=1 in the environment before
the import, the kernels run on a CPU, slowly, for tests. All arithmetic is fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnmt.batch import EOS_ID
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import COVERAGE_FLOOR
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
"""Elements of one hypothesis that a program of `select_beams` or `update_hypotheses` copies, of each tensor; a power of
two."""

LARGEST_BEAM = 32
"""Largest beam of `update_hypotheses`. A program compares every candidate with every other."""


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
        vector_A: The vector v of the scores v . sigmoid(q + k), fp32; see InferenceAttention.
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
    values_BN, columns_BN = total_BN, None  # None: the column of a value is its index in the row
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


def call_all(device: torch.device) -> None:
    """Call each kernel with small tensors, so that a compiler or GPU that cannot run one raises its error."""
    rows_14 = torch.zeros(1, 4, device=device)
    lstm_cell(rows_14, None, rows_14[:, :1], torch.float32)
    ones_111, is_real_11 = torch.ones(1, 1, 1, device=device), torch.ones(1, 1, dtype=torch.bool, device=device)
    attend_additively(ones_111, ones_111, ones_111[0, 0], ones_111, is_real_11)
    best_candidates(rows_14, 2)
    numbers_11 = torch.zeros(1, 1, dtype=torch.int64, device=device)
    select_beams([ones_111, numbers_11], numbers_11)
    hypotheses = (numbers_11[:, :, None], numbers_11, rows_14[:, :1], rows_14[:, :1], ones_111, numbers_11[:, :, None])
    sentences = (numbers_11[0], numbers_11[0], rows_14[0, :1], is_real_11[0])
    candidates = (rows_14[:, :1], numbers_11, numbers_11)
    options = SearchOptions(beam_size=1)
    update_hypotheses(sentences, hypotheses, hypotheses, candidates, ones_111, is_real_11, options, at_limit=True)


class Updated(NamedTuple):
    """Results of `update_hypotheses`; see Sentences and Hypotheses of gnmt.decoding.beam, in whose order they are.

    Attributes:
        length_B: Decoder steps taken.
        done_B: True when the search of the sentence is over.
        active: The active hypotheses.
        results: The best finished hypotheses.
        parents_BK: Beam index of the parent of each active hypothesis.
    """

    length_B: Tensor
    done_B: Tensor
    active: list[Tensor]
    results: list[Tensor]
    parents_BK: Tensor


def update_hypotheses(
    sentences: Sequence[Tensor],
    active: Sequence[Tensor],
    results: Sequence[Tensor],
    candidates: Sequence[Tensor],
    attention_BKS: Tensor | None,
    mask_BS: Tensor,
    options: SearchOptions,
    *,
    at_limit: bool,
) -> Updated:
    """Finish, extend, prune and stop hypotheses after the candidates of a step of beam search are known.

    Two kernels: `plan_kernel` orders candidates and results and computes everything of one number per hypothesis;
    `grow_kernel` copies tokens, coverage and beam indices. Scores may differ from those of plain PyTorch by rounding.

    Args:
        sentences: length_B, limit_B, longest_penalty_B and done_B.
        active: The tensors of the active hypotheses.
        results: The tensors of the results.
        candidates: log_prob_BN, parents_BN and tokens_BN.
        attention_BKS: The attention of this step; needed if coverage is summed.
        mask_BS: bool, True for real source tokens.
        options: The search options, without sampling; the beam is at most LARGEST_BEAM.
        at_limit: Whether a sentence may reach its length limit in this step.
    """
    tokens_BKT, length_BK, log_prob_BK, score_BK, coverage_BKS, beam_index_BKT = (part.contiguous() for part in active)
    old_results = [part.contiguous() for part in results]
    candidates = [part.contiguous() for part in candidates]
    batch, beam, num_tokens = tokens_BKT.shape
    num_candidates, num_positions = candidates[0].shape[1], coverage_BKS.shape[2]
    assert beam <= LARGEST_BEAM
    assert attention_BKS is not None or not num_positions
    attention_BKS = coverage_BKS if attention_BKS is None else attention_BKS.contiguous()
    beams = triton.next_power_of_2(beam)
    new_length_B, new_done_B = (torch.empty_like(part) for part in (sentences[0], sentences[3]))
    new_length_BK, new_log_prob_BK = torch.empty_like(length_BK), torch.empty_like(log_prob_BK)
    result_length_BK, result_log_prob_BK, result_score_BK = (torch.empty_like(part) for part in old_results[1:4])
    # Parents and tokens of active hypotheses, then of results, and the index of results that are old ones, or -1.
    parents_2BK, last_2BK = length_BK.new_empty(2, batch, beam), length_BK.new_empty(2, batch, beam)
    old_BK = torch.empty_like(length_BK)
    with torch.cuda.device_of(tokens_BKT):
        plan_kernel[(batch,)](
            *(part.contiguous() for part in sentences),
            *candidates,
            *old_results[1:4],
            coverage_BKS,
            attention_BKS,
            mask_BS.contiguous(),
            new_length_B,
            new_done_B,
            new_length_BK,
            new_log_prob_BK,
            result_length_BK,
            result_log_prob_BK,
            result_score_BK,
            parents_2BK,
            last_2BK,
            old_BK,
            batch,
            beam,
            num_candidates,
            num_positions,
            options.n_best,
            float(options.length_penalty_alpha),
            float(options.length_penalty_constant),
            float(options.coverage_beta),
            float(options.pruning or 0),
            HAS_PRUNING=options.pruning is not None,
            AT_LIMIT=at_limit,
            STOP="first" if beam == 1 else options.stop,
            EOS=EOS_ID,
            FLOOR=COVERAGE_FLOOR,
            BEAMS=beams,
            CANDIDATES=triton.next_power_of_2(num_candidates),
            POSITIONS=min(triton.next_power_of_2(max(1, num_positions)), TILE // beams),
        )
        new_tokens_2BKT = tokens_BKT.new_empty(2, *tokens_BKT.shape)
        new_coverage_2BKS = coverage_BKS.new_empty(2, *coverage_BKS.shape)
        new_beam_index_2BKT = beam_index_BKT.new_empty(2, *beam_index_BKT.shape)
        widest = max(num_tokens, num_positions)
        grow_kernel[(2 * batch * beam, triton.cdiv(widest, ELEMENTS))](
            tokens_BKT,
            coverage_BKS,
            beam_index_BKT,
            attention_BKS,
            old_results[0],
            old_results[4],
            old_results[5],
            new_tokens_2BKT,
            new_coverage_2BKS,
            new_beam_index_2BKT,
            new_length_B,
            parents_2BK,
            last_2BK,
            old_BK,
            batch,
            beam,
            num_tokens,
            num_positions,
            HAS_BEAM_INDEX=beam_index_BKT.shape[2] > 0,
            ELEMENTS=ELEMENTS,
        )
    (new_tokens, result_tokens), (new_coverage, result_coverage) = new_tokens_2BKT, new_coverage_2BKS
    new_beam_index, result_beam_index = new_beam_index_2BKT
    return Updated(
        new_length_B,
        new_done_B,
        [new_tokens, new_length_BK, new_log_prob_BK, score_BK, new_coverage, new_beam_index],
        [result_tokens, result_length_BK, result_log_prob_BK, result_score_BK, result_coverage, result_beam_index],
        parents_2BK[0],
    )


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
    input_gate = tl.load(gates_ptr, is_unit, 0.0).to(tl.float32)
    forget_gate = tl.load(gates_ptr + width, is_unit, 0.0).to(tl.float32)
    doubled_gate = tl.load(gates_ptr + 2 * width, is_unit, 0.0).to(tl.float32)
    output_gate = tl.load(gates_ptr + 3 * width, is_unit, 0.0).to(tl.float32)
    if HAS_SUMMAND:
        input_gate += tl.load(added_ptr, is_unit, 0.0).to(tl.float32)
        forget_gate += tl.load(added_ptr + width, is_unit, 0.0).to(tl.float32)
        doubled_gate += tl.load(added_ptr + 2 * width, is_unit, 0.0).to(tl.float32)
        output_gate += tl.load(added_ptr + 3 * width, is_unit, 0.0).to(tl.float32)
    cell = tl.load(cell_ptr + row * cell_stride + units, is_unit, 0.0)
    cell = tl.sigmoid(forget_gate) * cell + tl.sigmoid(input_gate) * (2.0 * tl.sigmoid(doubled_gate) - 1.0)
    hidden = tl.sigmoid(output_gate) * (2.0 * tl.sigmoid(2.0 * cell) - 1.0)
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
    elements = block * BLOCK + tl.arange(0, BLOCK)
    is_element = elements < width
    values = tl.load(values_ptr + row * values_stride + elements, is_element, 0.0)
    columns = elements.to(tl.int64)
    if HAS_COLUMNS:
        columns = tl.load(columns_ptr + row * width + elements, is_element, -1)
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


@triton.jit(do_not_specialize=["num_sentences", "num_beams", "num_candidates", "num_positions", "n_best"])
def plan_kernel(
    length_ptr,
    limit_ptr,
    longest_penalty_ptr,
    done_ptr,
    candidate_log_prob_ptr,
    candidate_parent_ptr,
    candidate_token_ptr,
    old_length_ptr,
    old_log_prob_ptr,
    old_score_ptr,
    coverage_ptr,
    attention_ptr,
    mask_ptr,
    new_length_ptr,
    new_done_ptr,
    active_length_ptr,
    active_log_prob_ptr,
    result_length_ptr,
    result_log_prob_ptr,
    result_score_ptr,
    parents_ptr,
    last_ptr,
    old_ptr,
    num_sentences,
    num_beams,
    num_candidates,
    num_positions,
    n_best,
    alpha,
    constant,
    beta,
    pruning,
    HAS_PRUNING: tl.constexpr,
    AT_LIMIT: tl.constexpr,
    STOP: tl.constexpr,
    EOS: tl.constexpr,
    FLOOR: tl.constexpr,
    BEAMS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Update one sentence. Vectors have BEAMS or CANDIDATES elements, of which the first ones are used."""
    sentence = tl.program_id(0).to(tl.int64)
    beams, columns = tl.arange(0, BEAMS), tl.arange(0, CANDIDATES)
    is_beam, is_candidate = beams < num_beams, columns < num_candidates
    of_beams = sentence * num_beams + beams
    of_candidates = sentence * num_candidates + columns
    done = tl.load(done_ptr + sentence) != 0
    old_length = tl.load(length_ptr + sentence)
    length = tl.where(done, old_length, old_length + 1)
    limit = tl.load(limit_ptr + sentence)
    normalizer = length_penalty(length, alpha, constant)

    # The coverage penalty of what a hypothesis becomes depends on its parent alone.
    penalties = tl.zeros([BEAMS], tl.float32)
    for start in range(0, num_positions, POSITIONS):
        positions = start + tl.arange(0, POSITIONS)
        is_position = positions < num_positions
        elements = of_beams[:, None] * num_positions + positions[None, :]
        is_element = is_beam[:, None] & is_position[None, :]
        covered = tl.load(coverage_ptr + elements, is_element, 1.0)
        covered += tl.load(attention_ptr + elements, is_element, 0.0).to(tl.float32)
        is_real = tl.load(mask_ptr + sentence * num_positions + positions, is_position, 0) != 0
        logs = tl.log(tl.minimum(tl.maximum(covered, FLOOR), 1.0))
        penalties += beta * tl.sum(tl.where(is_real[None, :], logs, 0.0), 1)

    # Results: the old ones, and those of the best candidates that end.
    log_prob = tl.load(candidate_log_prob_ptr + of_candidates, is_candidate, float("-inf"))
    parent = tl.load(candidate_parent_ptr + of_candidates, is_candidate, 0)
    token = tl.load(candidate_token_ptr + of_candidates, is_candidate, EOS)
    ends = token == EOS
    is_new = columns < num_beams
    finishes = is_new & ends & (log_prob > float("-inf"))
    score = log_prob / normalizer + selected(parent, beams, penalties)
    score = tl.where(finishes, score, float("-inf"))
    old_score = tl.load(old_score_ptr + of_beams, is_beam, float("-inf"))
    old_rank, rank = merged_ranks(old_score, is_beam, beams, score, is_new, columns)
    result_score = at_ranks(beams, old_rank, old_score) + at_ranks(beams, rank, score)
    old_log_prob = tl.load(old_log_prob_ptr + of_beams, is_beam, float("-inf"))
    new_log_prob = tl.where(finishes, log_prob, float("-inf"))
    result_log_prob = at_ranks(beams, old_rank, old_log_prob) + at_ranks(beams, rank, new_log_prob)
    result_length = at_ranks(beams, old_rank, tl.load(old_length_ptr + of_beams, is_beam, 0))
    result_length += at_ranks(beams, rank, columns.to(tl.int64) * 0 + length)
    old = at_ranks(beams, old_rank, beams.to(tl.int64) + 1) - 1
    result_parent, result_token = at_ranks(beams, rank, parent), at_ranks(beams, rank, token)

    # Active hypotheses: the best candidates that do not end, followed by those that do if there are too few.
    continues = tl.where(ends, 0, 1)
    rank = tl.where(ends, tl.sum(continues, 0) + tl.cumsum(1 - continues, 0) - 1, tl.cumsum(continues, 0) - 1)
    active_parent, active_token = at_ranks(beams, rank, parent), at_ranks(beams, rank, token)
    active_log_prob = at_ranks(beams, rank, log_prob)
    active_log_prob = tl.where(is_beam & (active_token != EOS), active_log_prob, float("-inf"))
    if HAS_PRUNING:
        best = first(beams, result_log_prob) / length_penalty(first(beams, result_length), alpha, constant)
        is_far = active_log_prob / normalizer < best - pruning
        active_log_prob = tl.where(is_far, float("-inf"), active_log_prob)

    if AT_LIMIT:  # active hypotheses become results if there are none
        at_limit = (length >= limit) & (done == 0) & (first(beams, result_score) == float("-inf"))
        unfinished = at_limit & (active_log_prob > float("-inf"))
        score = active_log_prob / normalizer + selected(active_parent, beams, penalties)
        score = tl.where(unfinished, score, float("-inf"))
        new_log_prob = tl.where(unfinished, active_log_prob, float("-inf"))
        old_rank, rank = merged_ranks(result_score, is_beam, beams, score, is_beam, beams)
        result_score = at_ranks(beams, old_rank, result_score) + at_ranks(beams, rank, score)
        result_log_prob = at_ranks(beams, old_rank, result_log_prob) + at_ranks(beams, rank, new_log_prob)
        result_length = at_ranks(beams, old_rank, result_length)
        result_length += at_ranks(beams, rank, beams.to(tl.int64) * 0 + length)
        old = at_ranks(beams, old_rank, old + 1) - 1
        result_parent = at_ranks(beams, old_rank, result_parent) + at_ranks(beams, rank, active_parent)
        result_token = at_ranks(beams, old_rank, result_token) + at_ranks(beams, rank, active_token)

    is_nan = active_log_prob != active_log_prob
    best_active = tl.max(tl.where(is_nan, float("-inf"), active_log_prob), 0)
    best_active = tl.where(tl.sum(is_nan.to(tl.int32), 0) > 0, float("nan"), best_active)
    stops = (limit <= length) | (best_active == float("-inf"))
    if STOP == "first":
        stops = stops | (tl.sum(tl.where(is_beam & (result_score == float("-inf")), 1, 0), 0) == 0)
    if STOP == "bound":
        last_of_best = tl.max(tl.where(beams == n_best - 1, result_score, float("-inf")), 0)
        stops = stops | (last_of_best >= best_active / tl.load(longest_penalty_ptr + sentence))
    done = done | stops
    active_log_prob = tl.where(done, float("-inf"), active_log_prob)

    tl.store(new_length_ptr + sentence, length)
    tl.store(new_done_ptr + sentence, done)
    tl.store(active_length_ptr + of_beams, beams.to(tl.int64) * 0 + length, is_beam)
    tl.store(active_log_prob_ptr + of_beams, active_log_prob, is_beam)
    tl.store(result_length_ptr + of_beams, result_length, is_beam)
    tl.store(result_log_prob_ptr + of_beams, result_log_prob, is_beam)
    tl.store(result_score_ptr + of_beams, result_score, is_beam)
    tl.store(old_ptr + of_beams, old, is_beam)
    tl.store(parents_ptr + of_beams, active_parent, is_beam)
    tl.store(last_ptr + of_beams, active_token, is_beam)
    of_results = num_sentences * num_beams + of_beams
    tl.store(parents_ptr + of_results, result_parent, is_beam)
    tl.store(last_ptr + of_results, result_token, is_beam)


@triton.jit
def length_penalty(lengths, alpha, constant):
    """Return lp of equation 14; see gnmt.decoding.scoring.length_penalty."""
    return tl.exp2(alpha * tl.log2((constant + lengths.to(tl.float32)) / (constant + 1.0)))


@triton.jit
def merged_ranks(old, is_old, old_indices, new, is_new, new_indices):
    """Return the ranks of old and new scores in their common order: the largest first, of equal ones the older first.

    Elements of which `is_old` or `is_new` is False are no scores and have the rank -1.
    """
    old_rank = num_before(old, old_indices, is_old) + num_larger(old, new, is_new, False)
    rank = num_before(new, new_indices, is_new) + num_larger(new, old, is_old, True)
    return tl.where(is_old, old_rank, -1), tl.where(is_new, rank, -1)


@triton.jit
def num_before(scores, indices, is_score):
    """Return for each score the number of larger ones and of equal ones with a smaller index."""
    is_equal = (scores[None, :] == scores[:, None]) & (indices[None, :] < indices[:, None])
    is_before = (scores[None, :] > scores[:, None]) | is_equal
    return tl.sum((is_before & is_score[None, :]).to(tl.int32), 1)


@triton.jit
def num_larger(scores, others, is_other, OR_EQUAL: tl.constexpr):
    """Return for each score the number of others that are larger, with OR_EQUAL also of equal ones."""
    is_larger = others[None, :] > scores[:, None]
    if OR_EQUAL:
        is_larger = others[None, :] >= scores[:, None]
    return tl.sum((is_larger & is_other[None, :]).to(tl.int32), 1)


@triton.jit
def at_ranks(targets, ranks, values):
    """Return for each target the value whose rank it is, or 0 if there is none."""
    return tl.sum(tl.where(targets[:, None] == ranks[None, :], values[None, :], 0), 1)


@triton.jit
def selected(indices, beams, values):
    """Return values[indices]."""
    return tl.sum(tl.where(indices[:, None] == beams[None, :], values[None, :], 0.0), 1)


@triton.jit
def first(beams, values):
    """Return the first element of a vector."""
    return tl.sum(tl.where(beams == 0, values, 0), 0)


@triton.jit(do_not_specialize=["num_sentences", "num_beams", "num_tokens", "num_positions"])
def grow_kernel(
    tokens_ptr,
    coverage_ptr,
    beam_index_ptr,
    attention_ptr,
    old_tokens_ptr,
    old_coverage_ptr,
    old_beam_index_ptr,
    new_tokens_ptr,
    new_coverage_ptr,
    new_beam_index_ptr,
    length_ptr,
    parents_ptr,
    last_ptr,
    old_ptr,
    num_sentences,
    num_beams,
    num_tokens,
    num_positions,
    HAS_BEAM_INDEX: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """Write ELEMENTS elements of each tensor of one hypothesis: an old result, or a parent with one more token."""
    row = tl.program_id(0).to(tl.int64)
    num_active = num_sentences.to(tl.int64) * num_beams
    hypothesis = row % num_active
    sentence = hypothesis // num_beams
    old = tl.load(old_ptr + hypothesis, row >= num_active, -1)
    is_old = old >= 0
    parent, last = tl.load(parents_ptr + row), tl.load(last_ptr + row)
    length = tl.load(length_ptr + sentence)
    source = sentence * num_beams + tl.where(is_old, old, parent)
    elements = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    of_old, of_parent = (elements < num_tokens) & is_old, (elements < num_tokens) & (is_old == 0)
    is_last = of_parent & (elements == length)
    tokens = tl.load(old_tokens_ptr + source * num_tokens + elements, of_old, 0)
    tokens += tl.load(tokens_ptr + source * num_tokens + elements, of_parent, 0)
    tokens = tl.where(is_last, last, tokens)
    tl.store(new_tokens_ptr + row * num_tokens + elements, tokens, elements < num_tokens)
    if HAS_BEAM_INDEX:
        beam_index = tl.load(old_beam_index_ptr + source * num_tokens + elements, of_old, 0)
        beam_index += tl.load(beam_index_ptr + source * num_tokens + elements, of_parent, 0)
        beam_index = tl.where(is_last, parent, beam_index)
        tl.store(new_beam_index_ptr + row * num_tokens + elements, beam_index, elements < num_tokens)
    is_position = elements < num_positions
    of_old, of_parent = is_position & is_old, is_position & (is_old == 0)
    coverage = tl.load(old_coverage_ptr + source * num_positions + elements, of_old, 0.0)
    coverage += tl.load(coverage_ptr + source * num_positions + elements, of_parent, 0.0)
    coverage += tl.load(attention_ptr + source * num_positions + elements, of_parent, 0.0).to(tl.float32)
    tl.store(new_coverage_ptr + row * num_positions + elements, coverage, is_position)
