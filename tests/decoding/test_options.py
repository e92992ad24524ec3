"""Search options that are out of range, or contradict each other, are refused."""

from __future__ import annotations

import math

import pytest

from gnmt.config.validate import check_component
from gnmt.decoding.options import SearchOptions
from gnmt.errors import InputError


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beam_size": 0}, r"decoding\.beam_size: found 0, allowed is a whole number of at least 1"),
        ({"beam_size": 2.5}, r"decoding\.beam_size: found 2\.5, allowed is a whole number"),
        (
            {"length_penalty_alpha": -0.1},
            r"decoding\.length_penalty_alpha: found -0\.1, allowed is a number of at leas",
        ),
        ({"coverage_beta": math.nan}, r"decoding\.coverage_beta: found NaN"),
        ({"pruning": -1.0}, r"decoding\.pruning: found -1\.0, allowed is a number of at least 0 or null"),
        ({"coverage_beta": 1e38}, r"decoding\.coverage_beta: found 1e\+38, allowed is a number of .* at most 1000"),
        ({"length_penalty_alpha": 20.0}, r"decoding\.length_penalty_alpha: found 20\.0, .* at most 10"),
        ({"max_length_factor": math.inf}, r"decoding\.max_length_factor: found Infinity, .* at most 1000"),
        ({"min_length": 2**70}, r"decoding\.min_length: found \d+, .* at most 1000000"),
        ({"min_length": -1}, r"decoding\.min_length: found -1"),
        ({"stop": "never"}, r'decoding\.stop: found "never", allowed is one of bound, first, exhausted'),
        ({"n_best": 0}, r"decoding\.n_best: found 0"),
        ({"no_repeat_ngram": 0}, r"decoding\.no_repeat_ngram: found 0"),
        (
            {"sampling": True, "temperature": 0.0},
            r"decoding\.temperature: found 0\.0, .* at least 1e-06",
        ),
        ({"sampling": True, "top_k": 0}, r"decoding\.top_k: found 0"),
        ({"sampling": True, "top_p": 1.5}, r"decoding\.top_p: found 1\.5, allowed is a number above 0 and at most 1"),
        ({"seed": -1}, r"decoding\.seed: found -1"),
        ({"seed": 2**63}, r"decoding\.seed: found 9223372036854775808"),  # the seed is hashed as a signed 64-bit number
        ({"beam_size": 0, "seed": -1}, r"beam_size: found 0.*; decoding\.seed: found -1"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        SearchOptions(**setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beam_size": 2, "n_best": 3}, r"decoding\.n_best is 3, but a beam of 2 .* raise decoding\.beam_size"),
        ({"top_k": 5}, r"decoding\.top_k is 5, but only sampling .* decoding\.sampling=true"),
        ({"top_p": 0.5}, r"decoding\.top_p is 0\.5, but only sampling"),
        ({"temperature": 0.5}, r"decoding\.temperature is 0\.5, but only sampling"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        SearchOptions(**setting)


def test_infinite_pruning_and_more_samples_than_the_beam_is_wide_are_allowed():
    assert SearchOptions(pruning=math.inf).pruning == math.inf
    assert SearchOptions(sampling=True, beam_size=1, n_best=8).num_hypotheses == 8
    assert SearchOptions(beam_size=6, n_best=2).num_hypotheses == 6


def test_contradictions_are_checked_only_with_the_recorded_options():
    """n_best=7 is too large or not, depending on the beam that the checkpoint recorded."""
    node = {"_target_": "gnmt.decoding.options.SearchOptions", "n_best": 7}
    assert check_component(node, "decoding", complete=False) == []
    [error] = check_component(node, "decoding")
    assert error.startswith("decoding.n_best is 7, but a beam of 5")
    [error] = check_component({**node, "n_best": 0}, "decoding", complete=False)
    assert error.startswith("decoding.n_best: found 0")


@pytest.mark.parametrize(
    ("num_source_tokens", "num_prefix_tokens", "limit"),
    [(4, 0, 8), (4, 7, 8), (4, 8, 16), (4, 20, 28), (1, 0, 3)],
)
def test_a_prefix_that_reaches_the_limit_raises_it_by_its_own_length(num_source_tokens, num_prefix_tokens, limit):
    options = SearchOptions(max_length_factor=1.5, max_length_offset=2)
    assert options.length_limit(num_source_tokens, num_prefix_tokens) == limit
