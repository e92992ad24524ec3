"""Which tokens may be tried next."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gnmt.decoding.options import SearchOptions
from gnmt.types import EOS_ID


def rule_out(
    log_probs_BKV: Tensor, tokens_BKT: Tensor, length_B: Tensor, banned_N: Tensor, options: SearchOptions
) -> None:
    """Writes -inf over the tokens that may not come next; the others keep the model's probabilities.

    These are the banned ids, EOS before min_length, and tokens that would repeat an n-gram.
    tokens_BKT: the hypotheses so far, BOS first. length_B: their |Y|.
    """
    if len(banned_N):
        log_probs_BKV.index_fill_(2, banned_N, -math.inf)
    if options.min_length:
        early_B1 = (length_B + 1 < options.min_length)[:, None]
        log_probs_BKV[:, :, EOS_ID].masked_fill_(early_B1, -math.inf)
    if options.no_repeat_ngram is not None:
        rule_out_repeats(log_probs_BKV, tokens_BKT, length_B, options.no_repeat_ngram)


def rule_out_repeats(log_probs_BKV: Tensor, tokens_BKT: Tensor, length_B: Tensor, size: int) -> None:
    """Writes -inf over tokens that would complete `size` ids in a row which the hypothesis already holds.

    Every place of the hypothesis is compared with its last `size - 1` ids at once. EOS ends a hypothesis, so none
    holds it and it is never ruled out.
    """
    said_BKT = tokens_BKT[:, :, 1:]  # BOS is no target token
    num_places = said_BKT.shape[2] - size + 1
    if num_places < 1:
        return
    follower_P = torch.arange(size - 1, size - 1 + num_places, device=said_BKT.device)  # what came after each place
    repeats_BKP = (follower_P < length_B[:, None, None]).expand(*said_BKT.shape[:2], -1)
    for place in range(size - 1):
        recent_B11 = (length_B - (size - 1) + place).clamp(min=0)[:, None, None]
        recent_BK1 = said_BKT.gather(2, recent_B11.expand(-1, said_BKT.shape[1], -1))
        repeats_BKP = repeats_BKP & (said_BKT[:, :, place : place + num_places] == recent_BK1)
    penalty_BKP = torch.zeros_like(repeats_BKP, dtype=log_probs_BKV.dtype).masked_fill_(repeats_BKP, -math.inf)
    # Added and not written: a token may follow several places, of which only some repeat.
    log_probs_BKV.scatter_add_(2, said_BKT[:, :, size - 1 :], penalty_BKP)
