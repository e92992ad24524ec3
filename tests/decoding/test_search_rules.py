"""Scores, stopping, coverage, pruning and wrong input of beam search, on cases worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from stub_models import HistoryModel, MarkovModel, searched

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.decoding.options import SearchOptions
from gnmt.errors import InputError

SUPPRESSED = (PAD_ID, UNK_ID, BOS_ID)
SENTENCES = [[5, 4], [6, 6, 7, 4, 5], [4], [7, 5, 6], [8, 8, 8, 4], [], [5, 7, 4, 6, 8, 4, 5]]
SHORT = SearchOptions(max_length_factor=1.0, max_length_offset=4, n_best=5)
A, B, C, D = 4, 5, 6, 7


# Scores and stopping


def test_the_score_counts_eos_and_not_bos():
    model = MarkovModel({BOS_ID: {A: 0.5}, A: {B: 0.5}, B: {EOS_ID: 0.5}})
    [[hypothesis]] = searched(model, [[A]], SearchOptions(length_penalty_alpha=0.6, coverage_beta=0.0))
    assert hypothesis.tokens == (A, B, EOS_ID)
    assert hypothesis.score == pytest.approx(3 * math.log(0.5) / ((5 + 3) / 6) ** 0.6, abs=1e-6)


def test_a_longer_translation_may_win_after_the_first_one_finished():
    """The short translation has the better log P but the worse score; stopping at the first EOS would return it."""
    longer = {A: {B: 1.0}, B: {C: 1.0}, C: {EOS_ID: 1.0}}
    model = MarkovModel({BOS_ID: {EOS_ID: 0.52, A: 0.48}, **longer})
    options = SearchOptions(beam_size=2, n_best=2, length_penalty_alpha=1.0, coverage_beta=0.0)
    [by_bound] = searched(model, [[A]], options)
    assert by_bound[0].tokens == (A, B, C, EOS_ID)
    assert by_bound[0].log_prob < by_bound[1].log_prob


def test_the_bound_gives_the_best_of_exhausted_search_in_fewer_steps():
    steps_by_bound = steps_exhausted = 0
    for seed in range(30):
        by_bound, exhausted = HistoryModel.random(seed), HistoryModel.random(seed)
        options = SearchOptions(beam_size=4, length_penalty_alpha=1.0, max_length_factor=1.0, max_length_offset=6)
        best = searched(by_bound, SENTENCES, options, suppressed=SUPPRESSED)
        all_of_them = searched(exhausted, SENTENCES, replace(options, stop="exhausted"), suppressed=SUPPRESSED)
        for short, long in zip(best, all_of_them, strict=True):
            assert (short[0].tokens, short[0].score) == (long[0].tokens, long[0].score)
        steps_by_bound += sum(rows for rows, _ in by_bound.calls)
        steps_exhausted += sum(rows for rows, _ in exhausted.calls)
    assert steps_by_bound < 0.8 * steps_exhausted


def test_first_stops_when_k_have_finished():
    model = MarkovModel({BOS_ID: {A: 0.6, EOS_ID: 0.4}, A: {A: 0.6, EOS_ID: 0.4}})
    options = SearchOptions(beam_size=3, n_best=3, stop="first", coverage_beta=0.0)
    [hypotheses] = searched(model, [[A] * 9], options)
    assert sorted(len(hypothesis.tokens) for hypothesis in hypotheses) == [1, 2, 3]


def test_unfinished_hypotheses_are_returned_only_if_none_finished_and_are_flagged():
    """They are scored by the same formula, with |Y| the number of tokens produced."""
    endless = MarkovModel({BOS_ID: {A: 0.5, B: 0.5}, A: {A: 0.5, B: 0.5}, B: {A: 1.0}})
    options = SearchOptions(beam_size=2, n_best=2, max_length_factor=1.0, max_length_offset=1, coverage_beta=0.0)
    [hypotheses] = searched(endless, [[A]], options)
    assert len(hypotheses) == 2
    for hypothesis in hypotheses:
        assert not hypothesis.finished
        assert len(hypothesis.tokens) == 3
        assert hypothesis.score == pytest.approx(hypothesis.log_prob / ((5 + 3) / 6) ** 0.6, abs=1e-6)
    late = MarkovModel({BOS_ID: {A: 0.9, EOS_ID: 0.1}, A: {A: 1.0}})  # the finished one is far worse
    [[hypothesis]] = searched(late, [[A]], options)
    assert hypothesis.finished
    assert hypothesis.tokens == (EOS_ID,)


def test_no_translation_is_shorter_than_min_length():
    model = HistoryModel.random(23)
    found = searched(model, SENTENCES, replace(SHORT, min_length=5), suppressed=SUPPRESSED)
    assert all(len(hypothesis.tokens) >= 5 for hypotheses in found for hypothesis in hypotheses)
    unbounded = searched(model, SENTENCES, SHORT, suppressed=SUPPRESSED)
    assert any(len(hypothesis.tokens) < 5 for hypotheses in unbounded for hypothesis in hypotheses)


# Coverage


def test_a_source_token_without_attention_has_a_finite_penalty():
    """Without the floor of 1e-6, log(0) gives -inf (OpenNMT-py#1267)."""
    energies = torch.full((211, 64), -math.inf)
    energies[:, 0] = 0.0
    model = HistoryModel(HistoryModel.random(29).log_probs_RV, energies)
    options = SearchOptions(coverage_beta=0.1, length_penalty_alpha=0.0)
    [[hypothesis, *_], _] = searched(model, [[A, B, C], [A] * 8], options, suppressed=SUPPRESSED)
    assert hypothesis.score == pytest.approx(hypothesis.log_prob + 0.1 * 3 * math.log(1e-6), abs=1e-4)


@pytest.mark.parametrize("beta", [0.1, 0.0])
def test_a_model_without_attention_cannot_have_a_coverage_penalty(beta):
    model = HistoryModel.random(31, attention=False)
    options = replace(SHORT, coverage_beta=beta)
    if beta:
        with pytest.raises(InputError, match=r"decoding\.coverage_beta is 0\.1.*set decoding\.coverage_beta=0"):
            searched(model, SENTENCES, options, suppressed=SUPPRESSED)
        return
    found = searched(model, SENTENCES, options, suppressed=SUPPRESSED, with_attention=True)
    assert [hypotheses[0].attention_TS for hypotheses in found] == [None] * len(SENTENCES)


# Pruning


def test_infinite_pruning_prunes_nothing():
    model = HistoryModel.random(37)
    everything = searched(model, SENTENCES, SHORT, suppressed=SUPPRESSED)
    assert searched(model, SENTENCES, replace(SHORT, pruning=math.inf), suppressed=SUPPRESSED) == everything


def test_zero_pruning_tries_only_the_best_token():
    model = HistoryModel.random(37)
    greedy = searched(model, SENTENCES, replace(SHORT, beam_size=1, n_best=1), suppressed=SUPPRESSED)
    pruned = searched(model, SENTENCES, replace(SHORT, pruning=0.0), suppressed=SUPPRESSED)
    assert [[hypothesis.tokens for hypothesis in some] for some in pruned] == [[some[0].tokens] for some in greedy]


def test_hypotheses_far_below_the_best_finished_one_are_pruned():
    """Every token passes the rule for tokens; A B EOS is pruned by its sum, and found with a larger distance."""
    model = MarkovModel({BOS_ID: {EOS_ID: 0.7, A: 0.3}, A: {B: 0.5, C: 0.5}, B: {EOS_ID: 1.0}, C: {EOS_ID: 1.0}})
    scores = {"length_penalty_alpha": 0.0, "coverage_beta": 0.0}
    options = SearchOptions(beam_size=3, n_best=3, stop="exhausted", pruning=1.0, **scores)
    [narrow] = searched(model, [[A]], options)
    [wide] = searched(model, [[A]], replace(options, pruning=2.0))
    assert [hypothesis.tokens for hypothesis in narrow] == [(EOS_ID,)]
    assert [hypothesis.tokens for hypothesis in wide] == [(EOS_ID,), (A, B, EOS_ID), (A, C, EOS_ID)]


# Models


def test_suppressed_tokens_are_never_produced_and_change_no_other_probability():
    model = MarkovModel({BOS_ID: {UNK_ID: 0.9, A: 0.1}, A: {UNK_ID: 0.9, EOS_ID: 0.1}})
    [[hypothesis]] = searched(model, [[A]], SearchOptions(), suppressed=SUPPRESSED)
    assert hypothesis.tokens == (A, EOS_ID)
    assert hypothesis.log_prob == pytest.approx(2 * math.log(0.1), abs=1e-6)


def test_the_attention_and_the_state_of_a_model_are_not_written_to():
    """A model may return views of its own tensors; search may change only the log-probabilities."""
    model = HistoryModel.random(41)
    step, returned = model.step, []

    def recording_step(*arguments):
        log_probs, attention, state = step(*arguments)
        returned.extend((tensor, tensor.clone()) for tensor in (attention, *state.tensors.values()))
        return log_probs, attention, state

    model.step = recording_step
    searched(model, SENTENCES, replace(SHORT, pruning=2.0, min_length=2), suppressed=SUPPRESSED, with_attention=True)
    assert len(returned) > 10
    assert all(torch.equal(tensor, copy) for tensor, copy in returned)


def test_a_model_whose_probabilities_are_nan_is_refused():
    model = HistoryModel(torch.full((211, 9), math.nan), torch.zeros(211, 64))
    with pytest.raises(InputError, match="diverged"):
        searched(model, SENTENCES, SHORT, suppressed=SUPPRESSED)


def test_no_sentences_give_nothing():
    assert searched(HistoryModel.random(1), [], SHORT) == []
