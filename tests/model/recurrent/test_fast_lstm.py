"""`gathered_lstm` equals torch's LSTM in values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gnmt.device import onednn_dtypes
from gnmt.model.recurrent import layers as recurrent_layers
from gnmt.model.recurrent.fast_lstm import gathered_lstm
from gnmt.model.recurrent.layers import LSTM

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
