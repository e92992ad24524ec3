"""Scores of translations: equation 14 of Wu et al. 2016, and force-decoding scores of given translations.

The first half defines the score that search maximizes. The second half computes it for given translations:
`force_decode` for a batch of ids, `score_pairs` for many pairs, and `pairs_of_line`, which turns a line and its
translation into pairs of ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, Batch, Tokens, padded
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.segments import Translation, cut_line
from gnmt.errors import InputError, format_count
from gnmt.model.interfaces import SearchModel

# The coverage of a source token is at least this much, so that the penalty of one token is at most beta * 13.8 and
# never infinite.
COVERAGE_FLOOR = 1e-6

# A batch of pairs holds at most batch_size times this many padded source and target tokens.
LONG_PAIR_TOKENS = 200


def length_penalty(lengths: Tensor, alpha: float, constant: float) -> Tensor:
    """Return lp(Y) for |Y| = lengths, fp32, of the same shape. With alpha 0 it is 1."""
    return ((constant + lengths.float()) / (constant + 1.0)) ** alpha


def coverage_penalty(coverage: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Return cp(X; Y), fp32, of the shape of `coverage` without its last axis. It is never positive.

    Args:
        coverage: [..., S], attention summed over the target tokens. Each sum is clamped to [COVERAGE_FLOOR, 1].
        mask: bool, broadcasts to `coverage`, True for real source tokens.
        beta: The weight of the penalty.
    """
    logs = coverage.float().clamp(COVERAGE_FLOOR, 1.0).log()
    return beta * logs.masked_fill(~mask, 0.0).sum(-1)


def score(log_prob: Tensor, lengths: Tensor, coverage: Tensor | None, mask: Tensor, options: SearchOptions) -> Tensor:
    """Return equation 14, log P(Y|X) / lp(Y) + cp(X; Y), fp32, of the shape of log_prob.

    Args:
        log_prob: log P(Y|X), natural logarithm.
        lengths: |Y|, of the shape of log_prob.
        coverage: [..., S], attention summed over the target tokens, or None for a model without attention.
        mask: bool, broadcasts to coverage, True for real source tokens.
        options: Alpha, constant and beta of the equation.

    Raises:
        InputError: options.coverage_beta > 0 without coverage.
    """
    check_coverage(options, has_attention=coverage is not None)
    penalty = length_penalty(lengths, options.length_penalty_alpha, options.length_penalty_constant)
    normalized = log_prob.float() / penalty
    if coverage is None or options.coverage_beta == 0:
        return normalized
    return normalized + coverage_penalty(coverage, mask, options.coverage_beta)


def check_coverage(options: SearchOptions, has_attention: bool) -> None:
    """Raise InputError if options.coverage_beta > 0 and the model has no attention."""
    if options.coverage_beta and not has_attention:
        raise InputError(
            f"decoding.coverage_beta is {options.coverage_beta}, but this model has no attention that aligns target "
            "with source tokens, so there is no coverage: set decoding.coverage_beta=0"
        )


class ForceDecodingScores(NamedTuple):
    """Scores of given translations, fp32.

    Attributes:
        log_prob_B: log P(Y|X), natural logarithm.
        score_B: Equation 14.
        token_log_probs_BT: One for each of the |Y| tokens (EOS included), 0 after the end of each row.
        attention_BTS: Attention of each token, 0 after the end of each row; None unless requested.
    """

    log_prob_B: Tensor
    score_B: Tensor
    token_log_probs_BT: Tensor
    attention_BTS: Tensor | None = None


@torch.inference_mode()
def force_decode(
    model: SearchModel, source: Tokens, target: Tokens, options: SearchOptions, attention: bool = False
) -> ForceDecodingScores:
    """Score given token ids with the decoder steps that search takes.

    An ensemble or a quantized model therefore gives the scores that its search reports.

    Args:
        model: A model in evaluation mode, or an ensemble.
        source: Source ids with EOS.
        target: BOS, target ids and, for finished translations, EOS.
        options: The options of equation 14.
        attention: Return the attention too; None if the model has none.

    Raises:
        InputError: options.coverage_beta > 0 and the model has no attention.
    """
    num_rows = len(source.lengths_B)
    batch = Batch(source, target, torch.arange(num_rows), int(target.lengths_B.sum()) - num_rows)
    inputs_BT, labels = batch.target_input.ids_BT, batch.labels
    memory = model.encode(source)
    state = model.start(memory, 1)
    coverage_BS: Tensor | None = None
    token_log_probs, attentions = [], []
    for step in range(labels.ids_BT.shape[1]):
        real_B1 = labels.mask_BT[:, step, None]
        log_probs_B1V, attention_B1S, state = model.step(inputs_BT[:, step : step + 1], state, memory)
        label_B11 = labels.ids_BT[:, step, None, None]
        token_log_probs.append(log_probs_B1V.float().gather(2, label_B11)[:, :, 0].masked_fill(~real_B1, 0.0))
        if attention_B1S is not None:
            attention_BS = attention_B1S[:, 0].float().masked_fill(~real_B1, 0.0)
            coverage_BS = attention_BS if coverage_BS is None else coverage_BS + attention_BS
            attentions += [attention_BS] if attention else []
    token_log_probs_BT = torch.cat(token_log_probs, 1)
    log_prob_B = token_log_probs_BT.sum(1)
    score_B = score(log_prob_B, labels.lengths_B, coverage_BS, memory.mask_BS, options)
    attention_BTS = torch.stack(attentions, 1) if attentions else None
    return ForceDecodingScores(log_prob_B, score_B, token_log_probs_BT, attention_BTS)


class Pair(NamedTuple):
    """Ids to score: `source` with EOS; `target` without BOS, with EOS if it is finished."""

    source: Sequence[int]
    target: Sequence[int]


@dataclass(frozen=True)
class PairScore:
    """The force-decoding score of one translation.

    Attributes:
        log_prob: log P(Y|X), natural logarithm.
        score: Equation 14 of Wu et al. 2016.
        tokens: The scored target ids, EOS included.
        token_log_probs: One for each token. Their sum is log_prob.
        source_tokens: The source ids, with their framing.
        attentions: For each segment fp32 [T, S], one row per target token and one column per source token. Empty if
            attention was not requested.
    """

    log_prob: float
    score: float
    tokens: tuple[int, ...]
    token_log_probs: tuple[float, ...]
    source_tokens: tuple[int, ...] = ()
    attentions: tuple[Tensor, ...] = ()


def scoring_order(pairs: Sequence[Pair]) -> list[int]:
    """Return the indices of the pairs, the longest target first, then the longest source."""
    return sorted(range(len(pairs)), key=lambda index: (-len(pairs[index].target), -len(pairs[index].source)))


def score_pairs(
    model: SearchModel,
    pairs: Sequence[Pair],
    options: SearchOptions,
    device: torch.device,
    batch_size: int,
    attention: bool = False,
) -> Iterator[list[PairScore]]:
    """Score pairs in batches and yield the scores of each batch.

    Args:
        model: A model in evaluation mode, or an ensemble.
        pairs: In the order of `scoring_order`, so that pairs of similar lengths share a batch.
        options: The options of equation 14.
        device: The model's device.
        batch_size: Largest number of pairs in a batch; see also LONG_PAIR_TOKENS.
        attention: Whether the scores hold the attention.
    """
    start = 0
    while start < len(pairs):
        # The first pair of a batch has the most target tokens, but any pair may have the most source tokens.
        end, num_source, num_target = start + 1, len(pairs[start].source), len(pairs[start].target)
        while end < len(pairs) and end - start < batch_size:
            num_source = max(num_source, len(pairs[end].source))
            if (end + 1 - start) * (num_source + num_target) > batch_size * LONG_PAIR_TOKENS:
                break
            end += 1
        yield _score_batch(model, pairs[start:end], options, device, attention)
        start = end


def _score_batch(
    model: SearchModel, pairs: Sequence[Pair], options: SearchOptions, device: torch.device, attention: bool
) -> list[PairScore]:
    scores = force_decode(
        model,
        padded([pair.source for pair in pairs], device),
        padded([(BOS_ID, *pair.target) for pair in pairs], device),
        options,
        attention,
    )
    attention_BTS = None if scores.attention_BTS is None else scores.attention_BTS.cpu()
    columns = zip(
        pairs, scores.log_prob_B.tolist(), scores.score_B.tolist(), scores.token_log_probs_BT.tolist(), strict=True
    )
    return [
        PairScore(
            log_prob,
            pair_score,
            tuple(pair.target),
            tuple(token_log_probs[: len(pair.target)]),
            tuple(pair.source),
            () if attention_BTS is None else (attention_BTS[row, : len(pair.target), : len(pair.source)].clone(),),
        )
        for row, (pair, log_prob, pair_score, token_log_probs) in enumerate(columns)
    ]


def pairs_of_line(
    tokenizers: Tokenizers,
    source: str,
    target: str | Sequence[int] | Translation,
    max_source_tokens: int,
    location: str,
) -> list[Pair]:
    """Return the pairs of ids whose scores add up to the score of a line: none, one, or one for each segment.

    Args:
        tokenizers: The tokenizers of both sides.
        source: The source line.
        target: Text, ids, or a Translation; see Translator.score.
        max_source_tokens: The limit that the line of a Translation was cut with.
        location: `path:line` or `line N`, for messages.

    Raises:
        InputError: No search produces these ids, or the segments of a Translation do not match its source.
    """
    source_ids = tokenizers.framed(tokenizers.source.encode(source) if source.strip() else [])
    if isinstance(target, str):
        return [Pair(source_ids, [*(tokenizers.target.encode(target) if target.strip() else []), EOS_ID])]
    tokens = target.tokens if isinstance(target, Translation) else target
    segment_lengths = target.segment_lengths if isinstance(target, Translation) else ()
    size = tokenizers.target.vocabulary_size
    if wrong := [token for token in tokens if not 0 <= token < size]:
        raise InputError(
            f"{location}: token {wrong[0]} is not in the target vocabulary, whose ids are 0 to {size - 1}: score with "
            "the model that produced it"
        )
    if segment_lengths:
        segments = cut_line(tokenizers, source, max_source_tokens)
        pairs = pairs_of_segments(segments, tokens, segment_lengths, location)
    else:
        pairs = [Pair(source_ids, tokens)] if tokens else []
    for pair in pairs:
        check_possible(pair.target, location)
    return pairs


def pairs_of_segments(
    sources: Sequence[Sequence[int]], tokens: Sequence[int], segment_lengths: Sequence[int], location: str
) -> list[Pair]:
    """Pair each segment of a source line with its target tokens.

    Raises InputError if the numbers of segments or of tokens differ.
    """
    if len(segment_lengths) != len(sources) or sum(segment_lengths) != len(tokens) or min(segment_lengths) < 1:
        raise InputError(
            f"{location}: segment_lengths is {', '.join(map(str, segment_lengths))} for "
            f"{format_count(len(tokens), 'token')} and a source of {format_count(len(sources), 'segment')}, which do "
            "not match: score with the tokenizers and the max_source_tokens of the translation"
        )
    ends = list(accumulate(segment_lengths))
    starts = [0, *ends[:-1]]
    return [Pair(source, tokens[start:end]) for source, start, end in zip(sources, starts, ends, strict=True)]


def check_possible(target: Sequence[int], location: str) -> None:
    """Raise InputError for ids that no search produces: the model has not learned to predict them."""
    for token, name in ((PAD_ID, "padding"), (BOS_ID, "beginning of sentence")):
        if token in target:
            raise InputError(f"{location}: tokens holds {token} ({name}), which no search produces: leave it out")
    if EOS_ID in target[:-1]:
        raise InputError(
            f"{location}: tokens continues after {EOS_ID} (end of sentence), which no search produces: end it there, "
            "or give segment_lengths for a line that was translated in segments"
        )


def joined_score(segments: Sequence[PairScore]) -> PairScore:
    """Return the score of a line, the sum over its segments; see Translation."""
    return PairScore(
        sum((segment.log_prob for segment in segments), 0.0),
        sum((segment.score for segment in segments), 0.0),
        tuple(token for segment in segments for token in segment.tokens),
        tuple(log_prob for segment in segments for log_prob in segment.token_log_probs),
        tuple(token for segment in segments for token in segment.source_tokens),
        tuple(attention_TS for segment in segments for attention_TS in segment.attentions),
    )
