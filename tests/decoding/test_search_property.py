"""Search on random small models with random options agrees with the oracle and with force-decoding scores."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_search import enumerate_all, oracle_search
from random_models import VOCABULARY_SIZE, has_attention, models
from stub_models import CPU, HistoryModel, assert_forced, searched

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.decoding.engine.inference_copy import inference_copy
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.search import search
from gnmt.device import choose_precision

SUPPRESSED = (PAD_ID, UNK_ID, BOS_ID)


# Every combination of alpha, beta and beam


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_a_wide_beam_finds_the_true_order_and_a_narrow_one_true_scores(alpha, beta):
    """Three words and up to five tokens give 121 translations, which are scored one by one."""
    scores = {"length_penalty_alpha": alpha, "coverage_beta": beta}
    limits = {"max_length_factor": 1.0, "max_length_offset": 2, "stop": "exhausted"}
    model, sentence = HistoryModel.random(31, vocabulary_size=7), [4, 5]
    truth = {}
    for path in enumerate_all(model, sentence, SearchOptions(**scores, **limits), SUPPRESSED):
        truth[tuple(path.tokens)] = path.score(SearchOptions(**scores))
    assert len(truth) == sum(3**length for length in range(5))
    for beam in (1, 2, 3, 400):
        options = SearchOptions(beam_size=beam, n_best=beam, **scores, **limits)
        [hypotheses] = searched(model, [sentence], options, suppressed=SUPPRESSED)
        found = [(hypothesis.tokens, hypothesis.score) for hypothesis in hypotheses if hypothesis.finished]
        assert [score for _, score in found] == pytest.approx([truth[tokens] for tokens, _ in found], abs=1e-4)
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
        assert searched(model, [sentence], replace(options, pruning=float("inf")), suppressed=SUPPRESSED) == [
            hypotheses
        ]
    assert [tokens for tokens, _ in found] == sorted(truth, key=lambda tokens: -truth[tokens])


def test_pruning_of_zero_follows_each_hypothesis_best_token_alone():
    for seed, beam in itertools.product(range(5), (1, 2, 3, 400)):
        model = HistoryModel.random(seed, vocabulary_size=7)
        options = SearchOptions(beam_size=beam, pruning=0.0, max_length_factor=1.0, max_length_offset=2)
        [[pruned]] = searched(model, [[4, 5]], options, suppressed=SUPPRESSED)
        [[greedy]] = searched(model, [[4, 5]], replace(options, beam_size=1, pruning=None), suppressed=SUPPRESSED)
        assert pruned.tokens == greedy.tokens


# Random models


@st.composite
def search_options(draw):
    """Draw every option of beam search; short translations keep the oracle quick."""
    beam = draw(st.integers(1, 4))
    return SearchOptions(
        beam_size=beam,
        n_best=draw(st.integers(1, beam)),
        length_penalty_alpha=draw(st.sampled_from([0.0, 0.6, 1.0])),
        length_penalty_constant=draw(st.sampled_from([0.0, 5.0])),
        coverage_beta=draw(st.sampled_from([0.0, 0.2])),
        pruning=draw(st.sampled_from([None, 0.5, 3.0])),
        stop=draw(st.sampled_from(["bound", "first", "exhausted"])),
        max_length_factor=draw(st.sampled_from([0.5, 1.0])),
        max_length_offset=draw(st.integers(0, 4)),
        min_length=draw(st.integers(0, 3)),
        no_repeat_ngram=draw(st.sampled_from([None, 2, 3])),
    )


def possible(options, model):
    """Return the options without coverage penalty for a model without attention."""
    return options if has_attention(model) else replace(options, coverage_beta=0.0)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(model=models(), options=search_options(), sentence=st.lists(st.integers(4, VOCABULARY_SIZE - 1), max_size=6))
def test_an_inference_copy_finds_what_the_model_finds(model, options, sentence):
    """In fp32, tokens are equal, or scores so close that rounding decides."""
    model, options = model.float(), possible(options, model)
    settings = {"device": CPU, "suppressed": SUPPRESSED, "batch_size": 2}
    sources = [[*sentence, EOS_ID], [4, EOS_ID]]
    plain = search(model, sources, options, **settings)
    fast = search(inference_copy(model, choose_precision("fp32", CPU)), sources, options, **settings)
    for one, other in zip(plain, fast, strict=True):
        for hypothesis, of_engine in zip(one.hypotheses, other.hypotheses, strict=True):
            assert hypothesis.score == pytest.approx(of_engine.score, abs=1e-4)


tokens = st.integers(4, VOCABULARY_SIZE - 1)
sentences = st.lists(st.tuples(st.lists(tokens, max_size=6), st.lists(tokens, max_size=3)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(model=models(), options=search_options(), pairs=sentences, batch_size=st.integers(1, 6))
def test_search_equals_the_oracle_and_reports_force_decoding_scores(model, options, pairs, batch_size):
    options = possible(options, model)
    some = [sentence for sentence, _ in pairs]
    prefixes = [prefix for _, prefix in pairs]
    settings = {"prefixes": prefixes, "suppressed": SUPPRESSED, "batch_size": batch_size, "with_attention": True}
    found = searched(model, some, options, **settings)
    for sentence, prefix, hypotheses in zip(some, prefixes, found, strict=True):
        with torch.inference_mode():
            expected, finished = oracle_search(model, sentence, options, SUPPRESSED, tuple(prefix))
        assert [list(hypothesis.tokens) for hypothesis in hypotheses] == [path.tokens for path in expected]
        for hypothesis, path in zip(hypotheses, expected, strict=True):
            assert hypothesis.finished == finished
            assert hypothesis.score == pytest.approx(path.score(options), abs=1e-4)
            if has_attention(model):
                expected_TS = torch.tensor(path.attention, dtype=torch.float32)
                torch.testing.assert_close(hypothesis.attention_TS, expected_TS, rtol=0, atol=1e-6)
            else:
                assert hypothesis.attention_TS is None
    assert_forced(model, some, found, options)


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(model=models(), pairs=sentences, batch_size=st.integers(1, 6), top_k=st.sampled_from([None, 3]))
def test_samples_keep_their_prefix_and_report_force_decoding_scores(model, pairs, batch_size, top_k):
    options = SearchOptions(sampling=True, n_best=3, top_k=top_k, max_length_factor=1.0, coverage_beta=0.2)
    options = possible(options, model)
    some, prefixes = zip(*pairs, strict=True)
    sources = [[*sentence, EOS_ID] for sentence in some]
    settings = {"device": CPU, "suppressed": SUPPRESSED, "prefixes": prefixes}
    found = [result.hypotheses for result in search(model, sources, options, batch_size=batch_size, **settings)]
    alone = search(model, sources[-1:], options, **settings | {"prefixes": prefixes[-1:]}, keys=[len(sources) - 1])
    assert [one.tokens for one in alone[0].hypotheses] == [one.tokens for one in found[-1]]
    for prefix, hypotheses in zip(prefixes, found, strict=True):
        assert len(hypotheses) == 3
        assert all(list(hypothesis.tokens[: len(prefix)]) == prefix for hypothesis in hypotheses)
    assert_forced(model, some, found, options)
