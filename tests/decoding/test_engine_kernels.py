"""The Triton kernels of search: parity with plain PyTorch, and compilation for a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_inference_copy import small_model
from test_search_continuous_batching import ALL_OPTIONS, SUPPRESSED, assert_equal, random_sources
from triton_checks import check_in_interpreter, check_that_it_compiles, has_triton, launches_compile

import gnmt.decoding.beam as beam_module
import gnmt.decoding.engine.inference_copy as inference_copy_module
from gnmt.decoding.beam import Candidates, search_kernels_run, update_hypotheses
from gnmt.decoding.engine.inference_copy import inference_copy
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.search import search
from gnmt.device import choose_precision

INTERPRETED = Path(__file__).with_name("interpreted_kernels.py")

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.slow
@has_triton
def test_the_kernels_equal_plain_pytorch_in_the_interpreter():
    check_in_interpreter(INTERPRETED, least=20)


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
    tensors = (f"*{dtype}", "*fp32", "*i64", "*i1")
    tuples = {"source_ptrs": tensors, "copy_ptrs": tensors, "widths": ("i32",) * len(tensors)}
    check_that_it_compiles(kernels.select_kernel, {"beams_ptr": "i64"}, {"ELEMENTS": kernels.ELEMENTS}, aligned, tuples)


@pytest.mark.slow
@has_triton
@pytest.mark.usefixtures("compiling_triton")
def test_what_the_functions_launch_compiles_for_a_gpu(monkeypatch):
    """Once, a kernel did not compile for a batch of one sentence, a size that Triton makes a constant."""
    from gnmt.decoding.engine import kernels

    names = {name for name in vars(kernels) if name.endswith("_kernel")}
    with launches_compile(monkeypatch) as compiled:
        kernels.call_all(torch.device("cpu"))
        assert set(compiled) == names
        for sentences, positions, options in (
            (1, 3, SearchOptions(beam_size=5)),
            (16, 16, SearchOptions(beam_size=32, stop="first", pruning=1, length_penalty_alpha=1, n_best=2)),
            (3, 0, SearchOptions(beam_size=2, stop="exhausted", coverage_beta=0)),
        ):
            compiled.clear()
            kernels.update_hypotheses(*zeros(sentences, positions, options), options, at_limit=positions == 3)
            assert compiled == ["plan_kernel", "grow_kernel"]


def zeros(sentences: int, positions: int, options: SearchOptions) -> tuple[Any, ...]:
    """Return arguments of `update_hypotheses`."""
    beam = options.beam_size
    numbers_B, numbers_BK = torch.zeros(sentences).long(), torch.zeros(sentences, beam).long()
    scores_BK, tokens_BKT = torch.zeros(sentences, beam), torch.zeros(sentences, beam, 24).long()
    coverage_BKS, mask_BS = torch.zeros(sentences, beam, positions), torch.ones(sentences, max(1, positions)).bool()
    hypotheses = (tokens_BKT, numbers_BK, scores_BK, scores_BK, coverage_BKS, tokens_BKT)
    candidates = (torch.zeros(sentences, 2 * beam), *torch.zeros(2, sentences, 2 * beam).long())
    state = (numbers_B, numbers_B, numbers_B.float(), numbers_B.bool())
    return state, hypotheses, hypotheses, candidates, coverage_BKS, mask_BS


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("options", range(4))
@pytest.mark.parametrize("at_limit", [False, True])
def test_the_hypotheses_of_a_gpu_are_those_of_a_cpu(options, at_limit):
    from interpreted_kernels import UPDATES, random_batch, random_candidates

    torch.manual_seed(5)
    batch = random_batch(UPDATES[options], with_beam_index=at_limit)
    candidates, attention_BKS = random_candidates(UPDATES[options], 0.4)
    expected, parents_BK = update_hypotheses(batch, candidates, attention_BKS, UPDATES[options], at_limit)
    on_gpu = Candidates(*(part.cuda() for part in candidates)), attention_BKS.cuda()
    assert search_kernels_run(on_gpu[1].device)
    found, found_parents_BK = update_hypotheses(
        batch.mapped(lambda part: part.cuda()), *on_gpu, UPDATES[options], at_limit
    )
    assert torch.equal(found_parents_BK.cpu(), parents_BK)
    assert torch.equal(found.sentences.done_B.cpu(), expected.sentences.done_B)
    for one, other in ((found.active, expected.active), (found.results, expected.results)):
        for tensor, wanted in zip(one, other, strict=True):
            torch.testing.assert_close(tensor.cpu(), wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("options", range(len(ALL_OPTIONS)))
def test_search_on_a_gpu_finds_the_same_without_the_kernels(options, monkeypatch):
    device = torch.device("cuda", torch.cuda.current_device())
    sources, model, found = random_sources(7, longest=9), small_model().to(device), []
    for runs in (True, False):
        for module in (beam_module, inference_copy_module):
            monkeypatch.setattr(module, "search_kernels_run", lambda device, runs=runs: runs)
        fast = inference_copy(model, choose_precision("fp32", device))
        settings = {"device": device, "suppressed": SUPPRESSED, "batch_size": 3}
        found.append(search(fast, sources, ALL_OPTIONS[options], **settings))
    assert_equal(*found)


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
