"""Options of search and scoring, and their validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from gnmt.config.build import dotted_name, resolve
from gnmt.config.validate import BeamSize, Range, Seed, check_value
from gnmt.errors import InputError, did_you_mean

# Bounds far beyond useful values. Within them every score is a finite fp32 number: lp stays below 1e38 for sentences of
# thousands of tokens, and cp stays above -1e38 for sources of any length.
LARGEST_ALPHA, LARGEST_CONSTANT, LARGEST_BETA = 10, 1_000_000, 1000
LARGEST_LENGTH, LARGEST_FACTOR = 1_000_000, 1000
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-6, 1e6

SCORING_OPTIONS = ("length_penalty_alpha", "length_penalty_constant", "coverage_beta")
"""Names of the options of equation 14."""

SAMPLING_OPTIONS = ("top_k", "top_p", "temperature")
"""Names of the options that only sampling uses."""


@dataclass(frozen=True)
class SearchOptions:
    """Options of beam search, greedy search and sampling.

    Args:
        beam_size: Active hypotheses of a sentence (K). With 1, search is greedy and ends at the first EOS.
        length_penalty_alpha: Alpha of equation 14 of Wu et al. 2016; 0 for no length normalization.
        length_penalty_constant: The 5 of lp(Y) in equation 14.
        coverage_beta: Beta of equation 14; 0 for no coverage penalty.
        pruning: None, or a distance in nats (beamsize in section 7 of the paper). A token further below the best token
            of its hypothesis is left out. An active hypothesis whose log P / lp is further below that of the best
            finished one is dropped; the paper compares finished hypotheses only.
        stop: `bound` stops when no active hypothesis can score better than the last of the n_best finished ones, and
            returns the same hypotheses as `exhausted`; `first` stops when K have finished; `exhausted` stops at the
            length limit.
        max_length_factor: Target tokens per source token in the length limit; see `length_limit`.
        max_length_offset: Target tokens added to the length limit.
        min_length: Smallest |Y| (with EOS) of a finished hypothesis. The length limit takes precedence.
        n_best: Hypotheses returned, at most beam_size. With sampling, the number of samples.
        no_repeat_ngram: None, or n: a token that would complete an n-gram of target ids that the hypothesis already
            holds is suppressed. EOS is never suppressed.
        sampling: Draw n_best independent samples instead of searching for the best hypothesis. beam_size, pruning and
            stop have no effect then. Score and log P of a sample are those of the model, without temperature, top_k
            and top_p.
        temperature: Divides the log-probabilities before a token is drawn; 1 draws from the model.
        top_k: None, or the number of most probable tokens to draw from (Fan et al. 2018).
        top_p: None, or draw from the smallest set of most probable tokens that holds this probability (Holtzman et al.
            2020), after temperature and top_k.
        seed: Seed of sampling. The random numbers are a function of the seed, the sentence's key, the index of the
            sample and the step.

    Raises:
        InputError: A value is out of range, or two options contradict each other.
    """

    beam_size: BeamSize = 5
    length_penalty_alpha: Annotated[float, Range(0, LARGEST_ALPHA)] = 0.6
    length_penalty_constant: Annotated[float, Range(0, LARGEST_CONSTANT)] = 5.0
    coverage_beta: Annotated[float, Range(0, LARGEST_BETA)] = 0.1
    pruning: Annotated[float, Range(0, math.inf)] | None = None
    stop: Literal["bound", "first", "exhausted"] = "bound"
    max_length_factor: Annotated[float, Range(0, LARGEST_FACTOR)] = 2.0
    max_length_offset: Annotated[int, Range(0, LARGEST_LENGTH)] = 10
    min_length: Annotated[int, Range(0, LARGEST_LENGTH)] = 0
    n_best: BeamSize = 1
    no_repeat_ngram: Annotated[int, Range(1)] | None = None
    sampling: bool = False
    temperature: Annotated[float, Range(LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE)] = 1.0
    top_k: Annotated[int, Range(1)] | None = None
    top_p: Annotated[float, Range(0, 1, open_low=True)] | None = None
    seed: Seed = 1

    def __post_init__(self) -> None:
        errors = []
        for name, hint in _annotations().items():
            # The last argument checks components, and no option is one.
            errors += check_value(getattr(self, name), hint, f"decoding.{name}", lambda *_: [])
        if errors:
            raise InputError("; ".join(errors))
        if self.sampling:
            return
        if self.n_best > self.beam_size:
            raise InputError(
                f"decoding.n_best is {self.n_best}, but a beam of {self.beam_size} keeps at most {self.beam_size} "
                "hypotheses: raise decoding.beam_size, or set decoding.sampling=true for independent samples"
            )
        for name in SAMPLING_OPTIONS:
            value = getattr(self, name)
            if value != getattr(SearchOptions, name):
                raise InputError(
                    f"decoding.{name} is {value}, but only sampling draws tokens: set decoding.sampling=true, or leave "
                    f"{name} out"
                )

    @property
    def scoring(self) -> dict[str, float]:
        """The options of equation 14 by name."""
        return {name: getattr(self, name) for name in SCORING_OPTIONS}

    @property
    def num_hypotheses(self) -> int:
        """The number of active hypotheses of a sentence (K)."""
        return self.n_best if self.sampling else self.beam_size

    def length_limit(self, num_source_tokens: int, num_prefix_tokens: int = 0) -> int:
        """Return the largest |Y| of a sentence: int(max_length_factor * source tokens + max_length_offset), at least 1.

        If the prefix reaches this limit by itself, its length is added, so that tokens can follow it.

        Args:
            num_source_tokens: Number of source tokens, with EOS.
            num_prefix_tokens: Number of target tokens that the translation starts with.
        """
        limit = max(1, int(self.max_length_factor * num_source_tokens + self.max_length_offset))
        return limit + num_prefix_tokens if num_prefix_tokens >= limit else limit

    def with_changes(self, changes: Mapping[str, Any]) -> SearchOptions:
        """Return the options with some of them replaced. Raises InputError for an unknown name or a wrong value."""
        names = [field.name for field in fields(self)]
        for name in changes:
            if name not in names:
                advice = did_you_mean(name, names, prefix="decoding")
                raise InputError(f"decoding.{name} is no search option; the options are {', '.join(names)}{advice}")
        return replace(self, **changes)


@cache
def _annotations() -> dict[str, Any]:
    """Return the annotation of each option, which holds its type and range."""
    hints = get_type_hints(SearchOptions, include_extras=True)
    return {field.name: hints[field.name] for field in fields(SearchOptions)}


def build_search_options(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> SearchOptions:
    """Return the options of a config node with some values replaced.

    The node may come from a foreign checkpoint. Its `_target_` is compared and never imported, and SearchOptions checks
    the other keys.

    Args:
        recorded: A node with `_target_`, such as `decoding` of a checkpoint's config.
        given: Values that replace recorded ones.

    Raises:
        InputError: A key is unknown or a value is wrong.
    """
    values = {**recorded, **given}
    target = values.pop("_target_", None)
    if target != dotted_name(SearchOptions):
        raise InputError(f"decoding._target_: found {target}, allowed is {dotted_name(SearchOptions)}")
    return SearchOptions().with_changes(values)


def given_options(node: Any) -> dict[str, Any]:
    """Return the values of a command's `decoding` node that replace those recorded in a checkpoint.

    A node with `_target_` (`decoding=paper`) replaces all; otherwise, null stands for the recorded value.
    """
    options = resolve(node)
    is_complete = "_target_" in options
    return {name: value for name, value in options.items() if is_complete or value is not None}
