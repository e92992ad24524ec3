"""Search keeps prefixes, suppresses repeated n-grams, and holds the minimum length."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from oracle_search import oracle_search
from stub_models import HistoryModel, MarkovModel, searched

import gnmt.decoding.search as search_module
from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.decoding.beam import suppress_repeats
from gnmt.decoding.options import SearchOptions

SUPPRESSED = (PAD_ID, UNK_ID, BOS_ID)
SENTENCES = [[5, 4], [6, 6, 7, 4, 5], [4], [7, 5, 6], [8, 8, 8, 4], [], [5, 7, 4, 6, 8, 4, 5]]
PREFIXES = [[], [8, 8, 8], [4, 5, 6, 7, 8, 4, 5, 6, 7], [UNK_ID, 5], [7], [6, 5, 4, 7, 8], [5, 5]]
SHORT = SearchOptions(max_length_factor=1.0, max_length_offset=4, n_best=5)
A, B, C = 4, 5, 6


# Prefixes


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beam_size": 1, "n_best": 1},
        {"pruning": 1.0, "stop": "exhausted"},
        {"no_repeat_ngram": 2},
        {"min_length": 6, "n_best": 2},
    ],
    ids=str,
)
def test_search_after_a_prefix_agrees_with_the_oracle(settings):
    """The prefixes are empty, short, with a suppressed id, and longer than the limit."""
    options = replace(SHORT, **settings)
    for seed in (1, 2):
        model = HistoryModel.random(seed)
        found = searched(model, SENTENCES, options, suppressed=SUPPRESSED, prefixes=PREFIXES)
        for hypotheses, sentence, prefix in zip(found, SENTENCES, PREFIXES, strict=True):
            expected, finished = oracle_search(model, sentence, options, SUPPRESSED, tuple(prefix))
            assert [list(hypothesis.tokens) for hypothesis in hypotheses] == [path.tokens for path in expected]
            for hypothesis, path in zip(hypotheses, expected, strict=True):
                assert list(hypothesis.tokens[: len(prefix)]) == prefix
                assert hypothesis.finished == finished
                assert hypothesis.log_prob == pytest.approx(path.log_prob, abs=1e-4)
                assert hypothesis.score == pytest.approx(path.score(options), abs=1e-4)


def test_a_prefix_counts_in_tokens_and_log_prob():
    model = MarkovModel({BOS_ID: {A: 0.9, B: 0.1}, A: {EOS_ID: 1.0}, B: {A: 0.5, EOS_ID: 0.5}})
    options = SearchOptions(length_penalty_alpha=1.0, coverage_beta=0.0)
    [[hypothesis]] = searched(model, [[A]], options, prefixes=[[B, A]])
    assert hypothesis.tokens == (B, A, EOS_ID)
    assert hypothesis.log_prob == pytest.approx(math.log(0.05), abs=1e-6)
    assert hypothesis.score == pytest.approx(math.log(0.05) / (8 / 6), abs=1e-6)


def test_a_prefix_beyond_the_limit_is_kept_whole_and_can_be_finished():
    model = MarkovModel({BOS_ID: {A: 1.0}, A: {A: 0.9, B: 0.1}, B: {EOS_ID: 1.0}})
    options = SearchOptions(beam_size=2, max_length_factor=0.0, max_length_offset=3, coverage_beta=0.0)
    [[hypothesis]] = searched(model, [[A]], options, prefixes=[[A] * 8])
    assert hypothesis.tokens[:8] == (A,) * 8
    assert hypothesis.finished
    assert len(hypothesis.tokens) <= 11


# Repeats


def test_a_token_that_repeats_an_n_gram_is_suppressed_by_hand():
    """After A B A, 2-grams suppress B, 1-grams A and B, and 3-grams nothing. Tokens behind |Y| have no effect."""
    tokens = torch.tensor([[[BOS_ID, A, B, A, C, C, C]]])
    expected = {1: {A, B}, 2: {B}, 3: set(), 4: set(), 9: set()}
    for size, ruled_out in expected.items():
        log_probs = torch.zeros(1, 1, 8)
        suppress_repeats(log_probs, tokens, torch.tensor([3]), size)
        assert set((log_probs[0, 0] == -math.inf).nonzero().flatten().tolist()) == ruled_out, size
        assert log_probs[log_probs > -math.inf].eq(0).all()


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("sampling", [False, True])
def test_no_hypothesis_repeats_an_n_gram(size, sampling):
    options = replace(SHORT, no_repeat_ngram=size, max_length_offset=20, sampling=sampling, stop="exhausted")
    model = HistoryModel.random(5, vocabulary_size=10, peakedness=3.0)
    guarded = searched(model, SENTENCES, options, suppressed=SUPPRESSED)
    assert any(len(hypothesis.tokens) > size + 2 for some in guarded for hypothesis in some)
    assert not any(repeats(hypothesis.tokens, size) for some in guarded for hypothesis in some)
    free = searched(model, SENTENCES, replace(options, no_repeat_ngram=None), suppressed=SUPPRESSED)
    assert any(repeats(hypothesis.tokens, size) for some in free for hypothesis in some)


def repeats(tokens, size):
    grams = [tokens[start : start + size] for start in range(len(tokens) - size + 1)]
    return len(grams) - len(set(grams))


def test_a_prefix_may_repeat_itself_and_what_follows_may_not_repeat_the_prefix():
    options = replace(SHORT, no_repeat_ngram=2, max_length_offset=10)
    for hypotheses in searched(
        HistoryModel.random(7), SENTENCES, options, suppressed=SUPPRESSED, prefixes=[[8, 8, 8]] * 7
    ):
        for hypothesis in hypotheses:
            assert hypothesis.tokens[:3] == (8, 8, 8)
            assert repeats(hypothesis.tokens[2:], 2) == 0
            assert (8, 8) not in zip(hypothesis.tokens[2:], hypothesis.tokens[3:], strict=False)


# Minimum length


@pytest.mark.parametrize("sampling", [False, True])
def test_min_length_holds_for_each_sentence_at_its_own_step(sampling):
    """Sentences that enter late are at other lengths than their neighbors."""
    model = HistoryModel.random(23)
    options = replace(SHORT, min_length=5, sampling=sampling)
    found = searched(model, SENTENCES * 3, options, suppressed=SUPPRESSED, batch_size=4)
    assert all(len(hypothesis.tokens) >= 5 for hypotheses in found for hypothesis in hypotheses)
    unbounded = searched(model, SENTENCES, replace(options, min_length=0), suppressed=SUPPRESSED)
    assert any(len(hypothesis.tokens) < 5 for hypotheses in unbounded for hypothesis in hypotheses)


@pytest.mark.parametrize("sampling", [False, True])
def test_a_search_without_possible_tokens_has_no_result_and_others_have_theirs(sampling):
    """Five words, none twice, and no EOS before token 8 leave no result, unless a prefix repeats some words."""
    options = replace(SHORT, no_repeat_ngram=1, min_length=8, max_length_offset=20, sampling=sampling)
    prefixes = [[]] * 3 + [[4, 4, 4, 4, 5, 5]] + [[]] * 3
    found = searched(HistoryModel.random(1), SENTENCES, options, suppressed=SUPPRESSED, prefixes=prefixes, batch_size=2)
    assert [bool(hypotheses) for hypotheses in found] == [False] * 3 + [True] + [False] * 3
    [alone] = searched(HistoryModel.random(1), [SENTENCES[3]], options, suppressed=SUPPRESSED, prefixes=[prefixes[3]])
    if not sampling:
        assert found[3] == alone


def test_limits_and_prefixes_are_handled_only_in_steps_that_need_it(monkeypatch):
    """Each step once visited all active sentences; now two step numbers decide."""
    flags, advance = [], search_module.advance

    def recording_advance(*args, some_forced, some_at_limit, **settings):
        flags.append((some_forced, some_at_limit))
        return advance(*args, some_forced=some_forced, some_at_limit=some_at_limit, **settings)

    monkeypatch.setattr(search_module, "advance", recording_advance)
    model = MarkovModel({BOS_ID: {A: 1.0}, A: {A: 1.0}})
    options = SearchOptions(beam_size=2, max_length_factor=0.0, max_length_offset=4, coverage_beta=0.0)
    found = searched(model, [[A], [A]], options, prefixes=[[], [A, A]], batch_size=1)
    assert [len(hypotheses[0].tokens) for hypotheses in found] == [4, 4]
    assert flags == [
        *[(False, False)] * 3,
        (False, True),
        *[(True, False)] * 2,
        (False, False),
        (False, True),
    ]
