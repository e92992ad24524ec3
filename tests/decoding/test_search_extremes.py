"""With options at the ends of their ranges, scores stay finite and correct."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from stub_models import HistoryModel, assert_forced, searched

from gnmt.batch import BOS_ID, PAD_ID, UNK_ID
from gnmt.decoding.options import (
    HIGHEST_TEMPERATURE,
    LARGEST_ALPHA,
    LARGEST_BETA,
    LARGEST_CONSTANT,
    LARGEST_LENGTH,
    LOWEST_TEMPERATURE,
    SearchOptions,
)

SUPPRESSED = (PAD_ID, UNK_ID, BOS_ID)
SENTENCES = [[4, 5], [6, 4, 5, 7, 8, 4], [4] * 30]
penalties = {
    "length_penalty_alpha": st.sampled_from([0.0, 1e-45, 1.0, float(LARGEST_ALPHA)]),
    "length_penalty_constant": st.sampled_from([0.0, 1e-45, float(LARGEST_CONSTANT)]),
    "coverage_beta": st.sampled_from([0.0, 1e-45, 1.0, float(LARGEST_BETA)]),
    "min_length": st.sampled_from([0, LARGEST_LENGTH]),
    "no_repeat_ngram": st.sampled_from([None, 2**63 - 1]),
}


def check(model, options):
    """Assert that scores are finite, sorted, and those of their ids."""
    found = searched(model, SENTENCES, options, suppressed=SUPPRESSED)
    for hypotheses in found:
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert all(math.isfinite(score) for score in scores)
        assert options.sampling or scores == sorted(scores, reverse=True)
        assert all(hypothesis.tokens for hypothesis in hypotheses)
    assert_forced(model, SENTENCES, found, options)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    options=st.builds(
        SearchOptions,
        beam_size=st.integers(2, 4),
        n_best=st.integers(1, 2),
        max_length_factor=st.sampled_from([0.0, 2.0]),
        pruning=st.sampled_from([None, 0.0, 1e-45, 1e38, 1e300, math.inf]),
        stop=st.sampled_from(["bound", "first", "exhausted"]),
        **penalties,
    ),
    seed=st.integers(0, 9),
)
def test_beam_search_at_the_ends_of_its_options(options, seed):
    """A penalty of 1e38 once made every score -inf, which was taken for a beam without a result."""
    check(HistoryModel.random(seed), options)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(
    options=st.builds(
        SearchOptions,
        sampling=st.just(True),
        n_best=st.integers(1, 3),
        temperature=st.sampled_from([LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE]),
        top_k=st.sampled_from([None, 1, 2**63 - 1]),
        top_p=st.sampled_from([None, 1e-45, 1.0]),
        **penalties,
    ),
    seed=st.integers(0, 9),
)
def test_sampling_at_the_ends_of_its_options(options, seed):
    """A temperature that is 0 in fp32 once divided 0 by 0."""
    check(HistoryModel.random(seed), options)
