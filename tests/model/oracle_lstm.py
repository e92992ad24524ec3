"""A bidirectional LSTM written out in NumPy, forward and backward, step by step.

It is slow and obvious and shares no code with gnmt. The rows of weights are those of input, forget, cell and output
gate, in torch's order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Weights(NamedTuple):
    """Weights of one direction, [4H, I], [4H, H] and two biases [4H], or their gradients."""

    from_inputs: Array
    from_hidden: Array
    input_bias: Array
    hidden_bias: Array


class Step(NamedTuple):
    """Values of one time step that the backward pass needs, inputs [N, I] and others [N, H]."""

    inputs: Array
    hidden_before: Array
    cell_before: Array
    i: Array
    f: Array
    g: Array
    o: Array
    cell: Array


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


class TimeLSTM:
    """An LSTM in one direction."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.steps: list[Step] = []

    def forward(self, xs: Array) -> Array:
        """Return hs [T, N, H] of xs [T, N, I], from a zero state."""
        width = self.weights.from_hidden.shape[1]
        hidden, cell = np.zeros((xs.shape[1], width)), np.zeros((xs.shape[1], width))
        self.steps, hs = [], []
        for x in xs:
            gates = x @ self.weights.from_inputs.T + self.weights.input_bias
            gates = gates + hidden @ self.weights.from_hidden.T + self.weights.hidden_bias
            before = hidden, cell
            i, f, o = (sigmoid(gates[:, k * width : (k + 1) * width]) for k in (0, 1, 3))
            g = np.tanh(gates[:, 2 * width : 3 * width])
            cell = f * cell + i * g
            hidden = o * np.tanh(cell)
            self.steps.append(Step(x, *before, i, f, g, o, cell))
            hs.append(hidden)
        return np.stack(hs)

    def backward(self, dhs: Array) -> tuple[Array, Weights]:
        """Return the gradients of xs and of the weights from those of hs, dhs [T, N, H]."""
        gradients = Weights(*(np.zeros_like(weight) for weight in self.weights))
        dxs = np.zeros((len(self.steps), *self.steps[0].inputs.shape))
        dhidden, dcell = np.zeros_like(dhs[0]), np.zeros_like(dhs[0])
        for time in reversed(range(len(self.steps))):
            step = self.steps[time]
            dh = dhs[time] + dhidden
            squashed = np.tanh(step.cell)
            dc = dcell + dh * step.o * (1 - squashed**2)
            dgates = np.concatenate(
                (
                    dc * step.g * step.i * (1 - step.i),
                    dc * step.cell_before * step.f * (1 - step.f),
                    dc * step.i * (1 - step.g**2),
                    dh * squashed * step.o * (1 - step.o),
                ),
                axis=1,
            )
            dxs[time] = dgates @ self.weights.from_inputs
            dhidden = dgates @ self.weights.from_hidden
            dcell = dc * step.f
            gradients.from_inputs[...] += dgates.T @ step.inputs
            gradients.from_hidden[...] += dgates.T @ step.hidden_before
            gradients.input_bias[...] += dgates.sum(0)
            gradients.hidden_bias[...] += dgates.sum(0)
        return dxs, gradients


class TimeBiLSTM:
    """Two LSTMs, the second on the sequence reversed in time, with concatenated outputs."""

    def __init__(self, ahead: Weights, back: Weights) -> None:
        self.ahead, self.back = TimeLSTM(ahead), TimeLSTM(back)

    def forward(self, xs: Array) -> Array:
        """Return hs [T, N, 2H] of xs [T, N, I]."""
        return np.concatenate((self.ahead.forward(xs), self.back.forward(xs[::-1])[::-1]), axis=2)

    def backward(self, dhs: Array) -> tuple[Array, Weights, Weights]:
        """Return the gradients of xs and of both directions' weights from those of hs, dhs [T, N, 2H]."""
        dahead, dback = np.split(dhs, 2, axis=2)
        dxs_ahead, ahead = self.ahead.backward(dahead)
        dxs_back, back = self.back.backward(dback[::-1])
        return dxs_ahead + dxs_back[::-1], ahead, back
