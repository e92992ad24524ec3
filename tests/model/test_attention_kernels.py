"""The Triton kernels of additive attention: parity with the chunked scores, compilation, and when they run.

Without a GPU, the kernels run in Triton's interpreter and are compiled for a GPU without running; see triton_checks.py.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path

import pytest
import torch
from triton_checks import check_in_interpreter, check_that_it_compiles, has_triton

from gnmt.decoding.beam import search_kernels_run
from gnmt.errors import InputError
from gnmt.model.attention import additive_scores, chunked_additive_scores, kernels_run

INTERPRETED = Path(__file__).with_name("interpreted_attention_kernels.py")

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.slow
@has_triton
def test_the_kernels_equal_the_chunked_scores_in_the_interpreter():
    check_in_interpreter(INTERPRETED, least=11)


@pytest.mark.slow
@has_triton
@pytest.mark.parametrize(("dtype", "aligned"), [("bf16", True), ("fp16", False), ("fp32", True), ("fp64", False)])
@pytest.mark.usefixtures("compiling_triton")
def test_the_kernels_compile_for_a_gpu(dtype, aligned):
    from gnmt.model import attention_kernels as kernels

    wide = "fp64" if dtype == "fp64" else "fp32"
    scores = {"query_ptr": dtype, "keys_ptr": dtype, "vector_ptr": wide, "scores_ptr": wide}
    check_that_it_compiles(kernels.scores_kernel, scores, {"KEYS": kernels.KEYS, "UNITS": kernels.UNITS}, aligned)
    gradient = {"rows_ptr": dtype, "columns_ptr": dtype, "vector_ptr": wide, "grad_ptr": wide, "result_ptr": dtype}
    for of_vector in (True, False):
        constants = {"OF_VECTOR": of_vector, "ROWS": kernels.ROWS, "UNITS": kernels.UNITS}
        check_that_it_compiles(kernels.gradient_kernel, gradient | {"sums_ptr": wide}, constants, aligned)


def test_on_a_cpu_the_chunks_run():
    assert not kernels_run(torch.device("cpu"))


def test_without_triton_the_chunks_run_on_a_gpu_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert not kernels_run.__wrapped__(torch.device("cuda", 0))
    assert "without its Triton kernels: Triton is not installed" in caplog.text


def test_kernels_that_cannot_be_compiled_are_not_used(monkeypatch, caplog):
    """Triton needs a compiler of C when a kernel is first called; without one, training ended in a traceback."""

    def fails(*args: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease set the CC environment variable.")

    kernels = type(sys)("gnmt.model.attention_kernels")
    kernels.fused_additive_scores = fails
    monkeypatch.setitem(sys.modules, "gnmt.model.attention_kernels", kernels)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    monkeypatch.setattr(torch, "zeros", lambda *size, device, requires_grad: torch.ones(1, 1, 64))
    with caplog.at_level(logging.WARNING):
        assert not kernels_run.__wrapped__(torch.device("cuda", 0))
    assert "RuntimeError: Failed to find C compiler." in caplog.text
    assert "Please set the CC environment variable." in caplog.text


def test_the_environment_turns_the_kernels_off(monkeypatch, caplog):
    monkeypatch.setenv("GNMT_TRITON", "0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: pytest.fail("Triton is not tried"))
    assert not kernels_run.__wrapped__(torch.device("cuda", 0))
    assert not search_kernels_run.__wrapped__(torch.device("cuda", 0))
    monkeypatch.setenv("GNMT_TRITON", "off")
    with pytest.raises(InputError, match="GNMT_TRITON=off in the environment: allowed are 0"):
        kernels_run.__wrapped__(torch.device("cuda", 0))
    assert not caplog.messages


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5, 7, 10), (2, 33, 65, 192), (64, 25, 25, 1024)])
def test_the_kernels_equal_the_chunked_scores_on_a_gpu(shape, dtype):
    assert kernels_run(torch.device("cuda", torch.cuda.current_device()))
    torch.manual_seed(1)
    batch, num_queries, num_keys, width = shape
    wide = torch.promote_types(dtype, torch.float32)
    parts = [
        torch.randn(batch, num_queries, width, device="cuda", dtype=dtype),
        torch.randn(batch, num_keys, width, device="cuda", dtype=dtype),
        torch.randn(width, device="cuda", dtype=wide),
    ]
    for part in parts:
        part.requires_grad_()
    expected_BTS, found_BTS = chunked_additive_scores(*parts), additive_scores(*parts)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if wide == torch.float32 else {}
    torch.testing.assert_close(found_BTS, expected_BTS, **tolerance)
    grad_BTS = torch.randn_like(expected_BTS)
    expected = torch.autograd.grad(expected_BTS, parts, grad_BTS)
    found = torch.autograd.grad(found_BTS, parts, grad_BTS)
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other, **(tolerance if dtype == torch.float32 else {}))
    # The sum over all B * T * S scores.
    torch.testing.assert_close(found[2], expected[2], rtol=1e-3, atol=1e-2)


@pytest.mark.cuda
@needs_cuda
def test_on_a_gpu_no_element_of_btsa_is_in_memory():
    query_BTA = torch.randn(16, 64, 512, device="cuda", requires_grad=True)
    keys_BSA = torch.randn(16, 64, 512, device="cuda", requires_grad=True)
    vector_A = torch.randn(512, device="cuda", requires_grad=True)
    assert kernels_run(query_BTA.device)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    additive_scores(query_BTA, keys_BSA, vector_A).sum().backward()
    used = torch.cuda.max_memory_allocated() - before
    assert used < 4 * 16 * 64 * 64 * 512 / 8  # queries, keys and scores are smaller by far
