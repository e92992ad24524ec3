"""An LSTM layer whose backward pass computes each weight's gradient in one product over all time steps.

The backward pass of a fused LSTM kernel adds to the weights' gradients at every time step, by products with as few rows
as there are sentences in the batch. Here the backward loop over time computes only what depends on the next step: the
gradients of the gates. They are stored for all steps, [T, B, 4H]. After the loop, one product over all T * B rows gives
the gradient of each weight, and another one the gradient of the inputs. Likewise, the forward pass multiplies the
inputs of all steps in one product, and only the product with the hidden state is in the loop.

`LSTM` in gnmt/model/recurrent/layers.py decides when this is faster than the fused kernel.

G = 4H stands for the gates' units: input, forget, cell candidate and output gate, in torch's order. All tanh are
computed as 2 sigmoid(2x) - 1, because torch's sigmoid takes a sixth of the time of its tanh on a CPU. Therefore the
rows of the cell candidate are doubled in weights, biases and preactivations, and one sigmoid serves all four gates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gnmt.device import onednn_dtypes
from gnmt.model.layers import affine


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
    device = inputs_TBI.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else inputs_TBI.dtype
    parameters = weight_ih_GI, weight_hh_GH, bias_ih_G, bias_hh_G
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
        hidden_size = weight_hh_GH.shape[1]
        inputs_TBI = inputs_TBI.to(dtype)
        outputs_TBH = inputs_TBI.new_empty(num_steps, batch, hidden_size)
        cells_TBH = torch.empty_like(outputs_TBH, dtype=torch.promote_types(dtype, torch.float32))
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


def activated(preactivations_BG: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sigmoid of all gates, [B, 4, H], in new memory."""
    gates_BG = preactivations_BG.to(dtype, copy=True).sigmoid_()
    return gates_BG.view(len(gates_BG), 4, -1)


def tanh(values: Tensor) -> Tensor:
    """Return tanh, computed with the faster sigmoid."""
    return (2 * values).sigmoid_().mul_(2).sub_(1)


def doubled(rows_G: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy [G, ...] in the given type, with the rows of the third gate, the cell candidate, doubled."""
    copy_G = rows_G.to(dtype, copy=True)
    hidden_size = len(copy_G) // 4
    copy_G[2 * hidden_size : 3 * hidden_size].mul_(2)
    return copy_G
