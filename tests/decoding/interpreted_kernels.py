"""The Triton kernels of search equal plain PyTorch, in Triton's interpreter.

test_engine_kernels.py runs this file in a process with TRITON_INTERPRET=1, which must be set before the kernels are
imported.
"""

from __future__ import annotations

import math

import pytest
import torch
from test_engine_inference_copy import small_model
from test_search_continuous_batching import ALL_OPTIONS, SUPPRESSED, assert_equal, random_sources

import gnmt.decoding.beam as beam_module
import gnmt.decoding.engine.inference_copy as inference_copy_module
from gnmt.decoding.beam import best_candidates
from gnmt.decoding.engine import kernels
from gnmt.decoding.engine.inference_copy import InferenceLSTM, inference_copy
from gnmt.decoding.search import search
from gnmt.device import Precision
from gnmt.model.attention import attend
from gnmt.model.interfaces import Memory, select_beams

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_summand", [False, True])
def test_the_cell(dtype, has_summand, monkeypatch) -> None:
    """Gates, summands and cells may be columns of wider tensors."""
    monkeypatch.setattr(kernels, "UNITS", 4)
    torch.manual_seed(1)
    gates_NG, wide_NG = torch.randn(3, 40).to(dtype)[:, 4:], torch.randn(3, 99).to(dtype)
    added_NG = wide_NG[:, 36:72] if has_summand else None
    cell_NH = torch.randn(3, 20)[:, 1:10]
    hidden_NH, new_cell_NH = kernels.lstm_cell(gates_NG, added_NG, cell_NH, dtype)
    assert (hidden_NH.dtype, new_cell_NH.dtype) == (dtype, torch.float32)
    both_NG = gates_NG.float() if added_NG is None else gates_NG.float() + added_NG.float()
    expected = InferenceLSTM(9).apply_gates(both_NG, (torch.zeros(3, 9), cell_NH))
    torch.testing.assert_close(hidden_NH.float(), expected[0], atol=1e-5 if dtype == torch.float32 else 1e-2, rtol=0)
    torch.testing.assert_close(new_cell_NH, expected[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_positions", [1, 5, 16])
def test_attention(dtype, num_positions, monkeypatch) -> None:
    """Several tiles with a rest, sources of different lengths, and keys and states in wider tensors."""
    monkeypatch.setattr(kernels, "TILE", 32)
    torch.manual_seed(2)
    query_BKA, keys_BSA = torch.randn(2, 3, 7).to(dtype), torch.randn(2, num_positions, 9).to(dtype)[..., 2:]
    states_BSH, vector_A = torch.randn(2, num_positions + 1, 11).to(dtype)[:, 1:], torch.randn(7)
    mask_BS = torch.arange(num_positions) < torch.tensor([[num_positions], [max(1, num_positions - 3)]])
    found = kernels.attend_additively(query_BKA, keys_BSA, vector_A, states_BSH, mask_BS)
    sums_BKSA = query_BKA.float()[:, :, None] + keys_BSA.float()[:, None]
    memory = Memory(states_BSH.float(), mask_BS, {})
    context_BKH, weights_BKS = attend([sums_BKSA.sigmoid() @ vector_A], memory)
    assert (found[0].dtype, found[1].dtype) == (dtype, torch.float32)
    torch.testing.assert_close(found[1], weights_BKS, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0].float(), context_BKH, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)
    assert not found[1][~mask_BS[:, None].expand_as(found[1])].any()


@pytest.mark.parametrize(("width", "count"), [(1, 1), (5, 5), (16, 3), (17, 3), (100, 4), (257, 8)])
def test_candidates(width, count, monkeypatch) -> None:
    """Up to four rounds, with ties, infinities and both zeros; a block may hold fewer elements than are wanted."""
    monkeypatch.setattr(kernels, "BLOCK", 16)
    torch.manual_seed(3)
    total_BN = torch.randint(-3, 3, (4, width + 1)).float()[:, :width]
    total_BN[1] = -0.0
    total_BN[2, 1:] = -math.inf
    total_BN[3, ::3] = math.inf
    found, expected = kernels.best_candidates(total_BN, count), best_candidates(total_BN, count)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_numbers_that_are_not_numbers_stay_so() -> None:
    """Search tells a model that diverged from one without a possible token by them."""
    total_BN = torch.tensor([[1.0, math.nan, 2.0], [math.nan, math.nan, -math.inf]])
    for one, other in zip(kernels.best_candidates(total_BN, 2), best_candidates(total_BN, 2), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.parametrize("beam", [1, 4])
def test_selected_hypotheses(beam, monkeypatch) -> None:
    """Tensors of all data types and widths, none at all among them, and one that is a view of a wider one."""
    monkeypatch.setattr(kernels, "ELEMENTS", 8)
    torch.manual_seed(4)
    tensors = [
        torch.randn(3, beam, 2, 9),
        torch.randn(3, beam, 20).bfloat16()[:, :, 3:],
        torch.randn(3, beam, 0),
        torch.randint(9, (3, beam)),
        torch.rand(3, beam, 5) < 0.5,
    ]
    beams_BN = torch.randint(beam, (3, 6))[:, ::2]
    found, expected = kernels.select_beams(tensors, beams_BN), select_beams(tensors, beams_BN)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_a_search_gives_the_same_results(monkeypatch) -> None:
    """All of them together, as on a GPU."""
    model, sources = small_model(), random_sources(3, longest=4)
    settings = {"device": CPU, "suppressed": SUPPRESSED, "with_attention": True, "batch_size": 2}
    expected = search(inference_copy(model, Precision("fp32", CPU)), sources, ALL_OPTIONS[0], **settings)
    calls = []
    for module in (beam_module, inference_copy_module):
        monkeypatch.setattr(module, "kernels_run", lambda device: calls.append(device) or True)
    found = search(inference_copy(model, Precision("fp32", CPU)), sources, ALL_OPTIONS[0], **settings)
    assert calls
    assert_equal(found, expected)
