"""The Triton kernels of search: parity with plain PyTorch, and compilation for a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from triton_checks import check_in_interpreter, check_that_it_compiles, has_triton

from gnmt.decoding.beam import search_kernels_run

INTERPRETED = Path(__file__).with_name("interpreted_kernels.py")

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.slow
@has_triton
def test_the_kernels_equal_plain_pytorch_in_the_interpreter():
    check_in_interpreter(INTERPRETED, least=20)


NUMBERS = dict.fromkeys(("alpha", "constant", "beta", "pruning"), "fp32")


def plan_pointers(attention: str) -> dict[str, str]:
    """Return the data type behind each pointer of `plan_kernel`."""
    counts = ("length", "limit", "candidate_parent", "candidate_token", "old_length", "new_length", "active_length")
    counts = (*counts, "result_length", "parents", "last", "old")
    numbers = ("longest_penalty", "candidate_log_prob", "old_log_prob", "old_score", "coverage", "active_log_prob")
    numbers = (*numbers, "result_log_prob", "result_score")
    types = dict.fromkeys(counts, "i64") | dict.fromkeys(numbers, "fp32") | dict.fromkeys(("done", "mask"), "i1")
    types |= {"new_done": "i1", "attention": attention}
    return {f"{name}_ptr": one for name, one in types.items()}


def grow_pointers(attention: str) -> dict[str, str]:
    """Return the data type behind each pointer of `grow_kernel`."""
    sums = ("coverage", "old_coverage", "new_coverage")
    ids = ("tokens", "beam_index", "old_tokens", "old_beam_index", "new_tokens", "new_beam_index")
    ids = (*ids, "length", "parents", "last", "old")
    types = dict.fromkeys(ids, "i64") | dict.fromkeys(sums, "fp32") | {"attention": attention}
    return {f"{name}_ptr": one for name, one in types.items()}


@pytest.mark.slow
@has_triton
@pytest.mark.parametrize(("dtype", "aligned"), [("bf16", True), ("fp16", False), ("fp32", True)])
@pytest.mark.usefixtures("compiling_triton")
def test_the_kernels_compile_for_a_gpu(dtype, aligned):
    from gnmt.decoding.engine import kernels

    cell = {"gates_ptr": dtype, "added_ptr": dtype, "cell_ptr": "fp32", "hidden_ptr": dtype, "new_cell_ptr": "fp32"}
    for has_summand in (False, True):
        constants = {"HAS_SUMMAND": has_summand, "UNITS": kernels.UNITS}
        check_that_it_compiles(kernels.lstm_cell_kernel, cell, constants, aligned)
    attention = dict.fromkeys(("query_ptr", "keys_ptr", "states_ptr", "context_ptr"), dtype)
    attention |= {"vector_ptr": "fp32", "mask_ptr": "i1", "weights_ptr": "fp32"}
    for positions in (1, 64, kernels.LARGEST_SOURCE):
        constants = {"POSITIONS": positions, "UNITS": kernels.TILE // positions}
        check_that_it_compiles(kernels.attend_kernel, attention, constants, aligned)
    best = {"values_ptr": "fp32", "columns_ptr": "i64", "best_ptr": "fp32", "best_columns_ptr": "i64"}
    for has_columns in (False, True):
        constants = {"HAS_COLUMNS": has_columns, "COUNT": 10, "BLOCK": kernels.BLOCK}
        check_that_it_compiles(kernels.best_kernel, best, constants, aligned)
    for options in ({"STOP": "bound", "HAS_PRUNING": False}, {"STOP": "first", "HAS_PRUNING": True}):
        for at_limit, beams, candidates in ((False, 8, 16), (True, 8, 16), (True, 1, 1)):
            constants = {"AT_LIMIT": at_limit, "EOS": 3, "FLOOR": 1e-6, "POSITIONS": 64}
            constants |= {"BEAMS": beams, "CANDIDATES": candidates}
            check_that_it_compiles(kernels.plan_kernel, plan_pointers(dtype), constants | options, aligned, NUMBERS)
    for has_beam_index in (False, True):
        constants = {"HAS_BEAM_INDEX": has_beam_index, "ELEMENTS": kernels.ELEMENTS}
        check_that_it_compiles(kernels.grow_kernel, grow_pointers(dtype), constants, aligned)
    tensors = (f"*{dtype}", "*fp32", "*i64", "*i1")
    tuples = {"source_ptrs": tensors, "copy_ptrs": tensors, "widths": ("i32",) * len(tensors)}
    check_that_it_compiles(kernels.select_kernel, {"beams_ptr": "i64"}, {"ELEMENTS": kernels.ELEMENTS}, aligned, tuples)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize(("rows", "width", "count"), [(160, 32_000, 10), (1, 50, 10), (2_560, 32_000, 10)])
def test_the_best_candidates_of_a_gpu_are_those_of_a_cpu(rows, width, count):
    from gnmt.decoding.beam import best_candidates

    assert search_kernels_run(torch.device("cuda", torch.cuda.current_device()))
    torch.manual_seed(1)
    total_BN = (torch.randn(rows, width) * 4).round()  # with ties
    for one, other in zip(best_candidates(total_BN.cuda(), count), best_candidates(total_BN, count), strict=True):
        assert torch.equal(one.cpu(), other)
