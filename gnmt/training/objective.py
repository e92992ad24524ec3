"""Model and loss as one module: what the trainer calls and what data parallelism wraps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gnmt.model.seq2seq import Seq2Seq
from gnmt.training.loss import LabelSmoothedCrossEntropy
from gnmt.types import Batch


class Objective(nn.Module):
    """The summed loss of a batch. Padding positions never enter the output layer."""

    def __init__(self, model: Seq2Seq, loss: LabelSmoothedCrossEntropy) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss summed over the target tokens with EOS (fp32 scalar), and their number (int64 scalar)."""
        memory = self.model.encode(batch.source)
        hidden_BTH, _ = self.model.decode(batch.target_input, memory)
        labels = batch.labels
        rows_N, steps_N = real_places(labels.lengths_B, batch.num_labels)
        hidden_NH: Tensor = _Taken.apply(hidden_BTH, rows_N, steps_N)  # type: ignore[no-untyped-call]
        hidden_NH = self.model.output_dropout(hidden_NH)
        loss_sum = self.loss(hidden_NH, self.model.output_layer, labels.ids_BT[rows_N, steps_N])
        return loss_sum, labels.lengths_B.sum()


def real_places(lengths_B: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Row and step of every real token, row by row, int64 [num_tokens], which is the sum of lengths_B.

    A bool mask as index says the same, but its result's size is then the device's secret, and on CUDA the host stops
    in every step to ask for it.
    """
    rows_B = torch.arange(len(lengths_B), device=lengths_B.device)
    rows_N = torch.repeat_interleave(rows_B, lengths_B, output_size=num_tokens)
    starts_B = lengths_B.cumsum(0) - lengths_B
    return rows_N, torch.arange(num_tokens, device=lengths_B.device) - starts_B[rows_N]


class _Taken(torch.autograd.Function):
    """states_BTH[rows_N, steps_N] for places that all differ.

    The gradient of plain indexing must reckon with places that repeat: it adds, one by one on a CPU and after a sort
    on CUDA. This one copies. It lies in memory as the states do, so the layer below need not turn it round.
    """

    @staticmethod
    def forward(ctx: Any, states_BTH: Tensor, rows_N: Tensor, steps_N: Tensor) -> Tensor:
        ctx.save_for_backward(rows_N, steps_N)
        ctx.layout = states_BTH.shape, states_BTH.stride()
        return states_BTH[rows_N, steps_N]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        [grad_NH] = grads
        grad_BTH = grad_NH.new_empty_strided(*ctx.layout).zero_()
        grad_BTH[ctx.saved_tensors] = grad_NH
        return grad_BTH, None, None
