"""The hypotheses of a beam, and what happens to them in a step: chosen, grown, kept when finished."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import score


class Hypotheses(NamedTuple):
    """Everything that hypotheses own but the decoder's state; every tensor is [B, K, ...].

    tokens_BKT starts with BOS, so T is |Y| + 1 for active hypotheses; finished ones are padded behind EOS.
    log_prob_BK is -inf for an empty or dropped entry, which can never come back. coverage_BKS stays 0 for a model
    without attention. attention_BKTS has T = |Y|, and no columns where nobody asked for it.
    """

    tokens_BKT: Tensor
    length_BK: Tensor
    log_prob_BK: Tensor
    score_BK: Tensor
    coverage_BKS: Tensor
    attention_BKTS: Tensor

    def take(self, entries_BN: Tensor) -> Hypotheses:
        """The given entries of each sentence's beam: the only place where hypotheses change their places."""
        rows_B1 = torch.arange(entries_BN.shape[0], device=entries_BN.device)[:, None]
        return Hypotheses(*(tensor[rows_B1, entries_BN] for tensor in self))

    def select(self, rows_N: Tensor) -> Hypotheses:
        """The given sentences."""
        return Hypotheses(*(tensor.index_select(0, rows_N) for tensor in self))


def best_candidates(total_BN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row and their columns, the largest first, ties by column.

    `topk` alone may keep and order equal values as it likes. Rows with a tie across the border (frequent in bf16)
    are chosen anew by a key that tells equal values apart. Which of several -inf come along does not matter.
    """
    values_BC, columns_BC = total_BN.topk(count, dim=1)
    border_B1 = values_BC[:, -1:]
    tied_B = ((total_BN >= border_B1).sum(1) > count) & (border_B1[:, 0] > -math.inf)
    rows = tied_B.nonzero().squeeze(1)
    if len(rows):
        width = total_BN.shape[1]
        tied, border = total_BN[rows], border_B1[rows]
        place = width - torch.arange(width, device=total_BN.device)  # 1 or more, falling
        key = torch.where(tied > border, width + 1, torch.where(tied == border, place, 0))
        columns_BC[rows] = key.topk(count, dim=1).indices
    columns_BC = columns_BC.sort(dim=1).values
    values_BC, order_BC = total_BN.gather(1, columns_BC).sort(dim=1, descending=True, stable=True)
    return values_BC, columns_BC.gather(1, order_BC)


def grow(
    active: Hypotheses,
    parents_BN: Tensor,
    tokens_BN: Tensor,
    log_prob_BN: Tensor,
    attention_BKS: Tensor | None,
    mask_BS: Tensor,
    options: SearchOptions,
) -> Hypotheses:
    """The candidates as hypotheses: each its parent's with one more token and that step's attention, and scored."""
    grown = active.take(parents_BN)
    length_BN = grown.length_BK + 1
    coverage_BNS: Tensor | None = None
    if attention_BKS is not None:
        rows_B1 = torch.arange(parents_BN.shape[0], device=parents_BN.device)[:, None]
        attention_BNS = attention_BKS.float()[rows_B1, parents_BN]
        coverage_BNS = grown.coverage_BKS + attention_BNS
        grown = grown._replace(coverage_BKS=coverage_BNS)
        if grown.attention_BKTS.shape[3]:  # somebody asked for it
            history_BNTS = torch.cat([grown.attention_BKTS, attention_BNS[:, :, None]], 2)
            grown = grown._replace(attention_BKTS=history_BNTS)
    return grown._replace(
        tokens_BKT=torch.cat([grown.tokens_BKT, tokens_BN[:, :, None]], 2),
        length_BK=length_BN,
        log_prob_BK=log_prob_BN,
        score_BK=score(log_prob_BN, length_BN, coverage_BNS, mask_BS[:, None], options),
    )


def merge(finished: Hypotheses, candidates: Hypotheses, finishing_BK: Tensor) -> Hypotheses:
    """The best K of the finished set and of the candidates that finish now; ties to those that finished earlier."""
    beam = finishing_BK.shape[1]
    candidates = candidates._replace(
        log_prob_BK=candidates.log_prob_BK.masked_fill(~finishing_BK, -math.inf),
        score_BK=candidates.score_BK.masked_fill(~finishing_BK, -math.inf),
    )
    growth = candidates.tokens_BKT.shape[2] - finished.tokens_BKT.shape[2]
    steps = candidates.attention_BKTS.shape[2] - finished.attention_BKTS.shape[2]
    finished = finished._replace(
        tokens_BKT=F.pad(finished.tokens_BKT, (0, growth)),
        attention_BKTS=F.pad(finished.attention_BKTS, (0, 0, 0, steps)),
    )
    both = Hypotheses(*(torch.cat(pair, 1) for pair in zip(finished, candidates, strict=True)))
    order = both.score_BK.sort(dim=1, descending=True, stable=True).indices
    return both.take(order[:, :beam])
