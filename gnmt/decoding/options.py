"""The settings of search and scoring."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from gnmt.types import InputError, Range


@dataclass(frozen=True)
class SearchOptions:
    """How to search. Raises InputError for a value out of its range.

    beam_size: active hypotheses of a sentence (K); 1 is greedy search and ends at the first EOS.
    length_penalty_alpha, length_penalty_constant, coverage_beta: equation 14 of Wu et al. 2016.
    pruning: None, or nats (beamsize in section 7): a token more than this below the hypothesis's best token is not
        tried, and an active hypothesis whose log P / lp is more than this below that of the best finished one is
        dropped (the paper compares finished ones only).
    stop: `bound`, when no active hypothesis can beat the best finished one (the best is exact, the others of the
        finished set need not be the best of all); `first`, when K have finished; `exhausted`, at the length limit.
    max_length_factor, max_length_offset: the limit, in target tokens with EOS, is
        int(factor * the sentence's own source tokens with EOS + offset), and at least 1.
    min_length: smallest |Y| (with EOS) that may finish; the limit goes before it.
    """

    beam_size: Annotated[int, Range(1)] = 5
    length_penalty_alpha: Annotated[float, Range(0)] = 0.6
    length_penalty_constant: Annotated[float, Range(0)] = 5.0
    coverage_beta: Annotated[float, Range(0)] = 0.1
    pruning: Annotated[float, Range(0)] | None = None
    stop: Literal["bound", "first", "exhausted"] = "bound"
    max_length_factor: Annotated[float, Range(0)] = 2.0
    max_length_offset: Annotated[int, Range(0)] = 10
    min_length: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise InputError(f"decoding.beam_size is {self.beam_size}; it must be 1 or more (1 is greedy search)")
        for name in (
            "length_penalty_alpha",
            "length_penalty_constant",
            "coverage_beta",
            "pruning",
            "max_length_factor",
            "max_length_offset",
            "min_length",
        ):
            value = getattr(self, name)
            if value is not None and not value >= 0:  # so written that NaN is refused
                raise InputError(f"decoding.{name} is {value}; it must be 0 or more")
            if value == math.inf and name != "pruning":
                raise InputError(f"decoding.{name} is {value}; it must be finite")
        if self.stop not in ("bound", "first", "exhausted"):
            raise InputError(f"decoding.stop is {self.stop!r}; it must be bound, first or exhausted")
