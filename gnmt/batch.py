"""Padded batches of token ids, and the special ids.

Shape suffixes everywhere in gnmt: B batch, S source length, T target length, H hidden units, V vocabulary, K beam.
Tensors here are batch-major; masks are bool, True for a real token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3


class Tokens(NamedTuple):
    """Padded token ids of one side of a batch.

    ids_BT: int64, PAD_ID behind each row's end. lengths_B: int64, real tokens in each row.
    """

    ids_BT: Tensor
    lengths_B: Tensor

    @property
    def mask_BT(self) -> Tensor:
        """bool [B, T], True for a real token."""
        positions_T = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device)
        return positions_T < self.lengths_B[:, None]

    def to(self, device: torch.device) -> Tokens:
        return Tokens(self.ids_BT.to(device, non_blocking=True), self.lengths_B.to(device, non_blocking=True))


class Batch(NamedTuple):
    """Sentence pairs with the framing of training.

    source: pieces and EOS. target: BOS, pieces and EOS, so its lengths are |Y| + 1.
    pairs_B: int64, each row's index in the preprocessed store.
    num_labels: target tokens with EOS, without BOS, of all rows; a number of the host, which therefore never has to
    wait for the device to count them.
    """

    source: Tokens
    target: Tokens
    pairs_B: Tensor
    num_labels: int

    @property
    def target_input(self) -> Tokens:
        """What the decoder reads: BOS and the pieces, |Y| tokens a row."""
        lengths_B = self.target.lengths_B - 1
        inputs = Tokens(self.target.ids_BT[:, :-1], lengths_B)
        return Tokens(inputs.ids_BT.masked_fill(~inputs.mask_BT, PAD_ID), lengths_B)

    @property
    def labels(self) -> Tokens:
        """What the decoder must say: the pieces and EOS, |Y| tokens a row."""
        return Tokens(self.target.ids_BT[:, 1:], self.target.lengths_B - 1)

    @property
    def num_real_tokens(self) -> int:
        """Source and target tokens with EOS, without BOS and padding: what throughput counts."""
        return int(self.source.lengths_B.sum()) + self.num_labels

    @property
    def num_padded_tokens(self) -> int:
        """The same with padding: what memory and time go by."""
        return self.source.ids_BT.numel() + self.target.ids_BT.numel() - len(self.pairs_B)

    def to(self, device: torch.device) -> Batch:
        """The batch on that device; pairs_B, which only the host reads, stays where it is."""
        return self._replace(source=self.source.to(device), target=self.target.to(device))


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tokens:
    """Rows of ids, which may be empty, as a batch."""
    ids_BT = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], True, PAD_ID)
    return Tokens(ids_BT, torch.tensor([len(row) for row in rows])).to(device)
