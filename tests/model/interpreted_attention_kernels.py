"""The Triton kernels of additive attention equal the chunked scores, in Triton's interpreter.

test_attention_kernels.py runs this file in a process with TRITON_INTERPRET=1, which must be set before the kernels are
imported.
"""

from __future__ import annotations

import pytest
import torch

import gnmt.model.attention as attention_module
from gnmt.model import attention_kernels
from gnmt.model.attention import AdditiveAttention, additive_scores, chunked_additive_scores
from gnmt.model.attention_kernels import fused_additive_scores
from gnmt.model.interfaces import Memory

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


def parts_of(shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return random queries, keys and the vector, of which the last is at least fp32, as in a model."""
    torch.manual_seed(1)
    batch, num_queries, num_keys, width = shape
    shapes = (batch, num_queries, width), (batch, num_keys, width), (width,)
    dtypes = dtype, dtype, torch.promote_types(dtype, torch.float32)
    return [torch.randn(*size).to(dtype).requires_grad_() for size, dtype in zip(shapes, dtypes, strict=True)]


def check_parity(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Compare scores and gradients with the chunked ones. Their fp32 sums have another order."""
    parts = parts_of(shape, dtype)
    expected_BTS, found_BTS = chunked_additive_scores(*parts), fused_additive_scores(*parts)
    assert found_BTS.dtype == expected_BTS.dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if found_BTS.dtype == torch.float32 else {}
    torch.testing.assert_close(found_BTS, expected_BTS, **tolerance)
    grad_BTS = torch.randn_like(expected_BTS)
    expected = torch.autograd.grad(expected_BTS, parts, grad_BTS)
    found = torch.autograd.grad(found_BTS, parts, grad_BTS)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **(tolerance if one.dtype == torch.float32 else {}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_scores_and_gradients_equal_the_chunked_ones(dtype):
    check_parity((2, 3, 4, 5), dtype)


@pytest.mark.parametrize(("dtype", "shape"), [(torch.float64, (1, 1, 1, 1)), (torch.float32, (2, 3, 5, 9))])
def test_programs_cover_everything_once(monkeypatch, dtype, shape):
    """A single element, and several blocks of keys, rows and units with a rest in each."""
    for name, size in {"KEYS": 4, "ROWS": 2, "UNITS": 8}.items():
        monkeypatch.setattr(attention_kernels, name, size)
    check_parity(shape, dtype)


def test_gradients_equal_numerical_ones():
    parts = parts_of((1, 2, 2, 2), torch.float64)
    assert torch.autograd.gradcheck(fused_additive_scores, parts, fast_mode=True)


def test_inputs_and_gradients_may_have_any_strides():
    """Time-major queries, keys of one of several heads, and the expanded gradient of a sum."""
    torch.manual_seed(2)
    query_BTA = torch.randn(2, 2, 5).transpose(0, 1).requires_grad_()
    keys_BSA = torch.randn(2, 3, 10).chunk(2, dim=-1)[1].requires_grad_()
    spread_BSA = torch.randn(2, 3, 5, 2)[..., 0].requires_grad_()
    vector_A = torch.randn(10)[::2].requires_grad_()
    for keys in (keys_BSA, spread_BSA):
        parts = query_BTA, keys, vector_A
        assert not any(part.is_contiguous() for part in parts)
        expected = torch.autograd.grad(chunked_additive_scores(*parts).sum(), parts)
        found = torch.autograd.grad(fused_additive_scores(*parts).sum(), parts)
        torch.testing.assert_close(found, expected)


def test_saturated_units_have_finite_scores_and_zero_gradients():
    query_BTA, keys_BSA, vector_A = parts_of((1, 2, 2, 4), torch.float32)
    with torch.no_grad():
        query_BTA.copy_(torch.tensor([[-1e4], [1e4]]))
    scores_BTS = fused_additive_scores(query_BTA, keys_BSA, vector_A)
    torch.testing.assert_close(scores_BTS, (torch.tensor([-1.0, 1.0])[:, None] * vector_A.sum()).expand(1, 2, 2))
    grad_query_BTA, grad_keys_BSA = torch.autograd.grad(scores_BTS.sum(), (query_BTA, keys_BSA))
    assert not grad_query_BTA.any()
    assert not grad_keys_BSA.any()


def test_repeated_calls_give_the_same_bits():
    parts = parts_of((2, 3, 2, 5), torch.float32)

    def results() -> tuple[torch.Tensor, ...]:
        scores_BTS = fused_additive_scores(*parts)
        return scores_BTS, *torch.autograd.grad(scores_BTS.square().sum(), parts)

    assert all(torch.equal(one, other) for one, other in zip(results(), results(), strict=True))


@pytest.mark.parametrize(
    ("normalize", "num_heads", "precision"),
    [(True, 1, "bf16"), (True, 1, "fp32"), (False, 1, "fp32"), (True, 2, "fp32")],
)
def test_attention_with_masks_is_the_same_with_kernels_and_in_chunks(monkeypatch, normalize, num_heads, precision):
    torch.manual_seed(3)
    attention = AdditiveAttention(4, 6, 8, normalize=normalize, num_heads=num_heads)
    states_BSH = torch.randn(2, 4, 6)
    memory = Memory(states_BSH, torch.tensor([[True] * 4, [True] * 3 + [False]]), {})
    query_BTH = torch.randn(2, 2, 4)

    def results(runs: bool) -> tuple[torch.Tensor, ...]:
        monkeypatch.setattr(attention_module, "kernels_run", lambda device: runs)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            context_BTH, weights_BTS = attention(query_BTH, attention.keys(memory.states_BSH), memory)
        assert not weights_BTS[1, :, 3:].any()
        loss = context_BTH.square().sum() + weights_BTS.square().sum()
        return context_BTH, weights_BTS, *torch.autograd.grad(loss, [*attention.parameters()])

    tolerance = {"rtol": 0.02, "atol": 0.02} if precision == "bf16" else {}  # bf16 has 8 bits
    torch.testing.assert_close(results(runs=True), results(runs=False), **tolerance)


def test_without_queries_or_keys_no_kernel_is_called(monkeypatch):
    monkeypatch.setattr(attention_module, "kernels_run", lambda device: True)
    assert additive_scores(torch.randn(2, 0, 5), torch.randn(2, 7, 5), torch.randn(5)).shape == (2, 0, 7)
    assert additive_scores(torch.randn(2, 3, 5), torch.randn(2, 0, 5), torch.randn(5)).shape == (2, 3, 0)
