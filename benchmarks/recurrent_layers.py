"""Time forward and backward of a recurrent layer over 25 steps: LSTM, layer-normalized LSTM, and the products alone.

python -m benchmarks.recurrent_layers BATCH,UNITS [BATCH,UNITS ...]

All run in one process in turns, with as many threads as OMP_NUM_THREADS says. The time is the processor time of the
main thread, so that other programs on the machine disturb less; each figure is the fastest of 60 repetitions.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from gnmt.model.recurrent.layers import LSTM, LayerNormLSTM, LayerState, RecurrentLayer, StepwiseLayer

STEPS = 25
REPETITIONS = 60


class RecordedLayerNormLSTM(LayerNormLSTM):
    """The layer as a loop over steps whose operations autograd records."""

    def forward(self, inputs_TBI: Tensor, state: LayerState | None = None) -> Tensor:
        return StepwiseLayer.forward(self, inputs_TBI, state)


def main(sizes: list[tuple[int, int]]) -> None:
    print("| batch | units | products | LSTM | LayerNormLSTM | recorded loop | loop / LayerNormLSTM | of medians |")
    print("|---|---|---|---|---|---|---|---|")
    for batch, units in sizes:
        runners = [
            products(batch, units),
            *(training_step(cls(units, units), batch, units) for cls in (LSTM, LayerNormLSTM, RecordedLayerNormLSTM)),
        ]
        milliseconds: list[list[float]] = [[] for _ in runners]
        for _ in range(REPETITIONS):
            for runner, times in zip(runners, milliseconds, strict=True):
                start = time.thread_time()
                runner()
                times.append(1000 * (time.thread_time() - start))
        figures = " | ".join(f"{min(times):.1f}" for times in milliseconds)
        ratios = (statistic(milliseconds[3]) / statistic(milliseconds[2]) for statistic in (min, median))
        print(f"| {batch} | {units} | {figures} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |", flush=True)


def training_step(layer: RecurrentLayer, batch: int, units: int) -> Callable[[], object]:
    """Return a function that runs forward and backward of a layer."""
    inputs = torch.randn(STEPS, batch, units, requires_grad=True)
    direction = torch.randn(STEPS, batch, units)
    return lambda: torch.autograd.grad(layer(inputs), [inputs, *layer.parameters()], direction)


def products(batch: int, units: int) -> Callable[[], object]:
    """Return a function that multiplies the matrices of both passes: of each step, then of all steps at once."""
    weight = torch.randn(4 * units, units)
    inputs, gradients = torch.randn(STEPS * batch, units), torch.randn(STEPS * batch, 4 * units)

    def multiply() -> None:
        for state in inputs.split(batch):
            torch.mm(state, weight.T)
        for gradient in gradients.split(batch):
            torch.mm(gradient, weight)
        torch.mm(inputs, weight.T)
        torch.mm(gradients, weight)
        for _ in range(2):
            torch.mm(gradients.T, inputs)

    return multiply


if __name__ == "__main__":
    main([(int(batch), int(units)) for batch, units in (argument.split(",") for argument in sys.argv[1:])])
