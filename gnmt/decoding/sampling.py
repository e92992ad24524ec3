"""Drawing the next token at random, the same way in any batch.

A token is drawn by the Gumbel-max rule: the largest log p + g, where each token has a Gumbel number g of its own. The
numbers come from no stream but from a hash of what they are for (seed, the sentence's key, sample, step and token), so
neither neighbours nor the order of work can change them; and, unlike the inverse of a cumulated distribution, a last
digit that differs in one log-probability changes the choice only where two tokens are that close.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gnmt.decoding.options import SearchOptions
from gnmt.decoding.topk import best_candidates

# SplitMix64 (Steele, Lea and Flood 2014): the increment and the two multipliers, as signed numbers.
_INCREMENT, _FIRST, _SECOND = (
    number - (1 << 64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def sample(log_probs_BKV: Tensor, keys_B: Tensor, steps_B: Tensor, options: SearchOptions) -> Tensor:
    """One token for each of the K samples of each sentence, int64 [B, K].

    log_probs_BKV: fp32, -inf for tokens that may not be drawn. keys_B, steps_B: int64, what a sentence's numbers
    depend on beside options.seed and the number of the sample.
    """
    # The largest becomes 0 first, which changes no choice: a low temperature would make all of them -inf.
    values_BKN = (log_probs_BKV - log_probs_BKV.amax(2, keepdim=True)) / options.temperature
    tokens_BKN = torch.arange(log_probs_BKV.shape[2], device=log_probs_BKV.device)[None, None]  # 1, 1, V
    if options.top_k is not None:
        values_MN, tokens_MN = best_candidates(values_BKN.flatten(0, 1), min(options.top_k, values_BKN.shape[2]))
        values_BKN = values_MN.view(*log_probs_BKV.shape[:2], -1)
        tokens_BKN = tokens_MN.view(*log_probs_BKV.shape[:2], -1)
    elif options.top_p is not None:
        values_BKN, tokens_BKN = values_BKN.sort(dim=2, descending=True, stable=True)
    if options.top_p is not None:
        probabilities_BKN = values_BKN.softmax(2)
        better_BKN = probabilities_BKN.cumsum(2) - probabilities_BKN  # the probability of all that come before
        values_BKN = values_BKN.masked_fill(better_BKN >= options.top_p, -math.inf)

    samples_K = torch.arange(log_probs_BKV.shape[1], device=log_probs_BKV.device)
    seed = torch.full_like(keys_B, options.seed)
    stream_BK = hashed(hashed(hashed(seed, keys_B), steps_B)[:, None], samples_K)
    drawn_BK1 = (values_BKN + gumbel(stream_BK[:, :, None], tokens_BKN)).argmax(2, keepdim=True)
    return tokens_BKN.expand_as(values_BKN).gather(2, drawn_BK1).squeeze(2)


def gumbel(streams: Tensor, numbers: Tensor) -> Tensor:
    """The Gumbel number of each number in its stream: int64 tensors that broadcast, fp32 out, finite or -inf."""
    # 63 bits as a float keep 24 digits however small they are, so large Gumbel numbers are as fine as small ones.
    bits = _shifted(hashed(streams, numbers), 1)
    uniform = bits.to(torch.float32).mul_(2.0**-63).clamp_(min=2.0**-64)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def hashed(stream: Tensor, number: Tensor) -> Tensor:
    """The number's 64 random bits in that stream, int64; SplitMix64's output for the state stream + n increments."""
    mixed = stream + (number + 1) * _INCREMENT
    mixed = (mixed ^ _shifted(mixed, 30)).mul_(_FIRST)
    mixed = (mixed ^ _shifted(mixed, 27)).mul_(_SECOND)
    return mixed ^ _shifted(mixed, 31)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """A shift to the right that fills with zeros; torch's own repeats the sign."""
    return (bits >> places).bitwise_and_((1 << (64 - places)) - 1)
