"""Beam search against enumeration, against the plain oracle, and the defects that other toolkits had."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from oracle_search import enumerate_all, limit_of, oracle_search
from stub_models import HistoryModel, MarkovModel, batch_of

from gnmt.decoding.beam import best_candidates
from gnmt.decoding.scoring import forced_scores
from gnmt.decoding.search import SearchOptions, search
from gnmt.types import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokens

BANNED = (PAD_ID, UNK_ID, BOS_ID)
SENTENCES = [[5, 4], [6, 6, 7, 4, 5], [4], [7, 5, 6], [8, 8, 8, 4], [], [5, 7, 4, 6, 8, 4, 5]]
SHORT = SearchOptions(max_length_factor=1.0, max_length_offset=4)  # keeps the oracle quick
A, B, C, D = 4, 5, 6, 7


def assert_same(hypotheses, expected, finished, options):
    """Tokens equal, scores and attention close, entry for entry."""
    assert [list(hypothesis.tokens) for hypothesis in hypotheses] == [path.tokens for path in expected]
    for hypothesis, path in zip(hypotheses, expected, strict=True):
        assert hypothesis.finished == finished
        assert hypothesis.log_prob == pytest.approx(path.log_prob, abs=1e-4)
        assert hypothesis.score == pytest.approx(path.score(options), abs=1e-4)
        torch.testing.assert_close(hypothesis.attention_TS, torch.tensor(path.attention), rtol=0, atol=1e-6)


# The true best, by enumeration


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_beam_as_wide_as_the_language_finds_every_translation_in_order(alpha, beta, seed):
    model = HistoryModel.random(seed, vocabulary_size=7)  # three words and EOS
    options = SearchOptions(
        beam_size=3**4 * 4,  # so many candidates has the last step, so each of its EOS is among the best K
        length_penalty_alpha=alpha,
        coverage_beta=beta,
        max_length_factor=1.0,
        max_length_offset=2,
        stop="exhausted",
    )
    sentences = [[4, 5], [6]]
    found = search(model, batch_of(sentences), options, banned=BANNED, with_attention=True)
    for hypotheses, sentence in zip(found, sentences, strict=True):
        expected = enumerate_all(model, sentence, options, BANNED)
        assert len(expected) == sum(3**length for length in range(limit_of(len(sentence) + 1, options)))
        assert_same(hypotheses, expected, True, options)
    [by_bound, _] = search(model, batch_of(sentences), replace(options, stop="bound"), banned=BANNED)
    assert by_bound[0].tokens == found[0][0].tokens


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
    ],
    ids=str,
)
def test_search_agrees_with_the_oracle(stop, beam, settings):
    options = replace(SHORT, beam_size=beam, stop=stop, **settings)
    for seed in (1, 2):
        model = HistoryModel.random(seed)
        found = search(model, batch_of(SENTENCES), options, banned=BANNED, with_attention=True)
        for hypotheses, sentence in zip(found, SENTENCES, strict=True):
            expected, finished = oracle_search(model, sentence, options, BANNED)
            assert_same(hypotheses, expected, finished, options)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_unfinished_hypotheses_are_those_of_the_oracle_best_first(beta):
    """With coverage, the best by score is not the best by log P, in whose order the beam lies."""
    model = HistoryModel.random(21)
    model.log_probs_RV[:, EOS_ID] = -math.inf
    options = replace(SHORT, coverage_beta=beta)
    found = search(model, batch_of(SENTENCES), options, banned=BANNED, with_attention=True)
    for hypotheses, sentence in zip(found, SENTENCES, strict=True):
        expected, _ = oracle_search(model, sentence, options, BANNED)
        assert len(expected) == options.beam_size
        assert_same(hypotheses, expected, False, options)


def test_search_agrees_with_the_oracle_where_values_tie():
    """Sums of few dyadic numbers tie all the time; the lower parent and the lower token go first."""
    generator = torch.Generator().manual_seed(3)
    for beam in (1, 2, 4):
        model = HistoryModel(-torch.randint(1, 5, (211, 12), generator=generator) / 4, None)
        options = replace(SHORT, beam_size=beam, length_penalty_alpha=0.0, coverage_beta=0.0, stop="exhausted")
        for hypotheses, sentence in zip(search(model, batch_of(SENTENCES), options), SENTENCES, strict=True):
            expected, _ = oracle_search(model, sentence, options)
            assert [list(hypothesis.tokens) for hypothesis in hypotheses] == [path.tokens for path in expected]
            assert [hypothesis.score for hypothesis in hypotheses] == [path.log_prob for path in expected]


def test_best_candidates_are_those_of_a_stable_sort():
    generator = torch.Generator().manual_seed(5)
    for trial in range(20):
        total = torch.randint(0, 6, (4, 50), generator=generator).float()
        total[1] = torch.randn(50, generator=generator)
        total[3, 10:] = -math.inf
        values, columns = best_candidates(total, 8)
        expected = total.sort(dim=1, descending=True, stable=True)
        assert torch.equal(values, expected.values[:, :8]), trial
        assert torch.equal(columns, expected.indices[:, :8]), trial


def test_best_candidates_keep_the_finite_values_among_infinite_ones():
    total = torch.full((1, 20), -math.inf)
    total[0, [17, 3, 9]] = torch.tensor([-1.0, -2.0, -1.0])
    values, columns = best_candidates(total, 6)
    assert columns[0, :3].tolist() == [9, 17, 3]
    assert values[0].tolist() == [-1.0, -1.0, -2.0] + [-math.inf] * 3


# Greedy


@pytest.mark.parametrize("stop", ["bound", "first", "exhausted"])
def test_beam_of_one_is_greedy(stop):
    options = replace(SHORT, beam_size=1, stop=stop)
    model = HistoryModel.random(7)
    found = search(model, batch_of(SENTENCES), options, banned=BANNED)
    some_finished = 0
    for [hypothesis], sentence in zip(found, SENTENCES, strict=True):
        memory = model.encode(batch_of([sentence]))
        state, tokens = model.start(memory, 1), [BOS_ID]
        while tokens[-1] != EOS_ID and len(tokens) <= limit_of(len(sentence) + 1, options):
            log_probs, _, state = model.step(torch.tensor([tokens[-1:]]), state, memory)
            log_probs[..., list(BANNED)] = -math.inf
            tokens.append(int(log_probs.argmax()))
        assert list(hypothesis.tokens) == tokens[1:]
        some_finished += hypothesis.finished
    assert some_finished > 0


# Independence


@pytest.mark.parametrize("options", [SHORT, replace(SHORT, beam_size=1), replace(SHORT, pruning=2.0, stop="first")])
def test_a_sentence_does_not_depend_on_its_neighbours(options):
    """Batches of 1, 3 and 32, either order, any padding: equal tokens, and scores but for fp32 rounding."""
    generator = torch.Generator().manual_seed(11)
    lengths = torch.randint(0, 20, (32,), generator=generator).tolist()
    sentences = [torch.randint(4, 9, (length,), generator=generator).tolist() for length in lengths]
    model = HistoryModel.random(11)

    def run(rows, width=0):
        results = search(model, batch_of([sentences[row] for row in rows], width), options, banned=BANNED)
        return dict(zip(rows, results, strict=True))

    whole = run(range(32))
    others = [run(range(31, -1, -1)), run(range(32), width=40)]
    others += [run(range(start, min(start + size, 32))) for size in (1, 3) for start in range(0, 32, size)]
    for other in others:
        for row, hypotheses in other.items():
            assert [found.tokens for found in hypotheses] == [found.tokens for found in whole[row]]
            scores = [found.score for found in whole[row]]
            assert [found.score for found in hypotheses] == pytest.approx(scores, abs=1e-5)


def test_the_length_limit_is_that_of_the_sentence_itself():
    """Computed from the padded width, the output depends on what else is in the batch (fairseq, JoeyNMT)."""
    model = MarkovModel({BOS_ID: {A: 1.0}, A: {A: 1.0}})  # never ends
    options = SearchOptions(max_length_factor=1.5, max_length_offset=2)
    found = search(model, batch_of([[A], [A] * 20, [A] * 4]), options)
    assert [len(hypotheses[0].tokens) for hypotheses in found] == [5, 33, 9]  # int(1.5 * (n + 1) + 2)
    assert not any(hypotheses[0].finished for hypotheses in found)


def test_a_limit_of_nothing_still_allows_one_token():
    model = MarkovModel({BOS_ID: {A: 0.7, EOS_ID: 0.3}, A: {EOS_ID: 1.0}})
    options = SearchOptions(max_length_factor=0.0, max_length_offset=0)
    [[hypothesis]] = search(model, batch_of([[A]]), options)
    assert hypothesis.tokens == (EOS_ID,)
    assert hypothesis.finished


def test_done_sentences_leave_the_batch_and_the_beam_keeps_its_width():
    model = HistoryModel.random(13)
    search(model, batch_of(SENTENCES), replace(SHORT, beam_size=3, stop="exhausted"), banned=BANNED)
    rows = [num_rows for num_rows, _ in model.calls]
    assert {beam for _, beam in model.calls} == {3}
    assert rows == sorted(rows, reverse=True)
    limits = [limit_of(len(sentence) + 1, SHORT) for sentence in SENTENCES]
    assert rows == [sum(limit >= length for limit in limits) for length in range(1, max(limits) + 1)]


# What hypotheses own


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize(
    "settings", [{}, {"coverage_beta": 1.0, "length_penalty_alpha": 1.0}, {"max_length_offset": 0}]
)
def test_every_reported_score_is_the_forced_score_of_its_tokens(beam, settings):
    """Attention that is not re-ordered with its hypothesis (NVIDIA), a |Y| that counts BOS, unfinished ones scored
    otherwise than finished ones: each shows here. Tokens, never text, are what is scored again."""
    options = replace(SHORT, beam_size=beam, **settings)
    model = HistoryModel.random(17)
    found = search(model, batch_of(SENTENCES), options, banned=BANNED)
    pairs = [(sentence, hypothesis) for sentence, some in zip(SENTENCES, found, strict=True) for hypothesis in some]
    assert {hypothesis.finished for _, hypothesis in pairs} >= {True}
    width = max(len(hypothesis.tokens) for _, hypothesis in pairs) + 1
    rows = [[BOS_ID, *hypothesis.tokens] for _, hypothesis in pairs]
    target = Tokens(
        torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])
    )
    forced = forced_scores(model, batch_of([sentence for sentence, _ in pairs]), target, options)
    for row, (_, hypothesis) in enumerate(pairs):
        tolerance = 1e-5 * len(hypothesis.tokens)
        assert hypothesis.log_prob == pytest.approx(float(forced.log_prob_B[row]), abs=tolerance)
        assert hypothesis.score == pytest.approx(float(forced.score_B[row]), abs=tolerance)


def test_attention_has_a_row_for_each_token_and_a_column_for_each_real_source_token():
    model = HistoryModel.random(19)
    found = search(model, batch_of(SENTENCES), SHORT, banned=BANNED, with_attention=True)
    for hypotheses, sentence in zip(found, SENTENCES, strict=True):
        for hypothesis in hypotheses:
            assert hypothesis.attention_TS.shape == (len(hypothesis.tokens), len(sentence) + 1)
            torch.testing.assert_close(hypothesis.attention_TS.sum(1), torch.ones(len(hypothesis.tokens)))


def test_attention_is_kept_only_where_asked_for():
    [[hypothesis, *_], *_] = search(HistoryModel.random(19), batch_of(SENTENCES), SHORT, banned=BANNED)
    assert hypothesis.attention_TS is None


def test_finished_hypotheses_do_not_narrow_the_beam():
    """With K = 2 and EOS the best first token, both A and B go on; frozen in the beam, EOS would push B out."""
    model = MarkovModel({BOS_ID: {EOS_ID: 0.5, A: 0.3, B: 0.2}, A: {C: 0.5, D: 0.5}, B: {EOS_ID: 1.0}})
    options = SearchOptions(beam_size=2, length_penalty_alpha=0.0, coverage_beta=0.0, stop="exhausted")
    [hypotheses] = search(model, batch_of([[A]]), options)
    assert [hypothesis.tokens for hypothesis in hypotheses] == [(EOS_ID,), (B, EOS_ID)]


def test_an_end_outside_the_best_k_candidates_does_not_finish():
    model = MarkovModel({BOS_ID: {A: 0.5, B: 0.3, EOS_ID: 0.2}, A: {EOS_ID: 1.0}, B: {EOS_ID: 1.0}})
    options = SearchOptions(beam_size=2, length_penalty_alpha=0.0, coverage_beta=0.0, stop="exhausted")
    [hypotheses] = search(model, batch_of([[A]]), options)
    assert [hypothesis.tokens for hypothesis in hypotheses] == [(A, EOS_ID), (B, EOS_ID)]
