"""Samples follow the model's distribution, do not depend on the batch, and are scored by the model's probabilities."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from stub_models import CPU, HistoryModel, MarkovModel, batch_of, searched

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokens
from gnmt.decoding.beam import draw, hashed, sample
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import force_decode
from gnmt.decoding.search import search

SUPPRESSED = (PAD_ID, UNK_ID, BOS_ID)
SENTENCES = [[5, 4], [6, 6, 7, 4, 5], [4], [7, 5, 6], [8, 8, 8, 4], [], [5, 7, 4, 6, 8, 4, 5]]
SAMPLING = SearchOptions(sampling=True, n_best=4, max_length_factor=1.0, max_length_offset=4)
PROBABILITIES = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05])
NUM_DRAWS = 20_000


def draws(options, probabilities=PROBABILITIES):
    """Return the relative frequency of each token over many sentences, samples and steps."""
    log_probs_BKV = probabilities.log().expand(NUM_DRAWS // 10, 10, -1)
    steps_B = torch.arange(NUM_DRAWS // 10) % 7
    tokens_BK = sample(log_probs_BKV, torch.arange(NUM_DRAWS // 10) // 7, steps_B, options)
    return tokens_BK.flatten().bincount(minlength=len(probabilities)) / NUM_DRAWS


def assert_close_to(frequencies, expected):
    """Assert frequencies within 4.5 standard deviations, and exactly 0 for suppressed tokens."""
    assert frequencies[expected == 0].eq(0).all()
    assert ((frequencies - expected).abs() <= 4.5 * (expected * (1 - expected) / NUM_DRAWS).sqrt()).all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PROBABILITIES),
        ({"seed": 2}, PROBABILITIES),
        ({"temperature": 0.5}, PROBABILITIES**2),
        ({"temperature": 2.0}, PROBABILITIES**0.5),
        ({"top_k": 1}, torch.tensor([1.0, 0, 0, 0, 0])),
        ({"top_k": 3}, torch.tensor([0.4, 0.25, 0.2, 0, 0])),
        ({"top_k": 99}, PROBABILITIES),
        ({"top_p": 0.39}, torch.tensor([1.0, 0, 0, 0, 0])),
        ({"top_p": 0.41}, torch.tensor([0.4, 0.25, 0, 0, 0])),
        ({"top_p": 0.8}, torch.tensor([0.4, 0.25, 0.2, 0, 0])),
        ({"top_p": 1.0}, PROBABILITIES),
        # Of the best two, the first has 0.4 / 0.65 = 0.62.
        ({"top_k": 2, "top_p": 0.6}, torch.tensor([1.0, 0, 0, 0, 0])),
        # At temperature 0.5 the first two have 0.16 and 0.0625 of 0.275: 0.58 and 0.23.
        ({"temperature": 0.5, "top_p": 0.7}, torch.tensor([0.16, 0.0625, 0, 0, 0])),
    ],
    ids=str,
)
def test_tokens_are_drawn_with_their_probability(settings, expected):
    assert_close_to(draws(replace(SAMPLING, **settings)), expected / expected.sum())


def test_suppressed_tokens_are_never_drawn():
    forbidden = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    for settings in ({}, {"top_k": 4}, {"top_p": 1.0}):
        assert_close_to(draws(replace(SAMPLING, **settings), forbidden), forbidden)


def test_samples_of_several_tokens_have_the_probability_of_the_model():
    """Steps are independent: the second token does not depend on the random number of the first."""
    model = MarkovModel({BOS_ID: {4: 0.5, 5: 0.5}, 4: {4: 0.3, EOS_ID: 0.7}, 5: {4: 0.6, EOS_ID: 0.4}})
    options = SearchOptions(sampling=True, n_best=50, coverage_beta=0.0, max_length_offset=60)
    found = searched(model, [[4]] * 100, options)
    counts: dict[tuple[int, ...], int] = {}
    for hypothesis in (hypothesis for some in found for hypothesis in some):
        counts[hypothesis.tokens] = counts.get(hypothesis.tokens, 0) + 1
    expected = {(4, EOS_ID): 0.35, (5, EOS_ID): 0.2, (5, 4, EOS_ID): 0.21, (4, 4, EOS_ID): 0.105}
    for tokens, probability in expected.items():
        assert abs(counts[tokens] / 5000 - probability) < 4.5 * math.sqrt(probability * (1 - probability) / 5000)


def test_the_drawn_index_is_that_of_the_random_bits():
    """The bits are a number in [0, 1), here every eighth, which falls into the interval of its index."""
    values_BKN = torch.tensor([0.0, -math.inf, math.log(0.5), 0.0, -math.inf, math.log(0.5), -math.inf])
    eighths = torch.arange(8) << 61  # as signed numbers: the upper half is negative
    found = draw(values_BKN.expand(1, 24, -1), torch.stack([eighths - 1, eighths, eighths + (1 << 11)]).flatten()[None])
    # The weights are 2, 1, 2 and 1 of 6 in 8 parts: the borders are at 2.67, 4 and 6.67 eighths.
    below, at = [5, 0, 0, 2, 2, 3, 3, 5], [0, 0, 0, 2, 3, 3, 3, 5]
    assert found[0].tolist() == [*below, *at, *at]


@pytest.mark.parametrize("bits", [-1, 0, (1 << 63) - 1], ids=["all ones", "zeros", "largest"])
def test_extreme_bits_draw_no_index_outside_and_none_without_probability(bits):
    """With 2^15 equal probabilities the total is above 2^53, so a product with a number below 1 may round up to it."""
    values_BKN = torch.zeros(1, 1, 2**15 + 2)
    values_BKN[:, :, [0, -1]] = -math.inf
    [[found]] = draw(values_BKN, torch.tensor([[bits]])).tolist()
    assert found == {-1: 2**15, 0: 1, (1 << 63) - 1: 2**14}[bits]


def test_a_sharp_and_a_flat_distribution_of_many_tokens_are_drawn_exactly():
    """A chi-squared test over 200,000 draws of each; a token in the long tail is as likely as it should be."""
    for scale in (0.3, 3.0):
        logits_N = scale * torch.randn(1000, generator=torch.Generator().manual_seed(1))
        values_BKN = (logits_N - logits_N.max()).expand(200, 1000, -1)
        bits_BK = hashed(torch.tensor(7), torch.arange(200_000)).view(200, 1000)
        counts_N = draw(values_BKN, bits_BK).flatten().bincount(minlength=1000)
        expected_N = 200_000 * logits_N.double().softmax(0)
        common_N = expected_N > 5
        statistic = ((counts_N - expected_N) ** 2 / expected_N)[common_N].sum()
        freedom = int(common_N.sum())
        assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_hashed_is_splitmix64():
    """The first outputs for the seed 1234567, as published with the reference implementation."""
    found = hashed(torch.tensor(1234567), torch.arange(3)).tolist()
    assert [number % 2**64 for number in found] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.7, "temperature": 1.5}, {"no_repeat_ngram": 2}])
def test_samples_are_the_same_in_any_batch(settings):
    """Numbers drawn from one stream would depend on the order of the batch."""
    options = replace(SAMPLING, **settings)
    sources = [[*sentence, EOS_ID] for sentence in SENTENCES]

    def run(order, batch_size):
        chosen = [sources[row] for row in order]
        found = search(
            HistoryModel.random(3),
            chosen,
            options,
            device=CPU,
            suppressed=SUPPRESSED,
            keys=order,
            batch_size=batch_size,
        )
        return {
            row: [hypothesis.tokens for hypothesis in result.hypotheses]
            for row, result in zip(order, found, strict=True)
        }

    expected = run(range(7), 64)
    assert len({tokens for some in expected.values() for tokens in some}) > 15
    assert run([6, 2, 0, 5, 3, 1, 4], 3) == expected
    assert run(range(7), 1) == expected
    assert {**run([4], 9), **run([1, 5], 9)} == {row: expected[row] for row in (4, 1, 5)}


def test_more_samples_start_with_the_same_samples_as_fewer():
    one, four = (searched(HistoryModel.random(3), SENTENCES, replace(SAMPLING, n_best=count)) for count in (1, 4))
    assert [some[0].tokens for some in four] == [some[0].tokens for some in one]
    assert any(some[0].score < max(hypothesis.score for hypothesis in some) for some in four)


def test_equal_lines_differ_by_their_key_and_seeds_differ():
    same = [[5, 4]] * 6

    def run(keys=None, **settings):
        options = replace(SAMPLING, n_best=1, **settings)
        return [
            some[0].tokens for some in searched(HistoryModel.random(3), same, options, suppressed=SUPPRESSED, keys=keys)
        ]

    assert len(set(run())) > 1
    assert len(set(run(keys=[9] * 6))) == 1
    assert run() == run()
    assert run() != run(seed=2)
    assert run(keys=range(10, 16)) != run()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5, "top_k": 3}, {"top_p": 0.5}, {"max_length_offset": 0}])
def test_the_score_of_a_sample_is_the_force_decoding_score_of_its_tokens(settings):
    """The score is that of the model's distribution, not of the one drawn from, for unfinished samples too."""
    options = replace(SAMPLING, coverage_beta=0.2, **settings)
    model = HistoryModel.random(17)
    found = searched(model, SENTENCES, options, suppressed=SUPPRESSED)
    pairs = [(sentence, hypothesis) for sentence, some in zip(SENTENCES, found, strict=True) for hypothesis in some]
    assert len(pairs) == 28
    rows = [[BOS_ID, *hypothesis.tokens] for _, hypothesis in pairs]
    width = max(map(len, rows))
    target = Tokens(
        torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])
    )
    forced = force_decode(model, batch_of([sentence for sentence, _ in pairs]), target, options)
    for row, (sentence, hypothesis) in enumerate(pairs):
        assert hypothesis.log_prob == pytest.approx(float(forced.log_prob_B[row]), abs=1e-4)
        assert hypothesis.score == pytest.approx(float(forced.score_B[row]), abs=1e-4)
        limit = options.length_limit(len(sentence) + 1)
        assert hypothesis.finished == (hypothesis.tokens[-1] == EOS_ID)
        assert hypothesis.finished or len(hypothesis.tokens) == limit


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"temperature": 1e-6}])
def test_one_token_to_draw_from_is_greedy(settings):
    """At the lowest temperature all log-probabilities were divided to -inf, and the first id was drawn."""
    greedy = SearchOptions(beam_size=1, max_length_factor=1.0, max_length_offset=4)
    expected = searched(HistoryModel.random(3), SENTENCES, greedy, suppressed=SUPPRESSED)
    found = searched(HistoryModel.random(3), SENTENCES, replace(SAMPLING, n_best=2, **settings), suppressed=SUPPRESSED)
    assert [some[0].tokens for some in found] == [some[1].tokens for some in found]
    assert [some[0].tokens for some in found] == [some[0].tokens for some in expected]


def test_samples_are_the_same_in_blocks_of_any_size(monkeypatch):
    log_probs_BKV = torch.randn(7, 3, 11, generator=torch.Generator().manual_seed(1)).log_softmax(2)
    keys_B, steps_B = torch.arange(7) % 4, torch.arange(7) % 3
    for settings in ({}, {"top_k": 3, "temperature": 0.7}, {"top_p": 0.8}):
        options = replace(SAMPLING, n_best=3, **settings)
        at_once = sample(log_probs_BKV, keys_B, steps_B, options)
        for elements in (1, 70, 100):
            monkeypatch.setattr("gnmt.decoding.beam.SAMPLED_ELEMENTS", {"cpu": elements})
            assert torch.equal(sample(log_probs_BKV, keys_B, steps_B, options), at_once)
        monkeypatch.undo()
