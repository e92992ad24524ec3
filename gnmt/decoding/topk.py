"""The best candidates of wide rows, exactly and without a full scan by `topk`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Columns whose largest value stands for all of them in a first round.
_BLOCK = 128


def best_candidates(total_BN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest values of each row, fp32, and their columns, int64, the largest first, ties by column.

    total_BN: fp32 or narrower, at least `count` wide. The result is a function of the row alone; no value is read by
    the host.

    `topk` visits a row of vocabulary size times beam element by element, and keeps and orders equal values as it
    likes. Here a row is first cut into blocks: an element that is one of the best `count` lies in one of the `count`
    blocks with the largest maxima (ties by place), since otherwise each of these holds an element that goes before it.
    """
    assert total_BN.dtype != torch.float64, "the keys below hold 32 bits of a value"
    total_BN = total_BN.float()
    width = total_BN.shape[1]
    num_blocks = width // _BLOCK
    if num_blocks <= 2 * count:
        columns_BC = _best_columns(total_BN, torch.arange(width, device=total_BN.device), count)
        return total_BN.gather(1, columns_BC), columns_BC
    blocked_BN = total_BN
    if width % _BLOCK:
        num_blocks += 1
        blocked_BN = F.pad(total_BN, (0, num_blocks * _BLOCK - width), value=float("-inf"))
    blocks_BGW = blocked_BN.view(-1, num_blocks, _BLOCK)
    numbers_G = torch.arange(num_blocks, device=total_BN.device)
    chosen_BC = _best_columns(blocks_BGW.amax(2), numbers_G, count)
    inside_W = torch.arange(_BLOCK, device=total_BN.device)
    columns_BM = (chosen_BC[:, :, None] * _BLOCK + inside_W).flatten(1)
    values_BM = blocked_BN.gather(1, columns_BM)
    best_BC = _best_columns(values_BM, columns_BM, count)
    return blocked_BN.gather(1, best_BC), best_BC


def _best_columns(values_BN: Tensor, columns: Tensor, count: int) -> Tensor:
    """The columns of the `count` largest values, the largest first, ties by column; columns: [N] or [B, N]."""
    # One integer for value and place: the bits of a float, read as an integer and mirrored for negative
    # numbers, are in the order of the floats. Adding 0 makes one zero of two; NaN comes first, as in topk.
    infinity = float("inf")
    bits_BN = (values_BN + 0.0).nan_to_num(infinity, infinity, -infinity).view(torch.int32)
    ordered_BN = bits_BN ^ ((bits_BN >> 31) & 0x7FFFFFFF)
    keys_BN = (ordered_BN.long() << 32) | (0xFFFFFFFF - columns)
    best_BC = keys_BN.topk(count, dim=1).values
    return 0xFFFFFFFF - (best_BC & 0xFFFFFFFF)
