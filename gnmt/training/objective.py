"""Model and loss as one module: what the trainer calls and what data parallelism wraps."""

from __future__ import annotations

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
        real_BT = labels.mask_BT
        hidden_NH = self.model.output_dropout(hidden_BTH[real_BT])
        loss_sum = self.loss(hidden_NH, self.model.output_layer, labels.ids_BT[real_BT])
        return loss_sum, labels.lengths_B.sum()
