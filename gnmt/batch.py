"""Padded batches of token ids, and the ids of special tokens.

The name of a tensor in this package ends in its shape: B batch, S source length, T target length, H hidden units,
V vocabulary, K beam. Tensors in this module are batch-major. Masks are bool, True for a real token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gnmt.device import copied_to

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
"""Ids of padding, of unknown text, and of the begin and the end of a sentence."""


class Tokens(NamedTuple):
    """Padded token ids of one side of a batch.

    Attributes:
        ids_BT: Token ids, int64; PAD_ID after the end of each row.
        lengths_B: Number of real tokens in each row, int64.
    """

    ids_BT: Tensor
    lengths_B: Tensor

    @property
    def mask_BT(self) -> Tensor:
        """Mask of real tokens, bool [B, T]."""
        positions_T = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device)
        return positions_T < self.lengths_B[:, None]

    def to(self, device: torch.device) -> Tokens:
        """Copy both tensors to a device."""
        return Tokens(self.ids_BT.to(device, non_blocking=True), self.lengths_B.to(device, non_blocking=True))


class Batch(NamedTuple):
    """A batch of sentence pairs, with the special tokens that training needs.

    Attributes:
        source: Subwords and EOS.
        target: BOS, subwords and EOS. Its lengths are |Y| + 1.
        pairs_B: Index of each row's pair in the preprocessed store, int64.
        num_labels: Number of target tokens in all rows, with EOS and without BOS. It is a number on the host, so
            reading it does not synchronize with the device.
    """

    source: Tokens
    target: Tokens
    pairs_B: Tensor
    num_labels: int

    @property
    def target_input(self) -> Tokens:
        """Input of the decoder: BOS and the subwords, |Y| tokens in each row."""
        lengths_B = self.target.lengths_B - 1
        inputs = Tokens(self.target.ids_BT[:, :-1], lengths_B)
        return Tokens(inputs.ids_BT.masked_fill(~inputs.mask_BT, PAD_ID), lengths_B)

    @property
    def labels(self) -> Tokens:
        """Tokens that the decoder must predict: the subwords and EOS, |Y| tokens in each row."""
        return Tokens(self.target.ids_BT[:, 1:], self.target.lengths_B - 1)

    @property
    def num_real_tokens(self) -> int:
        """Number of source and target tokens with EOS, without BOS and padding. Throughput counts these."""
        return int(self.source.lengths_B.sum()) + self.num_labels

    @property
    def num_padded_tokens(self) -> int:
        """Number of source and target tokens with EOS and padding, without BOS. Memory and time grow with these."""
        return self.source.ids_BT.numel() + self.target.ids_BT.numel() - len(self.pairs_B)

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to a device, except pairs_B, which only the host reads."""
        return self._replace(source=self.source.to(device), target=self.target.to(device))


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tokens:
    """Return rows of token ids as one padded batch on the device. A row may be empty."""
    ids_BT = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=PAD_ID)
    return Tokens(*(copied_to(device, part) for part in (ids_BT, torch.tensor([len(row) for row in rows]))))
