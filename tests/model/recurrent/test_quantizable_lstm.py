"""The quantizable LSTM equals Wu et al. 2016, eq. 10 and 11, number by number, and its gradients those of autograd."""

from __future__ import annotations

import pytest
import torch

from gnmt.model.recurrent.fast_lstm import clipped_lstm
from gnmt.model.recurrent.quantizable_lstm import QuantizableLSTM

STEPS, BATCH, INPUT, HIDDEN = 6, 3, 4, 5


def layer_with_bound(delta: float) -> QuantizableLSTM:
    """Return a layer whose cells grow beyond 1."""
    torch.manual_seed(1)
    layer = QuantizableLSTM(INPUT, HIDDEN).double()
    for weight in layer.parameters():
        torch.nn.init.uniform_(weight, -1.5, 1.5)
    layer.clip.delta.fill_(delta)
    return layer


def inputs_and_state() -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(2)
    inputs_TBI = torch.randn(STEPS, BATCH, INPUT, dtype=torch.float64, requires_grad=True)
    hidden_BH, cell_BH = torch.randn(2, BATCH, HIDDEN, dtype=torch.float64).unbind(0)
    return inputs_TBI, (hidden_BH.requires_grad_(), cell_BH.requires_grad_())


def oracle(layer: QuantizableLSTM, inputs_TBI: torch.Tensor, state: tuple[torch.Tensor, ...], delta: float):
    """Return outputs and cells [T, B, H] by the equations, with the paper's names W1 to W8, m and c."""
    w1, w5, w3, w7 = layer.from_inputs.weight.split(HIDDEN)
    w2, w6, w4, w8 = layer.from_hidden.weight.split(HIDDEN)
    (m, c), outputs, cells = state, [], []
    for x in inputs_TBI:
        i = torch.sigmoid(x @ w1.T + m @ w2.T)
        i_prime = torch.tanh(x @ w3.T + m @ w4.T)
        f = torch.sigmoid(x @ w5.T + m @ w6.T)
        o = torch.sigmoid(x @ w7.T + m @ w8.T)
        c_prime = c * f + i_prime * i
        c = torch.where(c_prime > delta, delta, torch.where(c_prime < -delta, -delta, c_prime))
        m = c * o
        outputs.append(m)
        cells.append(c)
    return torch.stack(outputs), torch.stack(cells)


@pytest.mark.parametrize("delta", [0.4, 8.0])
@pytest.mark.parametrize("has_state", [False, True])
def test_outputs_cells_and_gradients_equal_the_equations(delta, has_state):
    layer, (inputs_TBI, state) = layer_with_bound(delta), inputs_and_state()
    zeros = tuple(torch.zeros_like(tensor) for tensor in state)
    weights = layer.from_inputs.weight, layer.from_hidden.weight
    found = clipped_lstm(inputs_TBI, *weights, layer.clip.delta, state if has_state else None)
    expected = oracle(layer, inputs_TBI, state if has_state else zeros, delta)
    torch.testing.assert_close(found, expected)
    share_clipped = float((found[1].abs() == delta).double().mean())
    assert 0.1 < share_clipped < 0.9 if delta < 1 else share_clipped == 0
    torch.testing.assert_close(layer(inputs_TBI, state if has_state else None), found[0])
    directions = [torch.randn_like(found[0]), torch.randn_like(found[1])]
    parts = [inputs_TBI, *weights, *(state if has_state else ())]
    gradients = [
        torch.autograd.grad(sum((one * way).sum() for one, way in zip(pair, directions, strict=True)), parts)
        for pair in (found, expected)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("delta", [0.4, 8.0])
def test_gradcheck(delta):
    layer, (inputs_TBI, state) = layer_with_bound(delta), inputs_and_state()
    weights = layer.from_inputs.weight, layer.from_hidden.weight

    def run(inputs, from_inputs, from_hidden, hidden, cell):
        return clipped_lstm(inputs, from_inputs, from_hidden, layer.clip.delta, (hidden, cell))

    assert torch.autograd.gradcheck(run, (inputs_TBI, *weights, *state))


def test_backward_uses_the_bound_of_its_forward_pass():
    """The trainer changes the bound between updates."""
    gradients = []
    for later in (0.4, 8.0):
        layer, (inputs_TBI, _) = layer_with_bound(0.4), inputs_and_state()
        loss = layer(inputs_TBI).sum()
        layer.clip.delta.fill_(later)
        gradients.append(torch.autograd.grad(loss, [inputs_TBI, *layer.parameters()]))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_inference_equals_training_and_outputs_and_residual_sums_keep_the_bound():
    layer, (inputs_TBI, _) = layer_with_bound(0.4), inputs_and_state()
    trained_TBH = layer(inputs_TBI)
    with torch.no_grad():
        torch.testing.assert_close(layer(inputs_TBI), trained_TBH)
    assert 0.2 < trained_TBH.abs().max() <= 0.4
    assert layer.bounded(trained_TBH + 1).max() == 0.4


def test_a_step_does_not_depend_on_bf16_cells():
    """Cells stay in fp32 under autocast."""
    layer, (inputs_TBI, _) = layer_with_bound(1.0).float(), inputs_and_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = layer.start(BATCH, inputs_TBI.bfloat16())
        for inputs_BI in inputs_TBI.bfloat16():
            state = layer.step(inputs_BI, state)
    assert [tensor.dtype for tensor in state] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(state[0].float(), layer(inputs_TBI.float())[-1], atol=0.05, rtol=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    """Training with its gradients, and the loop over steps of inference."""
    found = []
    for device in ("cpu", "cuda"):
        layer, (inputs_TBI, state) = layer_with_bound(0.4).to(device), inputs_and_state()
        inputs_TBI, state = inputs_TBI.to(device), tuple(tensor.detach().to(device) for tensor in state)
        outputs_TBH = layer.train()(inputs_TBI, state)
        gradients = torch.autograd.grad(outputs_TBH.square().sum(), list(layer.parameters()))
        with torch.no_grad():
            inferred_TBH = layer.eval()(inputs_TBI, state)
        found.append([tensor.detach().cpu() for tensor in (outputs_TBH, inferred_TBH, *gradients)])
    torch.testing.assert_close(found[1], found[0])
