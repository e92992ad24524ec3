"""Forced scoring: what the model thinks of translations that somebody gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch

from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.cutting import cut_line
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import forced_scores
from gnmt.decoding.search import SearchModel, padded
from gnmt.types import BOS_ID, EOS_ID, PAD_ID, InputError, Translation, counted

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
    found = forced_scores(
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
    tokens, part_lengths = (target.tokens, target.part_lengths) if isinstance(target, Translation) else (target, ())
    size = tokenizers.target.vocabulary_size
    if wrong := [token for token in tokens if not 0 <= token < size]:
        raise InputError(f"{place}: {wrong[0]} is no token: this model has the ids 0 to {size - 1}")
    if part_lengths:
        pairs = pairs_of_cut_line(cut_line(tokenizers, source, max_source_tokens), tokens, part_lengths, place)
    else:
        pairs = [Pair(source_ids, tokens)] if tokens else []
    for pair in pairs:
        check_possible(pair.target, place)
    return pairs


def pairs_of_cut_line(
    sources: Sequence[Sequence[int]], tokens: Sequence[int], part_lengths: Sequence[int], place: str
) -> list[Pair]:
    """The pairs of a translation whose line was cut: each piece of the source with its part of the tokens.

    Raises InputError where there are not as many parts as pieces, or not as many tokens as the parts hold.
    """
    if len(part_lengths) != len(sources) or sum(part_lengths) != len(tokens) or min(part_lengths) < 1:
        raise InputError(
            f"{place}: its {len(tokens)} tokens are parts of {', '.join(map(str, part_lengths))} and its source is "
            f"read in {counted(len(sources), 'piece')}, so they cannot be matched: score with the tokenizers and the "
            "max_source_tokens that it was translated with"
        )
    ends = list(accumulate(part_lengths))
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
            "(a line that was translated in pieces says where each ends in part_lengths)"
        )


def joined_scores(scores: Sequence[PairScore]) -> PairScore:
    """The score of a line from those of its pieces, as translations of cut lines are scored: all are summed."""
    return PairScore(
        sum((score.log_prob for score in scores), 0.0),
        sum((score.score for score in scores), 0.0),
        tuple(token for score in scores for token in score.tokens),
        tuple(log_prob for score in scores for log_prob in score.token_log_probs),
    )
