"""Forced scoring: what the model thinks of translations that somebody gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, Batch, Tokens, padded
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.translation import Translation, cut_line
from gnmt.errors import InputError, counted
from gnmt.model.interfaces import SearchModel

# A source token that received less attention than this counts as having received this much, so that
# the penalty of one token is at most beta * 13.8 and never infinite.
COVERAGE_FLOOR = 1e-6


class ForceDecodingScores(NamedTuple):
    """Scores of given translations, fp32.

    log_prob_B: log P(Y|X), natural logarithm. score_B: equation 14.
    token_log_probs_BT: one for each of the |Y| tokens (EOS included), 0 behind each row's end.
    """

    log_prob_B: Tensor
    score_B: Tensor
    token_log_probs_BT: Tensor


def length_penalty(lengths: Tensor, alpha: float, constant: float) -> Tensor:
    """lp(Y) for |Y| = lengths, any shape; fp32. alpha 0 gives 1: no normalization."""
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
    normalized = log_prob.float() / length_penalty(
        lengths, options.length_penalty_alpha, options.length_penalty_constant
    )
    if options.coverage_beta == 0:
        return normalized
    check_coverage(options, has_attention=coverage is not None)
    assert coverage is not None
    return normalized + coverage_penalty(coverage, mask, options.coverage_beta)


def check_coverage(options: SearchOptions, has_attention: bool) -> None:
    """Raises InputError for a coverage penalty with a model that has no attention."""
    if options.coverage_beta and not has_attention:
        raise InputError(
            f"decoding.coverage_beta is {options.coverage_beta}, but this model has no attention that aligns target "
            "with source tokens, so nothing can be covered; set decoding.coverage_beta=0"
        )


@torch.inference_mode()
def force_decode(model: SearchModel, source: Tokens, target: Tokens, options: SearchOptions) -> ForceDecodingScores:
    """The scores of given token ids: the steps of search, with every token known beforehand.

    So an ensemble, or a model whose weights are rounded for search, is scored as it searches. source: pieces and EOS.
    target: BOS, pieces and, where the translation is finished, EOS (the framing of gnmt.batch.Batch). The model must
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
    return ForceDecodingScores(log_prob_B, score_B, token_log_probs_BT)


# A batch holds `batch_size` pairs of up to so many source and target tokens, and fewer longer ones.
_LONG_PAIR_TOKENS = 200


@dataclass(frozen=True)
class PairScore:
    """How probable a translation is.

    log_prob: log P(Y|X), natural logarithm. score: eq. 14 of Wu et al. 2016. tokens: what was scored, EOS included.
    token_log_probs: one for each token; log_prob is their sum.
    """

    log_prob: float
    score: float
    tokens: tuple[int, ...]
    token_log_probs: tuple[float, ...]


class Pair(NamedTuple):
    """Ids to be scored: `source` with EOS; `target` without BOS, with EOS where it is finished."""

    source: Sequence[int]
    target: Sequence[int]


def score_pairs(
    model: SearchModel,
    pairs: Sequence[Pair],
    options: SearchOptions,
    device: torch.device,
    batch_size: int,
    found: dict[int, PairScore],
) -> None:
    """Adds to `found` the score of each pair whose place it does not hold yet.

    Those of similar lengths are scored together, the longest first.
    """
    order = [place for place in scoring_order(pairs) if place not in found]
    start = 0
    while start < len(order):
        # The first of a batch has the most target tokens, but any may have the most source tokens.
        end, longest = start + 1, [len(side) for side in pairs[order[start]]]
        while end < len(order) and end - start < batch_size:
            longest = [max(length, len(side)) for length, side in zip(longest, pairs[order[end]], strict=True)]
            if (end + 1 - start) * sum(longest) > batch_size * _LONG_PAIR_TOKENS:
                break
            end += 1
        places = order[start:end]
        found.update(zip(places, _score_batch(model, [pairs[n] for n in places], options, device), strict=True))
        start = end


def scoring_order(pairs: Sequence[Pair]) -> list[int]:
    """The places of the pairs in the order in which they are scored."""
    return sorted(range(len(pairs)), key=lambda place: (-len(pairs[place].target), -len(pairs[place].source)))


def _score_batch(
    model: SearchModel, pairs: Sequence[Pair], options: SearchOptions, device: torch.device
) -> list[PairScore]:
    found = force_decode(
        model,
        padded([pair.source for pair in pairs], device),
        padded([(BOS_ID, *pair.target) for pair in pairs], device),
        options,
    )
    columns = (found.log_prob_B.tolist(), found.score_B.tolist(), found.token_log_probs_BT.tolist())
    return [
        PairScore(log_prob, score, tuple(pair.target), tuple(token_log_probs[: len(pair.target)]))
        for pair, log_prob, score, token_log_probs in zip(pairs, *columns, strict=True)
    ]


def pairs_of(
    tokenizers: Tokenizers, source: str, target: str | Sequence[int] | Translation, max_source_tokens: int, place: str
) -> list[Pair]:
    """What of a line is scored at once; see Translator.score.

    Raises InputError, which begins with `place`, for ids that no search writes, and for parts of a cut line that do not
    match the pieces that its source is read in.
    """
    source_ids = tokenizers.framed(tokenizers.source.encode(source) if source.strip() else [])
    if isinstance(target, str):
        return [Pair(source_ids, [*(tokenizers.target.encode(target) if target.strip() else []), EOS_ID])]
    tokens, segment_lengths = (
        (target.tokens, target.segment_lengths) if isinstance(target, Translation) else (target, ())
    )
    size = tokenizers.target.vocabulary_size
    if wrong := [token for token in tokens if not 0 <= token < size]:
        raise InputError(f"{place}: {wrong[0]} is no token: this model has the ids 0 to {size - 1}")
    if segment_lengths:
        pairs = pairs_of_cut_line(cut_line(tokenizers, source, max_source_tokens), tokens, segment_lengths, place)
    else:
        pairs = [Pair(source_ids, tokens)] if tokens else []
    for pair in pairs:
        check_possible(pair.target, place)
    return pairs


def pairs_of_cut_line(
    sources: Sequence[Sequence[int]], tokens: Sequence[int], segment_lengths: Sequence[int], place: str
) -> list[Pair]:
    """The pairs of a translation whose line was cut: each piece of the source with its part of the tokens.

    Raises InputError where there are not as many parts as pieces, or not as many tokens as the parts hold.
    """
    if len(segment_lengths) != len(sources) or sum(segment_lengths) != len(tokens) or min(segment_lengths) < 1:
        raise InputError(
            f"{place}: its {len(tokens)} tokens are parts of {', '.join(map(str, segment_lengths))} and its source is "
            f"read in {counted(len(sources), 'piece')}, so they cannot be matched: score with the tokenizers and the "
            "max_source_tokens that it was translated with"
        )
    ends = list(accumulate(segment_lengths))
    starts = [0, *ends[:-1]]
    return [Pair(source, tokens[start:end]) for source, start, end in zip(sources, starts, ends, strict=True)]


def check_possible(target: Sequence[int], place: str) -> None:
    """Raises InputError for ids that no search writes, of which a model says something, but nothing that means much."""
    for token, name in ((PAD_ID, "padding"), (BOS_ID, "the begin of a sentence")):
        if token in target:
            raise InputError(f"{place}: its tokens hold {token}, {name}, which no search writes: leave it out")
    if EOS_ID in target[:-1]:
        raise InputError(
            f"{place}: its tokens go on behind {EOS_ID}, the end of a sentence, which no search does: end them there "
            "(a line that was translated in pieces says where each ends in segment_lengths)"
        )


def joined_scores(scores: Sequence[PairScore]) -> PairScore:
    """The score of a line from those of its pieces, as translations of cut lines are scored: all are summed."""
    return PairScore(
        sum((score.log_prob for score in scores), 0.0),
        sum((score.score for score in scores), 0.0),
        tuple(token for score in scores for token in score.tokens),
        tuple(log_prob for score in scores for log_prob in score.token_log_probs),
    )
