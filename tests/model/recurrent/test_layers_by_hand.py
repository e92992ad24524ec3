"""The bidirectional layer equals one written out in NumPy, in outputs and all gradients."""

from __future__ import annotations

import numpy as np
import torch
from oracle_lstm import TimeBiLSTM, Weights

from gnmt.model.recurrent.layers import Bidirectional, RecurrentLayer

NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
LENGTHS = [3, 6, 1, 4]


def layer_and_oracle() -> tuple[Bidirectional, TimeBiLSTM]:
    torch.manual_seed(1)
    layer = Bidirectional(5, 7).double()
    weights = [Weights(*(getattr(one, name).detach().numpy() for name in NAMES)) for one in (layer.ahead, layer.back)]
    return layer, TimeBiLSTM(*weights)


def assert_gradients_equal(found: RecurrentLayer, expected: Weights) -> None:
    for name, gradient in zip(NAMES, expected, strict=True):
        assert np.abs(gradient).max() > 1e-3
        np.testing.assert_allclose(found.get_parameter(name).grad.numpy(), gradient, rtol=1e-10, atol=1e-13)


def test_outputs_input_gradients_and_weight_gradients_are_equal():
    layer, oracle = layer_and_oracle()
    xs = torch.randn(6, 4, 5, dtype=torch.float64, requires_grad=True)
    dhs = torch.randn(6, 4, 14, dtype=torch.float64)
    outputs = layer(xs, torch.full((4,), 6))
    np.testing.assert_allclose(outputs.detach().numpy(), oracle.forward(xs.detach().numpy()), rtol=1e-10)
    outputs.backward(dhs)
    dxs, ahead, back = oracle.backward(dhs.numpy())
    np.testing.assert_allclose(xs.grad.numpy(), dxs, rtol=1e-10, atol=1e-13)
    assert_gradients_equal(layer.ahead, ahead)
    assert_gradients_equal(layer.back, back)


def test_a_padded_batch_equals_its_sentences_one_by_one():
    """The weights' gradients are the sums over sentences, and the padding has none."""
    layer, oracle = layer_and_oracle()
    xs = torch.randn(6, 4, 5, dtype=torch.float64)
    dhs = torch.randn(6, 4, 14, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        xs[length:, row] = 1e3
        dhs[length:, row] = 0
    xs.requires_grad_()
    outputs = layer(xs, torch.tensor(LENGTHS))
    outputs.backward(dhs)
    sums = [[np.zeros(layer.ahead.get_parameter(name).shape) for name in NAMES] for _ in range(2)]
    for row, length in enumerate(LENGTHS):
        alone = xs.detach()[:length, row : row + 1].numpy()
        expected = oracle.forward(alone)
        np.testing.assert_allclose(outputs.detach()[:length, row : row + 1].numpy(), expected, rtol=1e-10)
        dxs, *gradients = oracle.backward(dhs[:length, row : row + 1].numpy())
        np.testing.assert_allclose(xs.grad[:length, row : row + 1].numpy(), dxs, rtol=1e-10, atol=1e-13)
        assert (xs.grad[length:, row] == 0).all()
        for summed, of_direction in zip(sums, gradients, strict=True):
            for total, gradient in zip(summed, of_direction, strict=True):
                total += gradient
    assert_gradients_equal(layer.ahead, Weights(*sums[0]))
    assert_gradients_equal(layer.back, Weights(*sums[1]))


def test_the_oracles_gradients_equal_finite_differences():
    """Some inputs and some weights are checked."""
    _, oracle = layer_and_oracle()
    generator = np.random.default_rng(2)
    xs, dhs = generator.normal(size=(4, 2, 5)), generator.normal(size=(4, 2, 14))
    oracle.forward(xs)
    dxs, ahead, back = oracle.backward(dhs)

    def slope(array: np.ndarray, index: tuple[int, ...]) -> float:
        values = []
        value = array[index]
        for shift in (1e-6, -1e-6):
            array[index] = value + shift
            values.append((oracle.forward(xs) * dhs).sum())
        array[index] = value
        return (values[0] - values[1]) / 2e-6

    for array, gradient in ((xs, dxs), (oracle.ahead.weights[0], ahead[0]), (oracle.back.weights[1], back[1])):
        for row_and_column in ((0, 0), (2, 1)):
            index = (*row_and_column, 3) if array.ndim == 3 else row_and_column
            np.testing.assert_allclose(gradient[index], slope(array, index), rtol=1e-6, atol=1e-8)
