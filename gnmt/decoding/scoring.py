"""How good a translation is: equation 14 of Wu et al. 2016, for search and for given translations.

    s(Y, X) = log P(Y|X) / lp(Y) + cp(X; Y)
    lp(Y)    = ((c + |Y|) / (c + 1)) ** alpha                    with c = 5 in the paper
    cp(X; Y) = beta * sum_i log(min(sum_j p_ij, 1))              p_ij: attention of target token j on source token i

|Y| counts target tokens with EOS and without BOS; i runs over the real source tokens, EOS included.
The same functions score finished hypotheses, those that the length limit cut off, and given translations. What search
and forced scoring say of one translation in fp32 differs by at most 1e-5 * (|Y| + beta * |X|): each log-probability and
each logarithm of an attention sum is exact to 1e-5, and beta scales the latter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gnmt.decoding.options import SearchOptions
from gnmt.types import Batch, InputError, Tokens

if TYPE_CHECKING:
    from gnmt.decoding.search import SearchModel

# A source token that received less attention than this counts as having received this much, so that
# the penalty of one token is at most beta * 13.8 and never infinite.
COVERAGE_FLOOR = 1e-6


class ForcedScores(NamedTuple):
    """Scores of given translations, fp32.

    log_prob_B: log P(Y|X), natural logarithm. score_B: equation 14.
    token_log_probs_BT: one for each of the |Y| tokens (EOS included), 0 behind each row's end.
    """

    log_prob_B: Tensor
    score_B: Tensor
    token_log_probs_BT: Tensor


def length_penalty(lengths: Tensor, alpha: float, constant: float) -> Tensor:
    """lp(Y) for |Y| = lengths, any shape; fp32. alpha 0 gives 1: no normalisation."""
    return ((constant + lengths.float()) / (constant + 1.0)) ** alpha


def coverage_penalty(coverage: Tensor, mask: Tensor, beta: float) -> Tensor:
    """cp(X; Y), never positive and never infinite; fp32, the shape of `coverage` without its last axis.

    coverage: [..., S], attention summed over the target tokens. mask: bool, broadcasts to it, True for
    real source tokens. Each sum is clamped to [COVERAGE_FLOOR, 1] before the logarithm.
    """
    logs = coverage.float().clamp(COVERAGE_FLOOR, 1.0).log()
    return beta * logs.masked_fill(~mask, 0.0).sum(-1)


def score(log_prob: Tensor, lengths: Tensor, coverage: Tensor | None, mask: Tensor, options: SearchOptions) -> Tensor:
    """Equation 14, fp32, the shape of log_prob.

    lengths: |Y|, of that shape. coverage: [..., S] or None for a model without attention, for which
    options.coverage_beta must be 0 (InputError otherwise). mask: broadcasts to coverage.
    """
    normalised = log_prob.float() / length_penalty(
        lengths, options.length_penalty_alpha, options.length_penalty_constant
    )
    if options.coverage_beta == 0:
        return normalised
    check_coverage(options, has_attention=coverage is not None)
    assert coverage is not None
    return normalised + coverage_penalty(coverage, mask, options.coverage_beta)


def check_coverage(options: SearchOptions, has_attention: bool) -> None:
    """Raises InputError for a coverage penalty with a model that has no attention."""
    if options.coverage_beta and not has_attention:
        raise InputError(
            f"decoding.coverage_beta is {options.coverage_beta}, but this model has no attention that aligns target "
            "with source tokens, so nothing can be covered; set decoding.coverage_beta=0"
        )


@torch.inference_mode()
def forced_scores(model: SearchModel, source: Tokens, target: Tokens, options: SearchOptions) -> ForcedScores:
    """The scores of given token ids: the steps of search, with every token known beforehand.

    So an ensemble, or a model whose weights are rounded for search, is scored as it searches. source: pieces and EOS.
    target: BOS, pieces and, where the translation is finished, EOS (the framing of gnmt.types.Batch). The model must
    be in evaluation mode.
    """
    num_rows = len(source.lengths_B)
    batch = Batch(source, target, torch.arange(num_rows), int(target.lengths_B.sum()) - num_rows)
    inputs_BT, labels = batch.target_input.ids_BT, batch.labels
    memory = model.encode(source)
    state = model.start(memory, 1)
    coverage_BS: Tensor | None = None
    token_log_probs = []
    for step in range(labels.ids_BT.shape[1]):
        real_B1 = labels.mask_BT[:, step, None]
        log_probs_B1V, attention_B1S, state = model.step(inputs_BT[:, step : step + 1], state, memory)
        label_B11 = labels.ids_BT[:, step, None, None]
        token_log_probs.append(log_probs_B1V.float().gather(2, label_B11)[:, :, 0].masked_fill(~real_B1, 0.0))
        if attention_B1S is not None:
            attention_BS = attention_B1S[:, 0].float().masked_fill(~real_B1, 0.0)
            coverage_BS = attention_BS if coverage_BS is None else coverage_BS + attention_BS
    token_log_probs_BT = torch.cat(token_log_probs, 1)
    log_prob_B = token_log_probs_BT.sum(1)
    score_B = score(log_prob_B, labels.lengths_B, coverage_BS, memory.mask_BS, options)
    return ForcedScores(log_prob_B, score_B, token_log_probs_BT)
