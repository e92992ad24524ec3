"""`gathered_lstm` equals torch's LSTM, and `layer_norm_lstm` a loop over steps, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gnmt.device import onednn_dtypes
from gnmt.model.recurrent import layers as recurrent_layers
from gnmt.model.recurrent.fast_lstm import gathered_lstm, layer_norm_lstm
from gnmt.model.recurrent.layers import LSTM, LayerNormLSTM

STEPS, BATCH, INPUT, HIDDEN = 6, 4, 5, 7


def layer_and_inputs(dtype: torch.dtype = torch.float32) -> tuple[LSTM, Tensor]:
    torch.manual_seed(5)
    layer = LSTM(INPUT, HIDDEN).to(dtype)
    return layer, torch.randn(STEPS, BATCH, INPUT, dtype=dtype, requires_grad=True)


def gathered(layer: LSTM, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs and cells of every step, computed with the layer's weights."""
    return gathered_lstm(inputs, layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)


def gradients(outputs: Tensor, layer: LSTM, inputs: Tensor) -> list[Tensor]:
    """Return the gradients of inputs and weights for a random gradient of the outputs."""
    direction = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(6)).to(outputs.dtype)
    return list(torch.autograd.grad((outputs * direction).sum(), [inputs, *layer.parameters()]))


@pytest.mark.parametrize("num_steps", [1, 2, STEPS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_equal_torchs(dtype, num_steps):
    layer, inputs = layer_and_inputs(dtype)
    expected = nn.LSTM.forward(layer, inputs[:num_steps])[0]
    found = gathered(layer, inputs[:num_steps])[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    pairs = zip(gradients(found, layer, inputs), gradients(expected, layer, inputs), strict=True)
    for gradient, wanted in pairs:
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)


def test_cells_equal_those_of_single_steps():
    layer, inputs = layer_and_inputs(torch.float64)
    outputs, cells = gathered(layer, inputs)
    state = layer.start(BATCH, inputs)
    for inputs_BI, output_BH, cell_BH in zip(inputs, outputs, cells, strict=True):
        state = layer.step(inputs_BI, state)
        torch.testing.assert_close((output_BH, cell_BH), state)


@pytest.mark.parametrize("of", ["outputs", "cells", "both"])
def test_gradcheck(of):
    """A bridge uses the cells, with or without the outputs."""
    torch.manual_seed(7)
    sizes = [(3, 2, 2), (12, 2), (12, 3), (12,), (12,)]
    tensors = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    chosen = {"outputs": slice(0, 1), "cells": slice(1, 2), "both": slice(0, 2)}[of]
    assert torch.autograd.gradcheck(lambda *tensors: gathered_lstm(*tensors)[chosen], tensors)


def test_extreme_gates_stay_finite():
    layer, inputs = layer_and_inputs()
    outputs, cells = gathered(layer, inputs * 1e4)
    assert outputs.isfinite().all()
    assert cells.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(outputs, layer, inputs))


@pytest.mark.skipif(torch.bfloat16 not in onednn_dtypes(), reason="no bf16 products in oneDNN here")
def test_bf16_under_autocast_is_as_close_to_fp32_as_torchs_lstm():
    layer, inputs = layer_and_inputs()
    exact = nn.LSTM.forward(layer, inputs)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found, cells = gathered(layer, inputs)
        fused = nn.LSTM.forward(layer, inputs)[0]
    assert (found.dtype, cells.dtype, fused.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    wanted = gradients(exact, layer, inputs)
    for ours, torchs, right in zip(
        gradients(found, layer, inputs), gradients(fused, layer, inputs), wanted, strict=True
    ):
        assert ours.dtype == torch.float32
        assert (ours - right).norm() <= 1.5 * (torchs - right).norm() + 1e-3 * right.norm()


def test_types_without_onednn_products_give_the_same_results(monkeypatch):
    layer, inputs = layer_and_inputs()
    expected = gathered(layer, inputs)
    monkeypatch.setattr("gnmt.model.recurrent.fast_lstm.onednn_dtypes", lambda: ())
    monkeypatch.setattr("gnmt.model.layers.onednn_dtypes", lambda: ())
    torch.testing.assert_close(gathered(layer, inputs), expected, rtol=1e-5, atol=1e-5)


def test_a_layer_uses_it_for_wide_layers_in_bf16_training_on_a_cpu(monkeypatch):
    layer, inputs = layer_and_inputs()
    monkeypatch.setattr(recurrent_layers, "onednn_dtypes", lambda: (torch.float32, torch.bfloat16))
    monkeypatch.setattr(recurrent_layers, "GATHERED_FROM_WIDTH", INPUT + HIDDEN)
    assert not layer.gathers_gradients(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.gathers_gradients(inputs)
        assert not layer.gathers_gradients(inputs.to("meta"))
        with torch.no_grad():
            assert not layer.gathers_gradients(inputs)
        monkeypatch.setattr(recurrent_layers, "GATHERED_FROM_WIDTH", INPUT + HIDDEN + 1)
        assert not layer.gathers_gradients(inputs)


def test_a_layer_that_uses_it_gives_the_same_outputs(monkeypatch):
    layer, inputs = layer_and_inputs(torch.float64)
    expected = layer(inputs)
    monkeypatch.setattr(LSTM, "gathers_gradients", lambda *_: True)
    monkeypatch.setattr(nn.LSTM, "forward", None)
    torch.testing.assert_close(layer(inputs), expected)


def test_two_backward_passes_are_bitwise_equal():
    layer, inputs = layer_and_inputs()
    outputs = gathered(layer, inputs)[0]
    first, second = (torch.autograd.grad(outputs.sum(), layer.parameters(), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_only_the_tensors_that_backward_reads_are_kept():
    """The first step's preactivations used to be a view, which kept the product of all steps in memory."""
    layer, inputs = layer_and_inputs()
    storages = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        gathered(layer, inputs)
    elements = STEPS * BATCH * (INPUT + 4 * HIDDEN + 2 * HIDDEN) + sum(weight.numel() for weight in layer.parameters())
    assert sum(storages.values()) == 4 * elements


def normalized_layer_and_tensors(dtype: torch.dtype = torch.float64) -> tuple[LayerNormLSTM, Tensor, list[Tensor]]:
    """Return a layer with random gains and biases, its inputs, and a hidden state and cell to start from."""
    torch.manual_seed(8)
    layer = LayerNormLSTM(INPUT, HIDDEN).to(dtype)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -0.9, 0.9)
    inputs = torch.randn(STEPS, BATCH, INPUT, dtype=dtype, requires_grad=True)
    return layer, inputs, [torch.randn(BATCH, HIDDEN, dtype=dtype, requires_grad=True) for _ in range(2)]


def normalized(layer: LayerNormLSTM, inputs: Tensor, state: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """Return outputs and cells of every step, computed with the layer's weights."""
    weights = layer.from_inputs.weight, layer.from_hidden.weight, layer.gain, layer.bias
    return layer_norm_lstm(inputs, *weights, None if state is None else (state[0], state[1]))


def looped(layer: LayerNormLSTM, inputs: Tensor, state: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """Return outputs and cells of every step, computed by `step`, whose operations autograd records."""
    last = layer.start(BATCH, inputs) if state is None else tuple(state)
    states = []
    for inputs_BI in inputs:
        last = layer.step(inputs_BI, last)
        states.append(last)
    outputs, cells = zip(*states, strict=True)
    return torch.stack(outputs), torch.stack(cells)


@pytest.mark.parametrize("from_state", [False, True])
@pytest.mark.parametrize("num_steps", [1, 2, STEPS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_normalized_layer_equals_its_loop_over_steps_in_values_and_gradients(dtype, num_steps, from_state):
    layer, inputs, state = normalized_layer_and_tensors(dtype)
    first = state if from_state else None
    found, expected = normalized(layer, inputs[:num_steps], first), looped(layer, inputs[:num_steps], first)
    torch.testing.assert_close(found, expected)
    tensors = [inputs, *layer.parameters(), *(state if from_state else [])]
    generator = torch.Generator().manual_seed(9)
    directions = [torch.randn(cells.shape, generator=generator).to(dtype) for cells in expected]
    for chosen in (slice(0, 1), slice(1, 2), slice(0, 2)):  # a decoder without a bridge uses the outputs alone
        gradients = (
            torch.autograd.grad(results[chosen], tensors, directions[chosen], retain_graph=True)
            for results in (found, expected)
        )
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("of", ["outputs", "cells", "both"])
def test_gradcheck_of_a_normalized_layer_from_a_state(of):
    torch.manual_seed(7)
    sizes = [(3, 2, 2), (12, 2), (12, 3), (4, 3), (4, 3), (2, 3), (2, 3)]
    tensors = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    chosen = {"outputs": slice(0, 1), "cells": slice(1, 2), "both": slice(0, 2)}[of]
    assert torch.autograd.gradcheck(lambda *all_: layer_norm_lstm(*all_[:5], (all_[5], all_[6]))[chosen], tensors)


def test_gates_with_gain_0_get_gradients():
    """Division by the gain would make them infinite."""
    layer, inputs, _ = normalized_layer_and_tensors()
    nn.init.zeros_(layer.gain)
    gradients = [torch.autograd.grad(run(layer, inputs, None)[0].sum(), layer.gain)[0] for run in (normalized, looped)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().min() > 0


def test_extreme_normalized_gates_stay_finite():
    layer, inputs, state = normalized_layer_and_tensors(torch.float32)
    with torch.no_grad():
        layer.gain.mul_(1e4)
    outputs, cells = normalized(layer, inputs, state)
    gradients = torch.autograd.grad(outputs.sum() + cells.sum(), [inputs, *layer.parameters(), *state])
    assert all(tensor.isfinite().all() for tensor in (outputs, cells, *gradients))


def test_bf16_under_autocast_is_as_close_to_fp32_as_the_loop():
    layer, inputs, _ = normalized_layer_and_tensors(torch.float32)
    direction = torch.randn(STEPS, BATCH, HIDDEN)
    tensors = [inputs, *layer.parameters()]
    exact = looped(layer, inputs, None)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found, cells = normalized(layer, inputs, None)
        recorded = looped(layer, inputs.bfloat16(), None)[0]
    assert (found.dtype, cells.dtype, recorded.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert (found - exact).norm() <= 1.5 * (recorded - exact).norm()
    ours, loops, right = (
        torch.autograd.grad(outputs, tensors, direction.to(outputs.dtype)) for outputs in (found, recorded, exact)
    )
    for gradient, of_loop, wanted in zip(ours, loops, right, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - wanted).norm() <= 1.5 * (of_loop - wanted).norm() + 1e-3 * wanted.norm()


def test_a_normalized_layer_trains_with_it_and_keeps_its_loop_for_inference(monkeypatch):
    """An inference copy replaces the Linear modules, whose weights `layer_norm_lstm` reads."""
    layer, inputs, state = normalized_layer_and_tensors()
    lengths = torch.tensor([3, STEPS, 1, 4])
    with torch.no_grad():
        expected = layer(inputs, tuple(state)), layer.forward_with_final_state(inputs, lengths)
    monkeypatch.setattr(LayerNormLSTM, "next_state", None)
    torch.testing.assert_close((layer(inputs, tuple(state)), layer.forward_with_final_state(inputs, lengths)), expected)
    with torch.no_grad(), pytest.raises(TypeError):
        layer(inputs)


def test_two_backward_passes_of_a_normalized_layer_are_bitwise_equal():
    layer, inputs, state = normalized_layer_and_tensors(torch.float32)
    outputs, _ = normalized(layer, inputs, state)
    tensors = [inputs, *layer.parameters(), *state]
    first, second = (torch.autograd.grad(outputs.sum(), tensors, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_a_normalized_layer_keeps_one_value_per_gate_and_no_product_of_all_steps():
    layer, inputs, _ = normalized_layer_and_tensors(torch.float32)
    storages = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        normalized(layer, inputs, None)
    elements = STEPS * BATCH * (INPUT + 4 * HIDDEN + 4 + 2 * HIDDEN)
    assert sum(storages.values()) == 4 * (elements + sum(weight.numel() for weight in layer.parameters()))
