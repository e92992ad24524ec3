"""One LSTM layer over whole sequences, whose weights get their gradients from one product each.

A fused kernel goes through time in backward as in forward, and adds to the weights' gradients at every step: products
of as few rows as there are sentences. Here only what truly depends on the next step goes through time. The gradients
of the gates of all steps are kept, and those of the inputs and of both weights come from them in one product each.
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
    """Outputs and cells of every step, [T, B, H], from a zero state; both carry gradients.

    What torch.nn.LSTM computes, with its weights: G = 4H rows, of input, forget, cell and output gate in turn.
    Products are of autocast's type where it is on, else of the inputs'; outputs are of that type, cells and the
    arithmetic of the gates of fp32 or better. The results do not depend on what ran before.
    """
    device = inputs_TBI.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else inputs_TBI.dtype
    parameters = weight_ih_GI, weight_hh_GH, bias_ih_G, bias_hh_G
    outputs_TBH, cells_TBH = _GatheredLSTM.apply(inputs_TBI, *parameters, dtype)  # type: ignore[no-untyped-call]
    return outputs_TBH, cells_TBH


class _GatheredLSTM(torch.autograd.Function):
    """With a = the four gates before their nonlinearity, the third (g) doubled, and s = sigmoid(a):

    c = s_f c' + s_i (2 s_g - 1), h = s_o (2 sigmoid(2c) - 1), since tanh(x) = 2 sigmoid(2x) - 1 and torch's sigmoid
    takes a sixth of the time of its tanh on a CPU. a and h are kept for backward in the type of the products.
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
                # In memory of its own: a view, kept for backward, would keep the product of all steps with it.
                before_BG = from_inputs_TBG[step]
                before_BG = add_product(before_BG, outputs_TBH[step - 1]) if step else before_BG.clone()
                preactivations.append(before_BG)
                input_BH, forget_BH, doubled_BH, out_BH = activated(before_BG, cells_TBH.dtype).unbind(1)
                if step:
                    torch.mul(forget_BH, cells_TBH[step - 1], out=cell_BH)
                    cell_BH.addcmul_(input_BH, doubled_BH, value=2).sub_(input_BH)
                else:
                    torch.mul(input_BH, doubled_BH, out=cell_BH).mul_(2).sub_(input_BH)
                output_BH.copy_(tanh(cell_BH).mul_(out_BH))
        parameters = weight_ih_GI, weight_hh_GH, bias_ih_G, bias_hh_G
        ctx.save_for_backward(inputs_TBI, *parameters, outputs_TBH, cells_TBH, *preactivations)
        return outputs_TBH, cells_TBH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs_TBI, weight_ih_GI, weight_hh_GH, bias_ih_G, bias_hh_G, outputs_TBH, cells_TBH, *before = (
            ctx.saved_tensors
        )
        dtype, batch = outputs_TBH.dtype, outputs_TBH.shape[1]
        with torch.autocast(inputs_TBI.device.type, enabled=False):
            grad_TBG = gradient_of_gates(
                grads[0], grads[1], outputs_TBH, cells_TBH, before, doubled(weight_hh_GH, dtype)
            )
            grad_NG = grad_TBG.flatten(0, 1)
            grad_inputs_TBI = None
            if ctx.needs_input_grad[0]:
                grad_inputs_TBI = (grad_TBG @ doubled(weight_ih_GI, dtype)).to(inputs_TBI.dtype)
            grad_ih_GI = doubled(grad_NG.T @ inputs_TBI.flatten(0, 1), weight_ih_GI.dtype)
            # What the last step says concerns no further one.
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
    """The gradient with respect to every step's preactivations (the third gate's doubled), [T, B, G].

    The gates are computed again step by step, while they are in cache, and not for all steps at once.
    """
    num_steps, batch, hidden_size = outputs_TBH.shape
    grad_TBG = outputs_TBH.new_empty(num_steps, batch, 4 * hidden_size)
    grad_BGH = cells_TBH.new_empty(batch, 4, hidden_size)
    add_product = adder(weight_GH.T, batch)
    grad_cell_BH = torch.zeros_like(cells_TBH[0])
    no_grad_BH = torch.zeros_like(outputs_TBH[0])
    for step in reversed(range(num_steps)):
        grad_output_BH = no_grad_BH if grad_outputs_TBH is None else grad_outputs_TBH[step]
        if step + 1 < num_steps:
            grad_output_BH = add_product(grad_output_BH, grad_TBG[step + 1])
        grad_output_BH = grad_output_BH.to(cells_TBH.dtype)
        gates_BGH = activated(preactivations[step], cells_TBH.dtype)
        input_BH, forget_BH, doubled_BH, out_BH = gates_BGH.unbind(1)
        squashed_BH = tanh(cells_TBH[step])
        grad_squashed_BH = grad_output_BH * out_BH
        # The slope of tanh is 1 - tanh^2.
        grad_cell_BH.add_(grad_squashed_BH).sub_(grad_squashed_BH.mul_(squashed_BH).mul_(squashed_BH))
        if grad_cells_TBH is not None:
            grad_cell_BH.add_(grad_cells_TBH[step])
        # With respect to the gates, then through their sigmoids, four at once.
        twice_BH = 2 * grad_cell_BH
        torch.mul(twice_BH, doubled_BH, out=grad_BGH[:, 0]).sub_(grad_cell_BH)
        if step:
            torch.mul(grad_cell_BH, cells_TBH[step - 1], out=grad_BGH[:, 1])
        else:
            grad_BGH[:, 1].zero_()
        torch.mul(twice_BH, input_BH, out=grad_BGH[:, 2])
        torch.mul(grad_output_BH, squashed_BH, out=grad_BGH[:, 3])
        grad_TBG[step].view(grad_BGH.shape).copy_(torch.ops.aten.sigmoid_backward(grad_BGH, gates_BGH))
        grad_cell_BH.mul_(forget_BH)
    return grad_TBG


def adder(weight_OI: Tensor, num_rows: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (summand [N, O], states [N, I]) -> summand + states W^T, in new memory, of the weight's type.

    On a CPU the weight is brought into oneDNN's order once, and not at every step. num_rows: N, for that order.
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
    """Sigmoids of all gates in memory of their own, [B, 4, H]."""
    gates_BG = preactivations_BG.to(dtype, copy=True).sigmoid_()
    return gates_BG.view(len(gates_BG), 4, -1)


def tanh(values: Tensor) -> Tensor:
    return (2 * values).sigmoid_().mul_(2).sub_(1)


def doubled(rows_G: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy [G, ...] of that type, the rows of the third gate (g) doubled."""
    copy_G = rows_G.to(dtype, copy=True)
    hidden_size = len(copy_G) // 4
    copy_G[2 * hidden_size : 3 * hidden_size].mul_(2)
    return copy_G
