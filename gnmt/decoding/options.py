"""The settings of search and scoring."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from gnmt.config.validate import Range, check_value
from gnmt.errors import InputError

# Bounds far from what anybody wants, within which every score is a finite fp32 number: lp below 1e38 for sentences of
# thousands of tokens, cp above -1e38 for sources of any length.
LARGEST_ALPHA, LARGEST_CONSTANT, LARGEST_BETA = 10, 1_000_000, 1000
LARGEST_LENGTH, LARGEST_FACTOR = 1_000_000, 1000
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-6, 1e6

SCORING_OPTIONS = ("length_penalty_alpha", "length_penalty_constant", "coverage_beta")
"""The options of equation 14."""


@dataclass(frozen=True)
class SearchOptions:
    """How to search. Raises InputError for a value out of its range and for values that exclude each other.

    beam_size: active hypotheses of a sentence (K); 1 is greedy search and ends at the first EOS.
    n_best: hypotheses that are returned, at most beam_size; with sampling, the samples that are drawn.
    length_penalty_alpha, length_penalty_constant, coverage_beta: equation 14 of Wu et al. 2016.
    pruning: None, or nats (beamsize in section 7): a token more than this below the hypothesis's best token is not
        tried, and an active hypothesis whose log P / lp is more than this below that of the best finished one is
        dropped (the paper compares finished ones only).
    stop: `bound`, when no active hypothesis can beat the last of the n_best finished ones (which are then those that
        `exhausted` returns); `first`, when K have finished; `exhausted`, at the length limit.
    max_length_factor, max_length_offset: the limit, see `length_limit`.
    min_length: smallest |Y| (with EOS) that may finish; the limit goes before it.
    no_repeat_ngram: None, or n: a token that would complete n target ids in a row which the hypothesis already holds
        is not tried. EOS always may be.
    sampling: draw n_best independent samples instead of searching for the best; beam_size, pruning and stop play no
        part then. A sample's score and log P are the model's own, whatever it was drawn from.
    temperature: log-probabilities are divided by it before a token is drawn; 1 draws from the model itself.
    top_k: None, or draw only from so many of the most probable tokens (Fan et al. 2018).
    top_p: None, or draw only from the fewest tokens that together hold this probability (Holtzman et al. 2020), after
        temperature and top_k.
    seed: the random numbers are a function of it, the sentence's key, the number of the sample and the step.
    """

    beam_size: Annotated[int, Range(1)] = 5
    length_penalty_alpha: Annotated[float, Range(0, LARGEST_ALPHA)] = 0.6
    length_penalty_constant: Annotated[float, Range(0, LARGEST_CONSTANT)] = 5.0
    coverage_beta: Annotated[float, Range(0, LARGEST_BETA)] = 0.1
    pruning: Annotated[float, Range(0, math.inf)] | None = None
    stop: Literal["bound", "first", "exhausted"] = "bound"
    max_length_factor: Annotated[float, Range(0, LARGEST_FACTOR)] = 2.0
    max_length_offset: Annotated[int, Range(0, LARGEST_LENGTH)] = 10
    min_length: Annotated[int, Range(0, LARGEST_LENGTH)] = 0
    n_best: Annotated[int, Range(1)] = 1
    no_repeat_ngram: Annotated[int, Range(1)] | None = None
    sampling: bool = False
    temperature: Annotated[float, Range(LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE)] = 1.0
    top_k: Annotated[int, Range(1)] | None = None
    top_p: Annotated[float, Range(0, 1, open_low=True)] | None = None
    seed: Annotated[int, Range(0, 2**63 - 1)] = 1

    def __post_init__(self) -> None:
        errors = [
            error
            for name, hint in _annotations().items()
            for error in check_value(getattr(self, name), hint, f"decoding.{name}", lambda *_: [])
        ]
        if errors:
            raise InputError("; ".join(errors))
        if self.sampling:
            return
        if self.n_best > self.beam_size:
            raise InputError(
                f"decoding.n_best is {self.n_best}, but a beam of {self.beam_size} keeps no more than "
                f"{self.beam_size}: raise decoding.beam_size, or set decoding.sampling=true for independent samples"
            )
        asked = [name for name in ("top_k", "top_p") if getattr(self, name) is not None]
        asked += ["temperature"] if self.temperature != 1 else []
        if asked:
            raise InputError(
                f"decoding.{asked[0]} is {getattr(self, asked[0])}, but only sampling draws tokens: "
                f"set decoding.sampling=true, or leave {asked[0]} out"
            )

    @property
    def scoring(self) -> dict[str, float]:
        """The fields that a score depends on, beside the translation."""
        return {name: getattr(self, name) for name in SCORING_OPTIONS}

    @property
    def num_hypotheses(self) -> int:
        """Hypotheses of a sentence that the decoder carries on side by side (K)."""
        return self.n_best if self.sampling else self.beam_size

    def length_limit(self, num_source_tokens: int, num_prefix_tokens: int = 0) -> int:
        """The largest |Y| of a sentence: int(factor * its own source tokens with EOS + offset), and at least 1.

        A forced prefix that reaches the limit raises it by its own length.
        """
        limit = max(1, int(self.max_length_factor * num_source_tokens + self.max_length_offset))
        return limit + num_prefix_tokens if num_prefix_tokens >= limit else limit


@cache
def _annotations() -> dict[str, Any]:
    """The annotation of each option, where its type and range stand."""
    hints = get_type_hints(SearchOptions, include_extras=True)
    return {field.name: hints[field.name] for field in fields(SearchOptions)}
