"""Every attention equals its formula in NumPy, and additive scores are computed in chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gnmt.model.attention as attention_module
from gnmt.errors import InputError
from gnmt.model.attention import AdditiveAttention, DotAttention, GeneralAttention, chunked_additive_scores
from gnmt.model.interfaces import Memory


def memory_of(lengths: list[int], width: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Memory:
    states_BSH = torch.randn(len(lengths), max(lengths), width, generator=generator, dtype=torch.float64).to(dtype)
    mask_BS = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Memory(states_BSH, mask_BS, {})


@pytest.mark.parametrize("normalize", [True, False])
def test_additive_attention_equals_its_formula(normalize):
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    attention = AdditiveAttention(4, 5, 3, normalize=normalize, initial_scale=0.75).double()
    memory = memory_of([4, 2, 1], 5, generator)
    query_BTH = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    context_BTH, weights_BTS = attention(query_BTH, attention.keys(memory.states_BSH), memory)

    w_query, w_key, bias, v = (
        parameter.detach().numpy()
        for parameter in (
            attention.query_projection.weight,
            attention.key_projection.weight,
            attention.key_projection.bias,
            attention.direction,
        )
    )
    if normalize:
        v = 0.75 * v / np.sqrt((v * v).sum())
    for row, length in enumerate([4, 2, 1]):
        states = memory.states_BSH[row, :length].numpy()
        for step in range(2):
            scores = np.tanh(w_query @ query_BTH[row, step].numpy() + states @ w_key.T + bias) @ v
            weights = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(weights_BTS[row, step, :length].detach().numpy(), weights, rtol=1e-12)
            np.testing.assert_allclose(context_BTH[row, step].detach().numpy(), weights @ states, rtol=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_each_head_attends_with_its_part_of_the_units_to_its_part_of_the_states(normalize):
    """The returned weights are the mean over the heads."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    attention = AdditiveAttention(4, 6, 8, normalize=normalize, initial_scale=0.5, num_heads=2).double()
    if normalize:
        attention.scale.data = torch.tensor([0.5, 1.5], dtype=torch.float64)
    memory = memory_of([4, 2, 1], 6, generator)
    query_BTH = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    context_BTH, weights_BTS = attention(query_BTH, attention.keys(memory.states_BSH), memory)
    w_query, w_key = (
        attention.query_projection.weight.detach().numpy(),
        attention.key_projection.weight.detach().numpy(),
    )
    bias, direction = attention.key_projection.bias.detach().numpy(), attention.direction.detach().numpy()
    for row, length in enumerate([4, 2, 1]):
        states = memory.states_BSH[row, :length].numpy()
        for step in range(2):
            contexts, weights = [], []
            for head, scale in enumerate([0.5, 1.5]):
                units = slice(4 * head, 4 * head + 4)
                v = direction[units]
                if normalize:
                    v = scale * v / np.sqrt((v * v).sum())
                query = w_query[units] @ query_BTH[row, step].numpy()
                scores = np.tanh(query + states @ w_key[units].T + bias[units]) @ v
                weights.append(np.exp(scores) / np.exp(scores).sum())
                contexts.append(weights[-1] @ states[:, 3 * head : 3 * head + 3])
            mean = np.mean(weights, axis=0)
            np.testing.assert_allclose(weights_BTS[row, step, :length].detach().numpy(), mean, rtol=1e-12)
            np.testing.assert_allclose(context_BTH[row, step].detach().numpy(), np.concatenate(contexts), rtol=1e-12)


@pytest.mark.parametrize("kind", ["dot", "scaled", "general"])
def test_dot_and_general_attention_equal_their_formulas(kind):
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    query_size = 4 if kind == "general" else 5
    attention = GeneralAttention(4, 5) if kind == "general" else DotAttention(5, 5, scaled=kind == "scaled")
    attention = attention.double()
    memory = memory_of([4, 2, 1], 5, generator)
    query_BTH = torch.randn(3, 2, query_size, generator=generator, dtype=torch.float64)
    context_BTH, weights_BTS = attention(query_BTH, attention.keys(memory.states_BSH), memory)
    for row, length in enumerate([4, 2, 1]):
        states = memory.states_BSH[row, :length].numpy()
        for step in range(2):
            query = query_BTH[row, step].numpy()
            if kind == "general":
                query = query @ attention.key_projection.weight.detach().numpy()
            scores = states @ query / (np.sqrt(5) if kind == "scaled" else 1)
            weights = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(weights_BTS[row, step, :length].detach().numpy(), weights, rtol=1e-12)
            np.testing.assert_allclose(context_BTH[row, step].detach().numpy(), weights @ states, rtol=1e-12)
    assert (weights_BTS[~memory.mask_BS[:, None].expand_as(weights_BTS)] == 0).all()


def test_dot_attention_of_unequal_widths_is_refused():
    message = r"query_size=4 with states of width model\.decoder\.attention\.memory_size=5.*model/attention=general"
    with pytest.raises(InputError, match=message):
        DotAttention(4, 5)


@pytest.mark.parametrize(("memory_size", "hidden_size", "key"), [(8, 6, "hidden_size"), (6, 8, "memory_size")])
def test_heads_that_do_not_divide_the_widths_are_refused(memory_size, hidden_size, key):
    message = rf"attention\.num_heads=4 does not divide model\.decoder\.attention\.{key}=6: .* {key} a multiple of 4"
    with pytest.raises(InputError, match=message):
        AdditiveAttention(4, memory_size, hidden_size, num_heads=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_fp32_sum_to_1_and_are_0_on_padding(dtype):
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(2)
    attention = AdditiveAttention(4, 5, 3).to(dtype)
    memory = memory_of([1, 6, 3], 5, generator, dtype)
    context_BTH, weights_BTS = attention(torch.randn(3, 2, 4).to(dtype), attention.keys(memory.states_BSH), memory)
    assert (weights_BTS.dtype, context_BTH.dtype) == (torch.float32, dtype)
    assert (weights_BTS[~memory.mask_BS[:, None].expand_as(weights_BTS)] == 0).all()
    torch.testing.assert_close(weights_BTS.sum(-1), torch.ones(3, 2))


def test_numbers_in_the_padding_change_nothing():
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    attention = AdditiveAttention(4, 5, 3)
    memory = memory_of([2, 4], 5, generator, torch.float32)
    query_BTH = torch.randn(2, 1, 4)
    before = attention(query_BTH, attention.keys(memory.states_BSH), memory)
    memory.states_BSH[0, 2:] = 1e4
    after = attention(query_BTH, attention.keys(memory.states_BSH), memory)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_the_norm_of_the_score_vector_is_the_scale():
    attention = AdditiveAttention(4, 5, 3, initial_scale=2.5)
    with torch.no_grad():
        attention.direction *= 17
    assert attention.score_vector().norm().item() == pytest.approx(2.5, rel=1e-6)
    assert "scale" not in dict(AdditiveAttention(4, 5, 3, normalize=False).named_parameters())


CHUNKS = [1, 7 * 5, 2 * 3 * 7 * 5, 10**6]  # one step, some rows, the whole batch


@pytest.mark.parametrize("elements", CHUNKS)
def test_the_chunked_scores_equal_the_plain_formula_in_values_and_gradients(monkeypatch, elements):
    """Holding [B, T, S, A] for a whole batch took most of the memory of a training step."""
    monkeypatch.setitem(attention_module.CHUNK_ELEMENTS, "cpu", elements)
    torch.manual_seed(1)
    parts = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3, 5), (4, 7, 5), (5,))]
    query_BTA, keys_BSA, vector_A = parts
    weights_BTS = torch.randn(4, 3, 7, dtype=torch.float64)
    expected_BTS = torch.tanh(query_BTA[:, :, None] + keys_BSA[:, None]) @ vector_A
    found_BTS = chunked_additive_scores(query_BTA, keys_BSA, vector_A)
    torch.testing.assert_close(found_BTS, expected_BTS)
    expected = torch.autograd.grad((expected_BTS * weights_BTS).sum(), parts)
    found = torch.autograd.grad((found_BTS * weights_BTS).sum(), parts)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(chunked_additive_scores, parts)


@pytest.mark.parametrize("elements", CHUNKS)
def test_no_more_than_a_chunk_is_held(monkeypatch, elements):
    monkeypatch.setitem(attention_module.CHUNK_ELEMENTS, "cpu", elements)
    query_BTA, keys_BSA = torch.randn(4, 3, 5, requires_grad=True), torch.randn(4, 7, 5, requires_grad=True)
    vector_A = torch.randn(5, requires_grad=True)
    with LargestResult() as watch:
        chunked_additive_scores(query_BTA, keys_BSA, vector_A).sum().backward()
    assert watch.largest <= max(elements, 4 * 7 * 5)  # a chunk, or the keys themselves


def test_in_bf16_scores_and_softmax_stay_in_fp32():
    torch.manual_seed(1)
    query_BTA, keys_BSA, vector_A = torch.randn(2, 3, 64), torch.randn(2, 7, 64), torch.randn(64)
    exact_BTS = chunked_additive_scores(query_BTA.bfloat16().float(), keys_BSA.bfloat16().float(), vector_A)
    found_BTS = chunked_additive_scores(query_BTA.bfloat16(), keys_BSA.bfloat16(), vector_A)
    assert found_BTS.dtype == torch.float32
    torch.testing.assert_close(found_BTS, exact_BTS)


def test_no_queries_give_no_scores():
    assert chunked_additive_scores(torch.randn(2, 0, 5), torch.randn(2, 7, 5), torch.randn(5)).shape == (2, 0, 7)


class LargestResult(TorchDispatchMode):
    """Record the largest number of elements of any result."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result
