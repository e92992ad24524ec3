"""Beam search equals enumeration and the plain oracle, and has no defect known from other toolkits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from oracle_search import enumerate_all, limit_of, oracle_search
from stub_models import HistoryModel, MarkovModel, assert_forced, batch_of, searched

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.decoding.options import SearchOptions

SUPPRESSED = (PAD_ID, UNK_ID, BOS_ID)
SENTENCES = [[5, 4], [6, 6, 7, 4, 5], [4], [7, 5, 6], [8, 8, 8, 4], [], [5, 7, 4, 6, 8, 4, 5]]
SHORT = SearchOptions(max_length_factor=1.0, max_length_offset=4, n_best=5)  # keeps the oracle quick
A, B, C, D = 4, 5, 6, 7


def assert_same(hypotheses, expected, finished, options):
    """Assert that tokens are equal, and scores and attention close, hypothesis by hypothesis."""
    assert [list(hypothesis.tokens) for hypothesis in hypotheses] == [path.tokens for path in expected]
    for hypothesis, path in zip(hypotheses, expected, strict=True):
        assert hypothesis.finished == finished
        assert hypothesis.log_prob == pytest.approx(path.log_prob, abs=1e-4)
        assert hypothesis.score == pytest.approx(path.score(options), abs=1e-4)
        torch.testing.assert_close(hypothesis.attention_TS, torch.tensor(path.attention), rtol=0, atol=1e-6)


# The true best, by enumeration


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_an_exhaustive_beam_finds_every_translation_in_order(alpha, beta, seed):
    model = HistoryModel.random(seed, vocabulary_size=7)  # three words and EOS
    options = SearchOptions(
        beam_size=3**4 * 4,  # so many candidates has the last step, so each of its EOS is among the best K
        n_best=3**4 * 4,
        length_penalty_alpha=alpha,
        coverage_beta=beta,
        max_length_factor=1.0,
        max_length_offset=2,
        stop="exhausted",
    )
    sentences = [[4, 5], [6]]
    found = searched(model, sentences, options, suppressed=SUPPRESSED, with_attention=True)
    for hypotheses, sentence in zip(found, sentences, strict=True):
        expected = enumerate_all(model, sentence, options, SUPPRESSED)
        assert len(expected) == sum(3**length for length in range(limit_of(len(sentence) + 1, options)))
        assert_same(hypotheses, expected, True, options)
    for n_best in (1, 3):
        by_bound = searched(model, sentences, replace(options, stop="bound", n_best=n_best), suppressed=SUPPRESSED)
        for hypotheses, all_of_them in zip(by_bound, found, strict=True):
            assert [one.tokens for one in hypotheses] == [one.tokens for one in all_of_them[:n_best]]


# The oracle


@pytest.mark.parametrize("stop", ["bound", "first", "exhausted"])
@pytest.mark.parametrize("beam", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"length_penalty_alpha": 0.0, "coverage_beta": 0.0},
        {"length_penalty_alpha": 1.5, "length_penalty_constant": 0.0, "coverage_beta": 0.5},
        {"pruning": 1.0},
        {"pruning": 3.0, "length_penalty_alpha": 0.2, "coverage_beta": 0.2},
        {"min_length": 4},
        {"n_best": 1},
        {"no_repeat_ngram": 1},
        {"no_repeat_ngram": 2, "min_length": 5, "max_length_offset": 9},
        {"no_repeat_ngram": 3, "pruning": 2.0},
    ],
    ids=str,
)
def test_search_agrees_with_the_oracle(stop, beam, settings):
    options = replace(SHORT, beam_size=beam, stop=stop, **{"n_best": beam, **settings})
    for seed in (1, 2):
        model = HistoryModel.random(seed)
        found = searched(model, SENTENCES, options, suppressed=SUPPRESSED, with_attention=True)
        for hypotheses, sentence in zip(found, SENTENCES, strict=True):
            expected, finished = oracle_search(model, sentence, options, SUPPRESSED)
            assert_same(hypotheses, expected, finished, options)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_unfinished_hypotheses_are_those_of_the_oracle_best_first(beta):
    """With coverage, the best by score is not the best by log P, which orders the beam."""
    model = HistoryModel.random(21)
    model.log_probs_RV[:, EOS_ID] = -math.inf
    options = replace(SHORT, coverage_beta=beta)
    found = searched(model, SENTENCES, options, suppressed=SUPPRESSED, with_attention=True)
    for hypotheses, sentence in zip(found, SENTENCES, strict=True):
        expected, _ = oracle_search(model, sentence, options, SUPPRESSED)
        assert len(expected) == options.beam_size
        assert_same(hypotheses, expected, False, options)


def test_search_agrees_with_the_oracle_where_values_tie():
    """Sums of few dyadic numbers tie often; the lower parent and then the lower token come first."""
    generator = torch.Generator().manual_seed(3)
    for beam in (1, 2, 4):
        model = HistoryModel(-torch.randint(1, 5, (211, 12), generator=generator) / 4, None)
        scores = {"length_penalty_alpha": 0.0, "coverage_beta": 0.0}
        options = replace(SHORT, beam_size=beam, n_best=beam, stop="exhausted", **scores)
        for hypotheses, sentence in zip(searched(model, SENTENCES, options), SENTENCES, strict=True):
            expected, _ = oracle_search(model, sentence, options)
            assert [list(hypothesis.tokens) for hypothesis in hypotheses] == [path.tokens for path in expected]
            assert [hypothesis.score for hypothesis in hypotheses] == [path.log_prob for path in expected]


# Greedy


@pytest.mark.parametrize("stop", ["bound", "first", "exhausted"])
def test_beam_of_one_is_greedy(stop):
    options = replace(SHORT, beam_size=1, n_best=1, stop=stop)
    model = HistoryModel.random(7)
    found = searched(model, SENTENCES, options, suppressed=SUPPRESSED)
    some_finished = 0
    for [hypothesis], sentence in zip(found, SENTENCES, strict=True):
        memory = model.encode(batch_of([sentence]))
        state, tokens = model.start(memory, 1), [BOS_ID]
        while tokens[-1] != EOS_ID and len(tokens) <= limit_of(len(sentence) + 1, options):
            log_probs, _, state = model.step(torch.tensor([tokens[-1:]]), state, memory)
            log_probs[..., list(SUPPRESSED)] = -math.inf
            tokens.append(int(log_probs.argmax()))
        assert list(hypothesis.tokens) == tokens[1:]
        some_finished += hypothesis.finished
    assert some_finished > 0


# Independence of other sentences


def test_the_length_limit_is_that_of_the_sentence_itself():
    """Computed from the padded width, the output depends on what else is in the batch (fairseq, JoeyNMT)."""
    model = MarkovModel({BOS_ID: {A: 1.0}, A: {A: 1.0}})  # never ends
    options = SearchOptions(max_length_factor=1.5, max_length_offset=2)
    found = searched(model, [[A], [A] * 20, [A] * 4], options)
    assert [len(hypotheses[0].tokens) for hypotheses in found] == [5, 33, 9]  # int(1.5 * (n + 1) + 2)
    assert not any(hypotheses[0].finished for hypotheses in found)


def test_a_limit_of_0_still_allows_one_token():
    model = MarkovModel({BOS_ID: {A: 0.7, EOS_ID: 0.3}, A: {EOS_ID: 1.0}})
    options = SearchOptions(max_length_factor=0.0, max_length_offset=0)
    [[hypothesis]] = searched(model, [[A]], options)
    assert hypothesis.tokens == (EOS_ID,)
    assert hypothesis.finished


def test_done_sentences_leave_the_batch_and_the_beam_keeps_its_width():
    model = HistoryModel.random(13)
    searched(model, SENTENCES, replace(SHORT, beam_size=3, n_best=3, stop="exhausted"), suppressed=SUPPRESSED)
    rows = [num_rows for num_rows, _ in model.calls]
    assert {beam for _, beam in model.calls} == {3}
    assert rows == sorted(rows, reverse=True)
    limits = [limit_of(len(sentence) + 1, SHORT) for sentence in SENTENCES]
    assert rows == [sum(limit >= length for limit in limits) for length in range(1, max(limits) + 1)]


# Scores and attention of hypotheses


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize(
    "settings", [{}, {"coverage_beta": 1.0, "length_penalty_alpha": 1.0}, {"max_length_offset": 0}]
)
def test_every_reported_score_is_the_force_decoding_score_of_its_tokens(beam, settings):
    """This fails when attention is not reordered with its hypothesis (NVIDIA), when |Y| counts BOS, and when unfinished
    hypotheses are scored by another formula. Tokens are scored again, not text.
    """
    options = replace(SHORT, beam_size=beam, n_best=beam, **settings)
    model = HistoryModel.random(17)
    found = searched(model, SENTENCES, options, suppressed=SUPPRESSED)
    assert {hypothesis.finished for some in found for hypothesis in some} >= {True}
    assert_forced(model, SENTENCES, found, options)


def test_attention_has_a_row_for_each_token_and_a_column_for_each_real_source_token():
    model = HistoryModel.random(19)
    found = searched(model, SENTENCES, SHORT, suppressed=SUPPRESSED, with_attention=True)
    for hypotheses, sentence in zip(found, SENTENCES, strict=True):
        for hypothesis in hypotheses:
            assert hypothesis.attention_TS.shape == (len(hypothesis.tokens), len(sentence) + 1)
            torch.testing.assert_close(hypothesis.attention_TS.sum(1), torch.ones(len(hypothesis.tokens)))


def test_attention_is_recorded_only_on_request():
    [[hypothesis, *_], *_] = searched(HistoryModel.random(19), SENTENCES, SHORT, suppressed=SUPPRESSED)
    assert hypothesis.attention_TS is None


def test_finished_hypotheses_do_not_narrow_the_beam():
    """With K = 2 and EOS the best first token, both A and B stay active; EOS in the beam would displace B."""
    model = MarkovModel({BOS_ID: {EOS_ID: 0.5, A: 0.3, B: 0.2}, A: {C: 0.5, D: 0.5}, B: {EOS_ID: 1.0}})
    options = SearchOptions(beam_size=2, n_best=2, length_penalty_alpha=0.0, coverage_beta=0.0, stop="exhausted")
    [hypotheses] = searched(model, [[A]], options)
    assert [hypothesis.tokens for hypothesis in hypotheses] == [(EOS_ID,), (B, EOS_ID)]


def test_an_eos_candidate_outside_the_best_k_does_not_finish():
    model = MarkovModel({BOS_ID: {A: 0.5, B: 0.3, EOS_ID: 0.2}, A: {EOS_ID: 1.0}, B: {EOS_ID: 1.0}})
    options = SearchOptions(beam_size=2, n_best=2, length_penalty_alpha=0.0, coverage_beta=0.0, stop="exhausted")
    [hypotheses] = searched(model, [[A]], options)
    assert [hypothesis.tokens for hypothesis in hypotheses] == [(A, EOS_ID), (B, EOS_ID)]
