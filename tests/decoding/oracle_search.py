"""A slow and obvious beam search, the oracle of the tests: one sentence, one hypothesis, one token at a time.

It is written from the definitions, independently of gnmt/decoding, and tests compare the two. `enumerate_all` is an
exhaustive search over every sequence up to the length limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from gnmt.batch import BOS_ID, EOS_ID, Tokens
from gnmt.decoding.options import SearchOptions
from gnmt.model.interfaces import DecoderState, Memory

FLOOR = 1e-6


@dataclass
class Path:
    """A hypothesis with all its attention, and the decoder's state after its last token."""

    state: DecoderState
    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    attention: list[list[float]] = field(default_factory=list)

    def normalized(self, options: SearchOptions) -> float:
        constant, alpha = options.length_penalty_constant, options.length_penalty_alpha
        return self.log_prob / ((constant + len(self.tokens)) / (constant + 1)) ** alpha

    def score(self, options: SearchOptions) -> float:
        if options.coverage_beta == 0:
            return self.normalized(options)
        coverage = [sum(column) for column in zip(*self.attention, strict=True)]
        penalty = sum(math.log(max(min(total, 1.0), FLOOR)) for total in coverage)
        return self.normalized(options) + options.coverage_beta * penalty


def limit_of(num_source_tokens: int, options: SearchOptions, num_prefix_tokens: int = 0) -> int:
    limit = max(1, int(options.max_length_factor * num_source_tokens + options.max_length_offset))
    return limit + num_prefix_tokens if num_prefix_tokens >= limit else limit


def has_repeats(tokens: list[int], size: int) -> bool:
    """Return True if the last `size` tokens occur earlier too."""
    grams = [tokens[start : start + size] for start in range(len(tokens) - size + 1)]
    return grams != [] and grams[-1] in grams[:-1]


def continuations(model, path: Path, memory: Memory, suppressed: tuple[int, ...]) -> list[Path]:
    """Return the path extended by each possible next token, in order of token id."""
    last = path.tokens[-1] if path.tokens else BOS_ID
    log_probs, attention, state = model.step(torch.tensor([[last]]), path.state, memory)
    seen = [*path.attention, attention[0, 0].tolist()] if attention is not None else []
    return [
        Path(state, [*path.tokens, token], path.log_prob + log_prob, seen)
        for token, log_prob in enumerate(log_probs[0, 0].tolist())
        if log_prob > -math.inf and token not in suppressed
    ]


def oracle_search(
    model, sentence: list[int], options: SearchOptions, suppressed: tuple[int, ...] = (), prefix: tuple[int, ...] = ()
) -> tuple[list[Path], bool]:
    """Return the n_best results, the best first, and whether they finished."""
    memory, limit, start = _begin(model, sentence, options, len(prefix))
    beam = options.beam_size
    active, finished = [start], []
    for length in range(1, limit + 1):
        candidates = []
        for path in active:
            if length <= len(prefix):
                everything = continuations(model, path, memory, ())
                candidates += [new for new in everything if new.tokens[-1] == prefix[length - 1]]
                continue
            grown = continuations(model, path, memory, suppressed)
            if options.no_repeat_ngram is not None:
                grown = [new for new in grown if not has_repeats(new.tokens, options.no_repeat_ngram)]
            if length < options.min_length:
                grown = [new for new in grown if new.tokens[-1] != EOS_ID]
            if options.pruning is not None and grown:
                best = max(new.log_prob for new in grown)
                grown = [new for new in grown if new.log_prob >= best - options.pruning]
            candidates += grown
        candidates.sort(key=lambda path: -path.log_prob)  # stable: ties stay in order of parent and token
        finished += [path for path in candidates[:beam] if path.tokens[-1] == EOS_ID]
        finished.sort(key=lambda path: -path.score(options))
        del finished[beam:]
        active = [path for path in candidates if path.tokens[-1] != EOS_ID][:beam]
        if options.pruning is not None and finished:
            bar = finished[0].normalized(options) - options.pruning
            active = [path for path in active if path.normalized(options) >= bar]
        if not active or _stops(active, finished, limit, options):
            break
    if finished:
        return finished[: options.n_best], True
    return sorted(active, key=lambda path: -path.score(options))[: options.n_best], False


def _stops(active: list[Path], finished: list[Path], limit: int, options: SearchOptions) -> bool:
    if options.beam_size == 1 and finished:
        return True
    if options.stop == "first":
        return len(finished) >= options.beam_size
    if options.stop == "bound" and len(finished) >= options.n_best:
        longest = ((options.length_penalty_constant + limit) / (options.length_penalty_constant + 1)) ** (
            options.length_penalty_alpha
        )
        return finished[options.n_best - 1].score(options) >= max(path.log_prob for path in active) / longest
    return False


def enumerate_all(model, sentence: list[int], options: SearchOptions, suppressed: tuple[int, ...] = ()) -> list[Path]:
    """Return every finished sequence within the length limit, the best first."""
    memory, limit, start = _begin(model, sentence, options)
    active, finished = [start], []
    for _ in range(limit):
        grown = [new for path in active for new in continuations(model, path, memory, suppressed)]
        finished += [path for path in grown if path.tokens[-1] == EOS_ID]
        active = [path for path in grown if path.tokens[-1] != EOS_ID]
    return sorted(finished, key=lambda path: -path.score(options))


def _begin(model, sentence: list[int], options: SearchOptions, num_prefix: int = 0) -> tuple[Memory, int, Path]:
    ids = torch.tensor([[*sentence, EOS_ID]])
    memory = model.encode(Tokens(ids, torch.tensor([ids.shape[1]])))
    return memory, limit_of(ids.shape[1], options, num_prefix), Path(model.start(memory, 1))
