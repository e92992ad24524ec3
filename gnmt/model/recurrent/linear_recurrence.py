"""Recurrent layers that train in parallel over time, because their gates do not read the previous output.

Each unit of such a layer has a state h_t = a_t h_{t-1} + b_t, whose decay a_t and input b_t are functions of the
layer's inputs alone. One product computes them for all time steps, and `linear_scan` computes the states. `MinLSTM` and
`RGLRU` differ in a and b. In an LSTM or GRU, by contrast, each step waits for a matrix product with the step before.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gnmt.model.recurrent.layers import LayerState, RecurrentLayer, at_last_tokens


def linear_scan(decays_TBH: Tensor, inputs_TBH: Tensor, first_BH: Tensor | None = None) -> Tensor:
    """Return the states h_t = a_t h_{t-1} + b_t of all steps, [T, B, H].

    Args:
        decays_TBH: Decays a, from 0 to 1, fp32 or fp64.
        inputs_TBH: Inputs b of either sign, in the same type.
        first_BH: State before the first step; None for zeros.
    """
    with torch.autocast(inputs_TBH.device.type, enabled=False):
        states_TBH: Tensor = _LinearScan.apply(decays_TBH, inputs_TBH, first_BH)  # type: ignore[no-untyped-call]
    return states_TBH


class _LinearScan(torch.autograd.Function):
    """Autograd function of `linear_scan`.

    The gradient g_t of a state is its own plus a_{t+1} g_{t+1}, which is the same recurrence from the last step to the
    first.
    """

    @staticmethod
    def forward(ctx: Any, decays_TBH: Tensor, inputs_TBH: Tensor, first_BH: Tensor | None) -> Tensor:
        states_TBH = inputs_TBH.clone(memory_format=torch.contiguous_format)
        if first_BH is not None:
            states_TBH[0].addcmul_(decays_TBH[0], first_BH)
        states_TBH = _scan(decays_TBH[1:], states_TBH, reverse=False)
        ctx.save_for_backward(decays_TBH, states_TBH, first_BH)
        return states_TBH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        decays_TBH, states_TBH, first_BH = ctx.saved_tensors
        grad_TBH = _scan(decays_TBH[1:], grads[0].clone(memory_format=torch.contiguous_format), reverse=True)
        grad_decays_TBH = torch.empty_like(grad_TBH)
        torch.mul(grad_TBH[1:], states_TBH[:-1], out=grad_decays_TBH[1:])
        if first_BH is None:
            grad_decays_TBH[0] = 0
            return grad_decays_TBH, grad_TBH, None
        torch.mul(grad_TBH[0], first_BH, out=grad_decays_TBH[0])
        return grad_decays_TBH, grad_TBH, grad_TBH[0] * decays_TBH[0]


def _scan(factors_TBH: Tensor, values_TBH: Tensor, reverse: bool) -> Tensor:
    """Add to each step's value the result of the step before times a factor, and return the results, [T, B, H].

    Args:
        factors_TBH: Factors between neighboring steps, [T - 1, B, H].
        values_TBH: Values of all steps, which may be overwritten.
        reverse: Whether the order is from the last step to the first.
    """
    # On a CPU, an operation on the [B, H] of one step takes longer than its call, so steps in turn cost least: over 25
    # to 320 steps, 15 to 40 times less than doubling. On a GPU the calls would take longer than the arithmetic.
    scan = _scan_by_steps if values_TBH.device.type == "cpu" else _scan_by_doubling
    return scan(factors_TBH, values_TBH, reverse)


def _scan_by_steps(factors_TBH: Tensor, values_TBH: Tensor, reverse: bool) -> Tensor:
    """Compute `_scan` in place, with one operation for each step."""
    factors, values = factors_TBH.unbind(0), values_TBH.unbind(0)
    if reverse:
        factors, values = factors[::-1], values[::-1]
    for factor_BH, before_BH, after_BH in zip(factors, values, values[1:], strict=False):
        after_BH.addcmul_(factor_BH, before_BH)
    return values_TBH


def _scan_by_doubling(factors_TBH: Tensor, values_TBH: Tensor, reverse: bool) -> Tensor:
    """Compute `_scan` with log2(T) rounds of operations on all steps (Hillis and Steele 1986).

    Before a round with distance d, the result of a step covers the d steps up to it, and its factor is the product of
    their factors. The round adds the result of d steps before, so it then covers 2d steps. Nothing is divided and
    nothing grows, so the rounding errors are those of the step by step form. The form with logarithms, cumsum and
    logcumsumexp, subtracts sums over all steps, and its error grows with the length.
    """
    distance = 1
    while distance < len(values_TBH):
        ahead, behind = slice(distance, None), slice(None, -distance)
        after, before = (behind, ahead) if reverse else (ahead, behind)
        summed_TBH = values_TBH.clone()
        summed_TBH[after].addcmul_(factors_TBH, values_TBH[before])
        values_TBH = summed_TBH
        factors_TBH = factors_TBH[ahead] * factors_TBH[behind]
        distance *= 2
    return values_TBH


FIRST_FORGET_BIAS = -1.0
"""Initial bias of minLSTM's forget gate.

With it, a model of two layers learns the demo grammar sooner than with 0 or -2 (docs/results/comparison.md).
"""


class MinLSTM(RecurrentLayer):
    """A minLSTM layer (Feng et al. 2024, arXiv 2410.01201, section 3.2 and listings 6 and 10).

    With gates f and i and a candidate v, which are functions of the layer's input alone, the output is
    h_t = f / (f + i) h_{t-1} + i / (f + i) g(v), where g(v) = v + 0.5 for v >= 0 and sigmoid(v) below, so outputs from
    a zero state are positive. The quotients are computed from log f and log i, so they are exact where both gates are
    nearly closed. The sum over time, which listing 10 computes from logarithms too, is a `linear_scan`. There are no
    recurrent weights.

    The state is (hidden, cell), two copies of h: the output in the type of the products, and fp32 or fp64.

    Args:
        input_size: Width of the inputs.
        hidden_size: Width of the outputs.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.projection = nn.Linear(input_size, 3 * hidden_size)

    def initialize(self) -> None:
        """Draw the matrix with variance 1 / fan-in, whatever `Seq2Seq.init_range` is.

        The biases are FIRST_FORGET_BIAS for the forget gate and zero for the others.
        """
        nn.init.kaiming_uniform_(self.projection.weight, nonlinearity="linear")
        with torch.no_grad():
            self.projection.bias.zero_()
            self.projection.bias[: self.hidden_size] = FIRST_FORGET_BIAS

    def forward(self, inputs_TBI: Tensor, state: LayerState | None = None) -> Tensor:
        return self._outputs_and_cells(inputs_TBI, state)[0]

    def forward_with_final_state(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, LayerState]:
        outputs_TBH, cells_TBH = self._outputs_and_cells(inputs_TBI, None)
        return outputs_TBH, (at_last_tokens(outputs_TBH, lengths_B), at_last_tokens(cells_TBH, lengths_B))

    def start(self, num_sequences: int, like: Tensor) -> LayerState:
        hidden_NH = like.new_zeros(num_sequences, self.hidden_size)
        return hidden_NH, _precise(hidden_NH)

    def step(self, inputs_NI: Tensor, state: LayerState) -> LayerState:
        hidden_NH, cell_NH = state
        decays_NH, added_NH = self._decays_and_inputs(self.projection(inputs_NI))
        cell_NH = torch.addcmul(added_NH, decays_NH, cell_NH)
        return cell_NH.to(hidden_NH.dtype), cell_NH

    def _outputs_and_cells(self, inputs_TBI: Tensor, state: LayerState | None) -> tuple[Tensor, Tensor]:
        """Return the outputs [T, B, H] in the type of the products, and the same in fp32 or fp64."""
        projected_TBG = self.projection(inputs_TBI)
        cells_TBH = linear_scan(*self._decays_and_inputs(projected_TBG), None if state is None else state[1])
        return cells_TBH.to(projected_TBG.dtype), cells_TBH

    def _decays_and_inputs(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b of the recurrence, [..., H] each, from the products [..., 3H]."""
        forget, add, candidate = _precise(projected).chunk(3, dim=-1)
        log_ratio = F.logsigmoid(add) - F.logsigmoid(forget)  # log(i / f)
        positive = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
        return (-log_ratio).sigmoid(), log_ratio.sigmoid() * positive


CONVOLUTION_WIDTH = 4
"""Time steps that the convolution of RGLRU reads; the current one is the last (De et al. 2024, section 2.3)."""

DECAY_SCALE = 8.0
"""Constant c of the RG-LRU (De et al. 2024, eq. 3)."""

FIRST_DECAYS = 0.3, 0.999
"""Range of the initial a^c of RGLRU."""

RMS_NORM_EPSILON = 1e-6
"""Constant that the RMSNorm of RGLRU adds to the mean square."""

_SMALLEST_VARIANCE = 1e-12
"""Smallest 1 - a^2 that RGLRU takes the root of, whose derivative is infinite at 0."""


class RGLRU(RecurrentLayer):
    """The recurrent block of Griffin, around a real-gated linear recurrent unit (De et al. 2024, arXiv 2402.19427).

    The block (section 2.3) multiplies its input, after an RMSNorm (section 2.1), by two matrices. One result passes
    through a causal convolution over four steps of each unit and then through the RG-LRU (section 2.4, eq. 1 to 4),
    whose recurrence and input gates r and i read the convolution's output u:

        log a_t = c r_t log sigmoid(Lambda),    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t u_t).

    The output is W (h * GeLU(other result)) + b. Unlike in Griffin, the gates' matrices are not block diagonal, and
    there is a residual connection only where the encoder or decoder has one. Lambda starts so that a^c is uniform in
    [0.3, 0.999] instead of [0.9, 0.999], because sentences are short. In a copy task with at most four tokens, 2+2
    layers reached a loss of 0.01 after 213 updates, with the paper's range after 210. Without the RMSNorm the loss was
    0.30 after 300.

    The state is (hidden, cell, window): the output; h in fp32 or fp64; and the convolution's last three inputs
    [N, 3H], those of one unit side by side, zeros before the first step.

    Args:
        input_size: Width of the inputs.
        hidden_size: Width of the outputs and of the recurrence.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.gain = nn.Parameter(torch.ones(input_size))
        self.branches = nn.Linear(input_size, 2 * hidden_size)
        bound = CONVOLUTION_WIDTH**-0.5
        self.convolution = nn.Parameter(torch.empty(hidden_size, CONVOLUTION_WIDTH).uniform_(-bound, bound))
        self.convolution_bias = nn.Parameter(torch.zeros(hidden_size))
        self.gates = nn.Linear(hidden_size, 2 * hidden_size)
        decays = torch.empty(hidden_size).uniform_(*FIRST_DECAYS) ** (1 / DECAY_SCALE)
        self.decay = nn.Parameter(decays.logit())  # Lambda
        self.output = nn.Linear(hidden_size, hidden_size)

    def initialize(self) -> None:
        """Draw each matrix with variance 1 / fan-in and set its bias to zero, whatever `Seq2Seq.init_range` is."""
        for linear in (self.branches, self.gates, self.output):
            nn.init.kaiming_uniform_(linear.weight, nonlinearity="linear")
            nn.init.zeros_(linear.bias)

    def forward(self, inputs_TBI: Tensor, state: LayerState | None = None) -> Tensor:
        return self._run(inputs_TBI, state)[0]

    def forward_with_final_state(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, LayerState]:
        outputs_TBH, cells_TBH, extended_TBH = self._run(inputs_TBI, None)
        # Step t of the sequence is step t + 3 here.
        last = [at_last_tokens(extended_TBH, lengths_B + number) for number in range(1, CONVOLUTION_WIDTH)]
        window_BW = torch.stack(last, dim=-1).flatten(1)
        return outputs_TBH, (at_last_tokens(outputs_TBH, lengths_B), at_last_tokens(cells_TBH, lengths_B), window_BW)

    def start(self, num_sequences: int, like: Tensor) -> LayerState:
        hidden_NH = like.new_zeros(num_sequences, self.hidden_size)
        window_NW = like.new_zeros(num_sequences, self.hidden_size * (CONVOLUTION_WIDTH - 1))
        return hidden_NH, _precise(hidden_NH), window_NW

    def step(self, inputs_NI: Tensor, state: LayerState) -> LayerState:
        hidden_NH, cell_NH, window_NW = state
        branch_NH, gate_NH = self._branch_and_gate(inputs_NI)
        before_NHW = window_NW.reshape(-1, self.hidden_size, CONVOLUTION_WIDTH - 1)
        window_NHW = torch.cat((before_NHW, branch_NH[..., None]), dim=-1)
        convolved_NH = (_precise(window_NHW) * self.convolution).sum(-1) + self.convolution_bias
        decays_NH, added_NH = self._decays_and_inputs(convolved_NH, branch_NH.dtype)
        cell_NH = torch.addcmul(added_NH, decays_NH, cell_NH)
        output_NH = self._gated(cell_NH, gate_NH)
        return output_NH.to(hidden_NH.dtype), cell_NH, window_NHW[..., 1:].flatten(1).to(window_NW.dtype)

    def _run(self, inputs_TBI: Tensor, state: LayerState | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs and cells, [T, B, H] each, and the convolution's inputs [T + 3, B, H] with those before."""
        num_steps, batch, _ = inputs_TBI.shape
        branch_TBH, gate_TBH = self._branch_and_gate(inputs_TBI)
        window_BW = self.start(batch, branch_TBH)[2] if state is None else state[2].to(branch_TBH.dtype)
        window_WBH = window_BW.reshape(batch, self.hidden_size, -1).movedim(2, 0)
        extended_TBH = torch.cat((window_WBH, branch_TBH))
        convolved_TBH: Tensor = self.convolution_bias
        for index, weight_H in enumerate(self.convolution.unbind(1)):
            convolved_TBH = convolved_TBH + _precise(extended_TBH[index : index + num_steps]) * weight_H
        decays_and_inputs = self._decays_and_inputs(convolved_TBH, branch_TBH.dtype)
        cells_TBH = linear_scan(*decays_and_inputs, None if state is None else state[1])
        return self._gated(cells_TBH, gate_TBH), cells_TBH, extended_TBH

    def _branch_and_gate(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs of convolution and GeLU, [..., H] each, in the type of the products."""
        normalized = F.rms_norm(_precise(inputs), self.gain.shape, _precise(self.gain), RMS_NORM_EPSILON)
        branch, gate = self.branches(normalized.to(inputs.dtype)).chunk(2, dim=-1)
        return branch, gate

    def _decays_and_inputs(self, convolved: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return a and b of the recurrence, [..., H] each, from the convolution's output.

        Args:
            convolved: Output of the convolution, [..., H], fp32 or fp64.
            dtype: Type of the gates' product.
        """
        recurrence, add = _precise(self.gates(convolved.to(dtype))).sigmoid().chunk(2, dim=-1)
        log_decays = DECAY_SCALE * recurrence * F.logsigmoid(_precise(self.decay))
        variances = (-torch.expm1(2 * log_decays)).clamp_min(_SMALLEST_VARIANCE)  # 1 - a^2
        return log_decays.exp(), variances.sqrt() * add * convolved

    def _gated(self, cells: Tensor, gate: Tensor) -> Tensor:
        """Return the block's output [..., H] in the type of the products, which is that of the gate."""
        outputs: Tensor = self.output((cells * F.gelu(_precise(gate))).to(gate.dtype))
        return outputs


def _precise(tensor: Tensor) -> Tensor:
    """Return the tensor in fp32, or in fp64 if it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
