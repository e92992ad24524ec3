"""Padded batches of token ids, and the special ids.

Tensor names in this package end in the tensor's shape: B batch, S source length, T target length, H hidden units,
V vocabulary, K beam. Tensors of this module are batch-major. Masks are bool, True for a real token.
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

    ids_BT: int64, PAD_ID after the end of each row.
    lengths_B: int64, number of real tokens in each row.
    """

    ids_BT: Tensor
    lengths_B: Tensor

    @property
    def mask_BT(self) -> Tensor:
        """Mask of real tokens, bool [B, T]."""
        positions_T = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device)
        return positions_T < self.lengths_B[:, None]

    def to(self, device: torch.device) -> Tokens:
        return Tokens(self.ids_BT.to(device, non_blocking=True), self.lengths_B.to(device, non_blocking=True))


class Batch(NamedTuple):
    """Sentence pairs, framed by special tokens as training needs them.

    source: subwords and EOS.
    target: BOS, subwords and EOS, so its lengths are |Y| + 1.
    pairs_B: int64, index of each row's pair in the preprocessed store.
    num_labels: number of target tokens in all rows, with EOS and without BOS. It is known on the host, so counting the
    labels does not synchronize with the device.
    """

    source: Tokens
    target: Tokens
    pairs_B: Tensor
    num_labels: int

    @property
    def target_input(self) -> Tokens:
        """Decoder input: BOS and the subwords, |Y| tokens in each row."""
        lengths_B = self.target.lengths_B - 1
        inputs = Tokens(self.target.ids_BT[:, :-1], lengths_B)
        return Tokens(inputs.ids_BT.masked_fill(~inputs.mask_BT, PAD_ID), lengths_B)

    @property
    def labels(self) -> Tokens:
        """Decoder target: the subwords and EOS, |Y| tokens in each row."""
        return Tokens(self.target.ids_BT[:, 1:], self.target.lengths_B - 1)

    @property
    def num_real_tokens(self) -> int:
        """Number of source and target tokens with EOS, without BOS and padding; throughput counts these."""
        return int(self.source.lengths_B.sum()) + self.num_labels

    @property
    def num_padded_tokens(self) -> int:
        """Number of source and target tokens with EOS and padding, without BOS; memory and time grow with these."""
        return self.source.ids_BT.numel() + self.target.ids_BT.numel() - len(self.pairs_B)

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to a device, except pairs_B, which only the host reads."""
        return self._replace(source=self.source.to(device), target=self.target.to(device))


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tokens:
    """Return rows of ids, which may be empty, as one padded batch on the device."""
    ids_BT = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], True, PAD_ID)
    return Tokens(ids_BT, torch.tensor([len(row) for row in rows])).to(device)
