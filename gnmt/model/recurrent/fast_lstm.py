"""LSTM layers whose backward pass computes each weight's gradient in one product over all time steps.

The backward pass of a fused LSTM kernel adds to the weights' gradients at every time step, by products with as few rows
as there are sentences in the batch. Here the backward loop over time computes only what depends on the next step: the
gradients of the gates. They are stored for all steps, [T, B, 4H]. After the loop, one product over all T * B rows gives
the gradient of each weight, and another one the gradient of the inputs. Likewise, the forward pass multiplies the
inputs of all steps in one product, and only the product with the hidden state is in the loop.

`gathered_lstm` is the usual LSTM; `LSTM` in gnmt/model/recurrent/layers.py decides when it is faster than the fused
kernel. For the others there is no fused kernel: `clipped_lstm` is GNMT's quantizable LSTM, `layer_norm_lstm` the LSTM
with layer normalization.

G = 4H stands for the gates' units: input, forget, cell candidate and output gate, in torch's order. All tanh are
computed as 2 sigmoid(2x) - 1, because torch's sigmoid takes a sixth of the time of its tanh on a CPU. Therefore the
rows of the cell candidate are doubled, in weights, biases and preactivations or in the gain and bias of the
normalization, and one sigmoid serves all four gates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnmt.device import onednn_dtypes
from gnmt.model.layers import affine, product_dtype


def gathered_lstm(
    inputs_TBI: Tensor, weight_ih_GI: Tensor, weight_hh_GH: Tensor, bias_ih_G: Tensor, bias_hh_G: Tensor
) -> tuple[Tensor, Tensor]:
    """Run an LSTM layer from a zero state and return the outputs and cells of all steps, [T, B, H] each.

    It computes the same as torch.nn.LSTM, and both results propagate gradients. Products and outputs have the type of
    autocast where it is enabled, otherwise that of the inputs; cells and gate arithmetic are fp32 or fp64. Repeated
    calls give bitwise equal results.

    Args:
        inputs_TBI: Inputs, float [T, B, I].
        weight_ih_GI: Weight of the inputs, as in torch.nn.LSTM.
        weight_hh_GH: Weight of the hidden state.
        bias_ih_G: Bias of the inputs' product.
        bias_hh_G: Bias of the hidden state's product.
    """
    parameters = weight_ih_GI, weight_hh_GH, bias_ih_G, bias_hh_G
    dtype = product_dtype(inputs_TBI)
    outputs_TBH, cells_TBH = _GatheredLSTM.apply(inputs_TBI, *parameters, dtype)  # type: ignore[no-untyped-call]
    return outputs_TBH, cells_TBH


class _GatheredLSTM(torch.autograd.Function):
    """Autograd function of `gathered_lstm`.

    With preactivations a, s = sigmoid(a), and the previous cell c', a step computes the cell
    c = s_f c' + s_i (2 s_g - 1) and the output h = s_o (2 sigmoid(2c) - 1). Backward needs a and h, which are kept in
    the type of the products, and c.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs_TBI: Tensor,
        weight_ih_GI: Tensor,
        weight_hh_GH: Tensor,
        bias_ih_G: Tensor,
        bias_hh_G: Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        num_steps, batch, _ = inputs_TBI.shape
        inputs_TBI = inputs_TBI.to(dtype)
        outputs_TBH, cells_TBH = empty_results(inputs_TBI, weight_hh_GH)
        preactivations = []
        with torch.autocast(inputs_TBI.device.type, enabled=False):
            weight_GI, bias_G = doubled(weight_ih_GI, dtype), doubled(bias_ih_G + bias_hh_G, dtype)
            from_inputs_TBG = affine(inputs_TBI.flatten(0, 1), weight_GI, bias_G).view(num_steps, batch, -1)
            add_product = adder(doubled(weight_hh_GH, dtype), batch)
            for step in range(num_steps):
                cell_BH, output_BH = cells_TBH[step], outputs_TBH[step]
                # The first step needs a copy: a view, kept for backward, would keep the product of all steps alive.
                gates_BG = from_inputs_TBG[step]
                gates_BG = add_product(gates_BG, outputs_TBH[step - 1]) if step else gates_BG.clone()
                preactivations.append(gates_BG)
                gates_B4H = activated(gates_BG, cells_TBH.dtype)
                input_gate_BH, forget_gate_BH, candidate_BH, output_gate_BH = gates_B4H.unbind(1)
                if step:
                    torch.mul(forget_gate_BH, cells_TBH[step - 1], out=cell_BH)
                    cell_BH.addcmul_(input_gate_BH, candidate_BH, value=2).sub_(input_gate_BH)
                else:
                    torch.mul(input_gate_BH, candidate_BH, out=cell_BH).mul_(2).sub_(input_gate_BH)
                output_BH.copy_(tanh(cell_BH).mul_(output_gate_BH))
        parameters = weight_ih_GI, weight_hh_GH, bias_ih_G, bias_hh_G
        ctx.save_for_backward(inputs_TBI, *parameters, outputs_TBH, cells_TBH, *preactivations)
        return outputs_TBH, cells_TBH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs_TBI, weight_ih_GI, weight_hh_GH, bias_ih_G, bias_hh_G, outputs_TBH, cells_TBH, *preactivations = (
            ctx.saved_tensors
        )
        dtype, batch = outputs_TBH.dtype, outputs_TBH.shape[1]
        with torch.autocast(inputs_TBI.device.type, enabled=False):
            grad_TBG = gradient_of_gates(
                grads[0], grads[1], outputs_TBH, cells_TBH, preactivations, doubled(weight_hh_GH, dtype)
            )
            grad_NG = grad_TBG.flatten(0, 1)
            grad_inputs_TBI = None
            if ctx.needs_input_grad[0]:
                grad_inputs_TBI = (grad_TBG @ doubled(weight_ih_GI, dtype)).to(inputs_TBI.dtype)
            grad_ih_GI = doubled(grad_NG.T @ inputs_TBI.flatten(0, 1), weight_ih_GI.dtype)
            # The gates of step t read the output of step t - 1, which is zero before the first step.
            grad_hh_GH = doubled(grad_NG[batch:].T @ outputs_TBH[:-1].flatten(0, 1), weight_hh_GH.dtype)
            grad_bias_G = doubled(grad_NG.sum(0), bias_ih_G.dtype)
        return grad_inputs_TBI, grad_ih_GI, grad_hh_GH, grad_bias_G, grad_bias_G.to(bias_hh_G.dtype, copy=True), None


def gradient_of_gates(
    grad_outputs_TBH: Tensor | None,
    grad_cells_TBH: Tensor | None,
    outputs_TBH: Tensor,
    cells_TBH: Tensor,
    preactivations: list[Tensor],
    weight_GH: Tensor,
) -> Tensor:
    """Return the gradient of every step's preactivations, [T, B, G].

    This is the part of backward that loops over time. It recomputes the gates of each step, which are then still in
    cache when they are used.

    Args:
        grad_outputs_TBH: Gradient of the outputs, or None.
        grad_cells_TBH: Gradient of the cells, or None.
        outputs_TBH: Outputs of the forward pass.
        cells_TBH: Cells of the forward pass.
        preactivations: Preactivations [B, G] of each step.
        weight_GH: Weight of the hidden state, with doubled rows of the cell candidate.
    """
    num_steps, batch, hidden_size = outputs_TBH.shape
    grad_TBG = outputs_TBH.new_empty(num_steps, batch, 4 * hidden_size)
    grad_B4H = cells_TBH.new_empty(batch, 4, hidden_size)
    add_product = adder(weight_GH.T, batch)
    grad_cell_BH = torch.zeros_like(cells_TBH[0])
    no_grad_BH = torch.zeros_like(outputs_TBH[0])
    for step in reversed(range(num_steps)):
        grad_output_BH = no_grad_BH if grad_outputs_TBH is None else grad_outputs_TBH[step]
        if step + 1 < num_steps:
            grad_output_BH = add_product(grad_output_BH, grad_TBG[step + 1])
        grad_output_BH = grad_output_BH.to(cells_TBH.dtype)
        gates_B4H = activated(preactivations[step], cells_TBH.dtype)
        input_gate_BH, forget_gate_BH, candidate_BH, output_gate_BH = gates_B4H.unbind(1)
        tanh_cell_BH = tanh(cells_TBH[step])
        grad_tanh_BH = grad_output_BH * output_gate_BH
        # The derivative of tanh(c) is 1 - tanh(c)^2.
        grad_cell_BH.add_(grad_tanh_BH).sub_(grad_tanh_BH.mul_(tanh_cell_BH).mul_(tanh_cell_BH))
        if grad_cells_TBH is not None:
            grad_cell_BH.add_(grad_cells_TBH[step])
        # The gradients of the four gates pass through their sigmoids in one call.
        doubled_grad_cell_BH = 2 * grad_cell_BH
        torch.mul(doubled_grad_cell_BH, candidate_BH, out=grad_B4H[:, 0]).sub_(grad_cell_BH)
        if step:
            torch.mul(grad_cell_BH, cells_TBH[step - 1], out=grad_B4H[:, 1])
        else:
            grad_B4H[:, 1].zero_()
        torch.mul(doubled_grad_cell_BH, input_gate_BH, out=grad_B4H[:, 2])
        torch.mul(grad_output_BH, tanh_cell_BH, out=grad_B4H[:, 3])
        grad_TBG[step].view(grad_B4H.shape).copy_(torch.ops.aten.sigmoid_backward(grad_B4H, gates_B4H))
        grad_cell_BH.mul_(forget_gate_BH)
    return grad_TBG


def clipped_lstm(
    inputs_TBI: Tensor,
    weight_ih_GI: Tensor,
    weight_hh_GH: Tensor,
    bound: Tensor,
    state: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the LSTM of Wu et al. 2016, eq. 10 and 11, and return the outputs and cells of all steps, [T, B, H] each.

    It has no biases, each cell is clipped to [-bound, bound], and an output is the output gate times the cell, without
    a tanh. Both results propagate gradients, which are 0 through a clipped cell. Types are those of `gathered_lstm`.
    Repeated calls give bitwise equal results.

    Args:
        inputs_TBI: Inputs, float [T, B, I].
        weight_ih_GI: Weight of the inputs, as in torch.nn.LSTM.
        weight_hh_GH: Weight of the hidden state.
        bound: Bound of the cells, a scalar on the device of the inputs.
        state: Hidden state and cell before the first step, [B, H] each; None for zeros.
    """
    hidden_BH, cell_BH = (None, None) if state is None else state
    dtype = product_dtype(inputs_TBI)
    outputs_TBH, cells_TBH = _ClippedLSTM.apply(  # type: ignore[no-untyped-call]
        inputs_TBI, weight_ih_GI, weight_hh_GH, bound, hidden_BH, cell_BH, dtype
    )
    return outputs_TBH, cells_TBH


class _ClippedLSTM(torch.autograd.Function):
    """Autograd function of `clipped_lstm`, with the steps of `_GatheredLSTM`."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs_TBI: Tensor,
        weight_ih_GI: Tensor,
        weight_hh_GH: Tensor,
        bound: Tensor,
        first_hidden_BH: Tensor | None,
        first_cell_BH: Tensor | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        batch = inputs_TBI.shape[1]
        inputs_TBI = inputs_TBI.to(dtype)
        outputs_TBH, cells_TBH = empty_results(inputs_TBI, weight_hh_GH)
        bound = bound.to(cells_TBH.dtype, copy=True)  # backward needs the value of this update
        hidden_BH = None if first_hidden_BH is None else first_hidden_BH.to(dtype)
        cell_BH = torch.zeros_like(cells_TBH[0]) if first_cell_BH is None else first_cell_BH.to(cells_TBH.dtype)
        preactivations = []
        with torch.autocast(inputs_TBI.device.type, enabled=False):
            sums = F.linear(inputs_TBI, doubled(weight_ih_GI, dtype)).unbind(0)
            add_product = adder(doubled(weight_hh_GH, dtype), batch)
            for sum_BG, output_BH, next_cell_BH in zip(sums, outputs_TBH.unbind(0), cells_TBH.unbind(0), strict=True):
                # A view, kept for backward, would keep the product of all steps alive.
                gates_BG = sum_BG.clone() if hidden_BH is None else add_product(sum_BG, hidden_BH)
                preactivations.append(gates_BG)
                gates_B4H = activated(gates_BG, cells_TBH.dtype)
                input_gate_BH, forget_gate_BH, candidate_BH, output_gate_BH = gates_B4H.unbind(1)
                torch.mul(forget_gate_BH, cell_BH, out=next_cell_BH)
                next_cell_BH.addcmul_(input_gate_BH, candidate_BH, value=2).sub_(input_gate_BH).clamp_(-bound, bound)
                torch.mul(output_gate_BH, next_cell_BH, out=output_BH)
                hidden_BH, cell_BH = output_BH, next_cell_BH
        first_state = first_hidden_BH, first_cell_BH
        ctx.save_for_backward(
            inputs_TBI, weight_ih_GI, weight_hh_GH, bound, *first_state, outputs_TBH, cells_TBH, *preactivations
        )
        return outputs_TBH, cells_TBH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs_TBI, weight_ih_GI, weight_hh_GH, bound, *others = ctx.saved_tensors
        first_hidden_BH, first_cell_BH, outputs_TBH, cells_TBH, *preactivations = others
        dtype, batch = outputs_TBH.dtype, outputs_TBH.shape[1]
        doubled_hh_GH = doubled(weight_hh_GH, dtype)
        with torch.autocast(inputs_TBI.device.type, enabled=False):
            grad_TBG, grad_cell_BH = gradient_of_clipped_gates(
                grads[0], grads[1], first_cell_BH, cells_TBH, preactivations, doubled_hh_GH, bound
            )
            grad_NG = grad_TBG.flatten(0, 1)
            grad_inputs_TBI = grad_TBG @ doubled(weight_ih_GI, dtype) if ctx.needs_input_grad[0] else None
            grad_ih_GI = doubled(grad_NG.T @ inputs_TBI.flatten(0, 1), weight_ih_GI.dtype)
            # The gates of step t read the output of step t - 1.
            grad_hh_GH = grad_NG[batch:].T @ outputs_TBH[:-1].flatten(0, 1)
            grad_hidden_BH = None
            if first_hidden_BH is not None:
                grad_hh_GH.addmm_(grad_TBG[0].T, first_hidden_BH.to(dtype))
                grad_hidden_BH = grad_TBG[0] @ doubled_hh_GH
        grad_state = grad_hidden_BH, None if first_cell_BH is None else grad_cell_BH
        # Autograd casts each gradient to the type of its tensor.
        return grad_inputs_TBI, grad_ih_GI, doubled(grad_hh_GH, weight_hh_GH.dtype), None, *grad_state, None


def gradient_of_clipped_gates(
    grad_outputs_TBH: Tensor | None,
    grad_cells_TBH: Tensor | None,
    first_cell_BH: Tensor | None,
    cells_TBH: Tensor,
    preactivations: list[Tensor],
    weight_GH: Tensor,
    bound: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of every step's preactivations, [T, B, G], and of the first cell, [B, H].

    This is the part of backward of `clipped_lstm` that loops over time.

    Args:
        grad_outputs_TBH: Gradient of the outputs, or None.
        grad_cells_TBH: Gradient of the cells, or None.
        first_cell_BH: Cell before the first step; None for zeros.
        cells_TBH: Cells of the forward pass.
        preactivations: Preactivations [B, G] of each step.
        weight_GH: Weight of the hidden state, with doubled rows of the cell candidate.
        bound: Bound of the cells.
    """
    num_steps, batch, hidden_size = cells_TBH.shape
    grad_TBG = weight_GH.new_empty(num_steps, batch, 4 * hidden_size)
    grad_B4H = cells_TBH.new_empty(batch, 4, hidden_size)
    add_product = adder(weight_GH.T, batch)
    first_cell_BH = torch.zeros_like(cells_TBH[0]) if first_cell_BH is None else first_cell_BH.to(cells_TBH.dtype)
    grad_cell_BH = torch.zeros_like(first_cell_BH)
    no_grad_BH = weight_GH.new_zeros(batch, hidden_size)
    for step in reversed(range(num_steps)):
        grad_output_BH = no_grad_BH if grad_outputs_TBH is None else grad_outputs_TBH[step]
        if step + 1 < num_steps:
            grad_output_BH = add_product(grad_output_BH, grad_TBG[step + 1])
        grad_output_BH = grad_output_BH.to(cells_TBH.dtype)
        gates_B4H = activated(preactivations[step], cells_TBH.dtype)
        input_gate_BH, forget_gate_BH, candidate_BH, output_gate_BH = gates_B4H.unbind(1)
        grad_cell_BH.addcmul_(grad_output_BH, output_gate_BH)
        if grad_cells_TBH is not None:
            grad_cell_BH.add_(grad_cells_TBH[step])
        grad_cell_BH.mul_(cells_TBH[step].abs() < bound)
        # The gradients of the four gates pass through their sigmoids in one call.
        doubled_grad_cell_BH = 2 * grad_cell_BH
        torch.mul(doubled_grad_cell_BH, candidate_BH, out=grad_B4H[:, 0]).sub_(grad_cell_BH)
        torch.mul(grad_cell_BH, cells_TBH[step - 1] if step else first_cell_BH, out=grad_B4H[:, 1])
        torch.mul(doubled_grad_cell_BH, input_gate_BH, out=grad_B4H[:, 2])
        torch.mul(grad_output_BH, cells_TBH[step], out=grad_B4H[:, 3])
        grad_TBG[step].view(grad_B4H.shape).copy_(torch.ops.aten.sigmoid_backward(grad_B4H, gates_B4H))
        grad_cell_BH.mul_(forget_gate_BH)
    return grad_TBG, grad_cell_BH


LAYER_NORM_EPSILON = 1e-5
"""Constant that layer normalization adds to the variance, the default of torch.nn.LayerNorm."""


def layer_norm_lstm(
    inputs_TBI: Tensor,
    weight_ih_GI: Tensor,
    weight_hh_GH: Tensor,
    gain_4H: Tensor,
    bias_4H: Tensor,
    state: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a layer-normalized LSTM layer and return the outputs and cells of all steps, [T, B, H] each.

    The preactivations of a gate are gain * norm(W x + U h) + bias, where norm subtracts the mean over the H units of
    the gate and divides by the standard deviation (Ba et al. 2016, eq. 4; Chen et al. 2018, section 4.1). The rest is
    an LSTM. Both results propagate gradients. Types are those of `gathered_lstm`: products and outputs have the type
    of autocast or of the inputs, all else is fp32 or fp64. Repeated calls give bitwise equal results.

    Args:
        inputs_TBI: Inputs, float [T, B, I].
        weight_ih_GI: Weight W of the inputs.
        weight_hh_GH: Weight U of the hidden state.
        gain_4H: Gain of each gate.
        bias_4H: Bias of each gate.
        state: Hidden state and cell before the first step, [B, H] each; None for zeros.
    """
    hidden_BH, cell_BH = (None, None) if state is None else state
    parameters = weight_ih_GI, weight_hh_GH, gain_4H, bias_4H
    dtype = product_dtype(inputs_TBI)
    outputs_TBH, cells_TBH = _LayerNormLSTM.apply(  # type: ignore[no-untyped-call]
        inputs_TBI, *parameters, hidden_BH, cell_BH, dtype
    )
    return outputs_TBH, cells_TBH


class _LayerNormLSTM(torch.autograd.Function):
    """Autograd function of `layer_norm_lstm`.

    Of each step, backward needs the normalized sums of the products, the reciprocal of their standard deviation, the
    cell and the output. It computes the gates again, which takes as long as writing them to memory and reading them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs_TBI: Tensor,
        weight_ih_GI: Tensor,
        weight_hh_GH: Tensor,
        gain_4H: Tensor,
        bias_4H: Tensor,
        first_hidden_BH: Tensor | None,
        first_cell_BH: Tensor | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        batch, hidden_size = inputs_TBI.shape[1], weight_hh_GH.shape[1]
        inputs_TBI = inputs_TBI.to(dtype)
        outputs_TBH, cells_TBH = empty_results(inputs_TBI, weight_hh_GH)
        hidden_BH = None if first_hidden_BH is None else first_hidden_BH.to(dtype)
        cell_BH = torch.zeros_like(cells_TBH[0]) if first_cell_BH is None else first_cell_BH.to(cells_TBH.dtype)
        gates = _Gates(gain_4H, bias_4H, batch, cells_TBH.dtype)
        normalized, scales = [], []
        with torch.autocast(inputs_TBI.device.type, enabled=False):
            sums = F.linear(inputs_TBI, weight_ih_GI.to(dtype)).unbind(0)
            add_product = overwriting_adder(weight_hh_GH.to(dtype), batch)
            for sum_BG, output_BH, next_cell_BH in zip(sums, outputs_TBH.unbind(0), cells_TBH.unbind(0), strict=True):
                if hidden_BH is not None:
                    sum_BG = add_product(sum_BG, hidden_BH)
                normalized_B4H, _, scale_B41 = torch.native_layer_norm(
                    sum_BG.to(cells_TBH.dtype).view(batch, 4, hidden_size),
                    (hidden_size,),
                    None,
                    None,
                    LAYER_NORM_EPSILON,
                )
                gates.compute(normalized_B4H)
                torch.mul(gates.forget_gate_BH, cell_BH, out=next_cell_BH).addcmul_(
                    gates.input_gate_BH, gates.candidate_BH
                )
                torch.mul(gates.output_gate_BH, gates.tanh(next_cell_BH), out=output_BH)
                normalized.append(normalized_B4H)
                scales.append(scale_B41)
                hidden_BH, cell_BH = output_BH, next_cell_BH
        parameters = weight_ih_GI, weight_hh_GH, gain_4H, bias_4H
        first_state = first_hidden_BH, first_cell_BH
        ctx.save_for_backward(inputs_TBI, *parameters, *first_state, outputs_TBH, cells_TBH, *normalized, *scales)
        return outputs_TBH, cells_TBH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs_TBI, weight_ih_GI, weight_hh_GH, gain_4H, bias_4H, *others = ctx.saved_tensors
        first_hidden_BH, first_cell_BH, outputs_TBH, cells_TBH, *of_steps = others
        dtype, (num_steps, batch, _) = outputs_TBH.dtype, outputs_TBH.shape
        weight_hh_GH = weight_hh_GH.to(dtype)
        with torch.autocast(inputs_TBI.device.type, enabled=False):
            grad_TBG, grad_gain_4H, grad_bias_4H, grad_cell_BH = gradient_of_sums(
                grads[0],
                grads[1],
                first_cell_BH,
                cells_TBH,
                of_steps[:num_steps],
                of_steps[num_steps:],
                weight_hh_GH,
                gain_4H,
                bias_4H,
            )
            grad_NG = grad_TBG.flatten(0, 1)
            grad_inputs_TBI = grad_TBG @ weight_ih_GI.to(dtype) if ctx.needs_input_grad[0] else None
            grad_ih_GI = grad_NG.T @ inputs_TBI.flatten(0, 1)
            # The gates of step t read the output of step t - 1.
            grad_hh_GH = grad_NG[batch:].T @ outputs_TBH[:-1].flatten(0, 1)
            grad_hidden_BH = None
            if first_hidden_BH is not None:
                grad_hh_GH.addmm_(grad_TBG[0].T, first_hidden_BH.to(dtype))
                grad_hidden_BH = grad_TBG[0] @ weight_hh_GH
        grad_state = grad_hidden_BH, None if first_cell_BH is None else grad_cell_BH
        # Autograd casts each gradient to the type of its tensor.
        return grad_inputs_TBI, grad_ih_GI, grad_hh_GH, grad_gain_4H, grad_bias_4H, *grad_state, None


def gradient_of_sums(
    grad_outputs_TBH: Tensor | None,
    grad_cells_TBH: Tensor | None,
    first_cell_BH: Tensor | None,
    cells_TBH: Tensor,
    normalized: list[Tensor],
    scales: list[Tensor],
    weight_hh_GH: Tensor,
    gain_4H: Tensor,
    bias_4H: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of every step's sum of products W x + U h, of gain, bias and first cell.

    This is the part of backward of `layer_norm_lstm` that loops over time. The first result, [T, B, G], has the type of
    the products, the others, [4, H], [4, H] and [B, H], that of the cells.

    Args:
        grad_outputs_TBH: Gradient of the outputs, or None.
        grad_cells_TBH: Gradient of the cells, or None.
        first_cell_BH: Cell before the first step; None for zeros.
        cells_TBH: Cells of the forward pass.
        normalized: Normalized sums [B, 4, H] of each step.
        scales: Reciprocals of the sums' standard deviations, [B, 4, 1], of each step.
        weight_hh_GH: Weight of the hidden state, in the type of the products.
        gain_4H: Gain of each gate.
        bias_4H: Bias of each gate.
    """
    num_steps, batch, hidden_size = cells_TBH.shape
    gates = _Gates(gain_4H, bias_4H, batch, cells_TBH.dtype)
    quadrupled_gain_4H = doubled(gates.doubled_gain_4H, cells_TBH.dtype)
    first_cell_BH = cells_TBH.new_zeros(batch, hidden_size) if first_cell_BH is None else first_cell_BH
    # Lists of all steps' views take less time than an index in each step.
    cells = [first_cell_BH.to(cells_TBH.dtype), *cells_TBH.unbind(0)]
    grad_outputs = None if grad_outputs_TBH is None else grad_outputs_TBH.unbind(0)
    grad_cells = None if grad_cells_TBH is None else grad_cells_TBH.unbind(0)
    grad_TBG = weight_hh_GH.new_empty(num_steps, batch, 4 * hidden_size)
    grad_sums, grad_sums_B4H = grad_TBG.unbind(0), grad_TBG.view(num_steps, batch, 4, hidden_size).unbind(0)
    add_product = overwriting_adder(weight_hh_GH.T, batch)
    summand_BH = weight_hh_GH.new_zeros(batch, hidden_size)
    grad_cell_BH = torch.zeros_like(cells_TBH[0])
    through_tanh_BH = torch.empty_like(grad_cell_BH)
    grad_B4H = cells_TBH.new_empty(batch, 4, hidden_size)
    grad_input_BH, grad_forget_BH, grad_candidate_BH, grad_output_gate_BH = grad_B4H.unbind(1)
    grad_gain_B4H, grad_bias_B4H = torch.zeros_like(grad_B4H), torch.zeros_like(grad_B4H)
    mean_B41 = cells_TBH.new_zeros(batch, 4, 1)
    one_B41 = torch.ones_like(mean_B41)
    for step in reversed(range(num_steps)):
        normalized_B4H = normalized[step]
        gates.compute(normalized_B4H)
        tanh_cell_BH = gates.tanh(cells[step + 1])
        grad_output_BH = summand_BH.zero_() if grad_outputs is None else summand_BH.copy_(grad_outputs[step])
        if step + 1 < num_steps:
            grad_output_BH = add_product(grad_output_BH, grad_sums[step + 1])
        grad_output_BH = grad_output_BH.to(cells_TBH.dtype)
        torch.mul(grad_output_BH, gates.output_gate_BH, out=through_tanh_BH)
        grad_cell_BH.add_(_tanh_backward(through_tanh_BH, tanh_cell_BH, grad_input=through_tanh_BH))
        if grad_cells is not None:
            grad_cell_BH.add_(grad_cells[step])
        # The gradients of the four gates pass through their sigmoids in one call. The candidate is 2s - 1 with
        # s = sigmoid(2a), whose derivative is 4s(1 - s); the factor 4 follows in the gain and at the end.
        torch.mul(grad_cell_BH, gates.candidate_BH, out=grad_input_BH)
        torch.mul(grad_cell_BH, cells[step], out=grad_forget_BH)
        torch.mul(grad_cell_BH, gates.input_gate_BH, out=grad_candidate_BH)
        torch.mul(grad_output_BH, tanh_cell_BH, out=grad_output_gate_BH)
        _sigmoid_backward(grad_B4H, gates.sigmoids_B4H, grad_input=grad_B4H)
        grad_cell_BH.mul_(gates.forget_gate_BH)
        grad_gain_B4H.addcmul_(grad_B4H, normalized_B4H)
        grad_bias_B4H.add_(grad_B4H)
        # Normalized values with mean 0 and scale 1 are their own normalization. Its gradient times the scale of the
        # sums is the gradient of the sums, which therefore need not be kept.
        grad_sum_B4H = _layer_norm_backward(
            grad_B4H.mul_(quadrupled_gain_4H),
            normalized_B4H,
            (hidden_size,),
            mean_B41,
            one_B41,
            None,
            None,
            (True, False, False),
        )[0]
        torch.mul(grad_sum_B4H, scales[step], out=grad_sums_B4H[step])
    grad_gain_4H, grad_bias_4H = (
        doubled(doubled(grad_B4H.sum(0), grad_B4H.dtype), grad_B4H.dtype) for grad_B4H in (grad_gain_B4H, grad_bias_B4H)
    )
    return grad_TBG, grad_gain_4H, grad_bias_4H, grad_cell_BH


_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default


class _Gates:
    """The gates of one step of `layer_norm_lstm`, in buffers that each step overwrites.

    Attributes:
        doubled_gain_4H: Gain with the row of the cell candidate doubled.
        sigmoids_B4H: Sigmoid of the four preactivations, of which the cell candidate's is doubled.
        input_gate_BH: Input gate.
        forget_gate_BH: Forget gate.
        candidate_BH: Cell candidate, a tanh.
        output_gate_BH: Output gate.
    """

    def __init__(self, gain_4H: Tensor, bias_4H: Tensor, batch: int, dtype: torch.dtype) -> None:
        self.doubled_gain_4H, self.doubled_bias_4H = doubled(gain_4H, dtype), doubled(bias_4H, dtype)
        self.sigmoids_B4H = self.doubled_gain_4H.new_empty(batch, *gain_4H.shape)
        self.input_gate_BH, self.forget_gate_BH, self.candidate_sigmoid_BH, self.output_gate_BH = (
            self.sigmoids_B4H.unbind(1)
        )
        self.candidate_BH = torch.empty_like(self.input_gate_BH, memory_format=torch.contiguous_format)
        self.tanh_BH = torch.empty_like(self.candidate_BH)
        self.minus_one = self.doubled_gain_4H.new_full((), -1.0)  # a tensor, which takes less time than a number

    def compute(self, normalized_B4H: Tensor) -> None:
        """Compute the gates from the normalized sums."""
        torch.addcmul(self.doubled_bias_4H, normalized_B4H, self.doubled_gain_4H, out=self.sigmoids_B4H).sigmoid_()
        torch.add(self.minus_one, self.candidate_sigmoid_BH, alpha=2, out=self.candidate_BH)

    def tanh(self, values_BH: Tensor) -> Tensor:
        """Return the tanh in a buffer that the next call overwrites."""
        torch.add(values_BH, values_BH, out=self.tanh_BH).sigmoid_()
        return torch.add(self.minus_one, self.tanh_BH, alpha=2, out=self.tanh_BH)


def empty_results(inputs_TBI: Tensor, weight_hh_GH: Tensor) -> tuple[Tensor, Tensor]:
    """Return empty tensors [T, B, H] for the outputs, in the type of the inputs, and the cells, in fp32 or fp64."""
    outputs_TBH = inputs_TBI.new_empty(*inputs_TBI.shape[:2], weight_hh_GH.shape[1])
    return outputs_TBH, torch.empty_like(outputs_TBH, dtype=torch.promote_types(outputs_TBH.dtype, torch.float32))


def adder(weight_OI: Tensor, num_rows: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of summand [N, O] and states [N, I] that returns summand + states W^T in the weight's type.

    On a CPU the weight is reordered for oneDNN once instead of at every step.

    Args:
        weight_OI: W.
        num_rows: Number N of rows, for which oneDNN chooses the weight's layout.
    """
    if weight_OI.device.type == "cpu" and weight_OI.dtype in onednn_dtypes():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), num_rows)

        def add_packed_product(summand_NO: Tensor, states_NI: Tensor) -> Tensor:
            summand_NO = summand_NO.to(weight_OI.dtype)
            total_NO: Tensor = torch.ops.mkldnn._linear_pointwise.binary(states_NI, summand_NO, packed, None, "add")
            return total_NO

        return add_packed_product
    return lambda summand_NO, states_NI: torch.addmm(summand_NO.to(weight_OI.dtype), states_NI, weight_OI.T)


def overwriting_adder(weight_OI: Tensor, num_rows: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function like that of `adder` that may overwrite the summand, which has the weight's type.

    In fp32, MKL's products take about as long as oneDNN's with reordered weights, and they need no memory for the sum.
    """
    if weight_OI.dtype == torch.bfloat16:
        return adder(weight_OI, num_rows)
    return lambda summand_NO, states_NI: summand_NO.addmm_(states_NI, weight_OI.T)


def activated(preactivations_BG: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sigmoid of all gates, [B, 4, H], in new memory."""
    gates_BG = preactivations_BG.to(dtype, copy=True).sigmoid_()
    return gates_BG.view(len(gates_BG), 4, -1)


def tanh(values: Tensor) -> Tensor:
    """Return tanh, computed with the faster sigmoid."""
    return (2 * values).sigmoid_().mul_(2).sub_(1)


def doubled(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy in the given type, with the third quarter of the rows, those of the cell candidate, doubled."""
    copied = rows.to(dtype, copy=True)
    quarter = len(copied) // 4
    copied[2 * quarter : 3 * quarter].mul_(2)
    return copied
