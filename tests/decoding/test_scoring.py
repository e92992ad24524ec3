"""Equation 14 and force-decoding scores, computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from stub_models import HistoryModel, MarkovModel, batch_of

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, Batch, Tokens
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import COVERAGE_FLOOR, coverage_penalty, force_decode, length_penalty, score
from gnmt.errors import InputError
from gnmt.model.attention import AdditiveAttention
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.seq2seq import Seq2Seq

A, B, C = 4, 5, 6


def targets(*sentences):
    """Return BOS and the given ids, padded."""
    width = max(len(sentence) for sentence in sentences) + 1
    rows = [[BOS_ID, *sentence] + [PAD_ID] * (width - 1 - len(sentence)) for sentence in sentences]
    return Tokens(torch.tensor(rows), torch.tensor([len(sentence) + 1 for sentence in sentences]))


@pytest.mark.parametrize(
    ("length", "alpha", "constant", "expected"),
    [(1, 0.6, 5.0, 1.0), (7, 0.6, 5.0, 2**0.6), (7, 1.0, 5.0, 2.0), (9, 0.0, 5.0, 1.0), (9, 1.0, 0.0, 9.0)],
)
def test_length_penalty_by_hand(length, alpha, constant, expected):
    penalty = length_penalty(torch.tensor([length]), alpha, constant)
    assert penalty.dtype == torch.float32
    torch.testing.assert_close(penalty, torch.tensor([expected]))


def test_coverage_penalty_by_hand():
    """Sums above 1 count as 1, sums of 0 as the floor, and padding not at all."""
    coverage = torch.tensor([[0.5, 2.0, 0.25, 0.0], [0.0, 1.0, 1.0, 1.0], [1.0, 1.5, 9.0, 1.0]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True], [True, True, True, True]])
    expected = [0.2 * (math.log(0.5) + math.log(0.25)), 0.2 * math.log(COVERAGE_FLOOR), 0.0]
    torch.testing.assert_close(coverage_penalty(coverage, mask, 0.2), torch.tensor(expected))


def test_score_is_their_sum_and_ignores_coverage_at_beta_0():
    log_prob, lengths, mask = torch.tensor([-6.0]), torch.tensor([7]), torch.tensor([[True, True]])
    coverage = torch.tensor([[0.5, 1.0]])
    options = SearchOptions(length_penalty_alpha=1.0, coverage_beta=0.1)
    torch.testing.assert_close(
        score(log_prob, lengths, coverage, mask, options), torch.tensor([-3.0 + 0.1 * math.log(0.5)])
    )
    without = SearchOptions(length_penalty_alpha=1.0, coverage_beta=0.0)
    torch.testing.assert_close(score(log_prob, lengths, None, mask, without), torch.tensor([-3.0]))
    with pytest.raises(InputError, match=r"set decoding\.coverage_beta=0"):
        score(log_prob, lengths, None, mask, options)


def test_force_decoding_scores_by_hand():
    """|Y| counts EOS and not BOS; attention of this model is uniform over 2 source tokens, EOS included."""
    model = MarkovModel({BOS_ID: {A: 0.5, B: 0.5}, A: {B: 0.25, EOS_ID: 0.75}, B: {A: 0.5, EOS_ID: 0.5}})
    options = SearchOptions(length_penalty_alpha=1.0, coverage_beta=0.1)
    found = force_decode(model, batch_of([[A], [A]]), targets([A, EOS_ID], [A, B, EOS_ID]), options)
    logs = [[math.log(0.5), math.log(0.75), 0.0], [math.log(0.5), math.log(0.25), math.log(0.5)]]
    torch.testing.assert_close(found.token_log_probs_BT, torch.tensor(logs))
    torch.testing.assert_close(found.log_prob_B, torch.tensor(logs).sum(1))
    torch.testing.assert_close(found.score_B, torch.tensor([sum(logs[0]) / (7 / 6), sum(logs[1]) / (8 / 6)]))


def test_an_unfinished_translation_counts_its_tokens_without_eos():
    model = HistoryModel.random(3)
    options = SearchOptions(length_penalty_alpha=1.0, coverage_beta=0.0)
    found = force_decode(model, batch_of([[A]]), targets([A, B, C]), options)
    torch.testing.assert_close(found.score_B, found.log_prob_B / (8 / 6))


def test_force_decoding_scores_do_not_depend_on_the_batch():
    model = HistoryModel.random(5)
    long = [A + position % 4 for position in range(69)] + [EOS_ID]
    options = SearchOptions(coverage_beta=0.3)
    both = force_decode(model, batch_of([[A, B, C], [A]]), targets(long, [B, EOS_ID]), options)
    alone = force_decode(model, batch_of([[A]]), targets([B, EOS_ID]), options)
    torch.testing.assert_close(both.score_B[1:], alone.score_B)
    torch.testing.assert_close(both.log_prob_B[1:], alone.log_prob_B)
    assert both.token_log_probs_BT[1, 2:].eq(0).all()


@pytest.mark.parametrize("query", ["current", "previous"])
def test_force_decoding_scores_are_those_of_teacher_forcing(query):
    """Decoder steps, as in search, give the same sums as teacher forcing, as in training."""
    torch.manual_seed(4)
    encoder = LSTMEncoder(6, 8, 2)
    decoder = GNMTDecoder(6, 8, 3, AdditiveAttention(8, encoder.output_size, 5), query=query)
    model = Seq2Seq(encoder, decoder, 9, 11, 6, init_range=0.8).eval()
    source, target = batch_of([[7, 4, 8], [6]]), targets([9, 5, 10, 4, EOS_ID], [8, EOS_ID])
    options = SearchOptions(length_penalty_alpha=0.7, coverage_beta=0.4)
    found = force_decode(model, source, target, options)

    batch = Batch(source, target, torch.arange(2), num_labels=7)
    memory = model.encode(source)
    hidden_BTH, attention_BTS = model.decode(batch.target_input, memory, attention=True)
    log_probs_BT = model.output(hidden_BTH).log_softmax(2).gather(2, batch.labels.ids_BT[:, :, None]).squeeze(2)
    real_BT = batch.labels.mask_BT
    torch.testing.assert_close(found.token_log_probs_BT, log_probs_BT * real_BT)
    coverage_BS = (attention_BTS * real_BT[:, :, None]).sum(1)
    log_prob_B = (log_probs_BT * real_BT).sum(1)
    expected_B = score(log_prob_B, batch.labels.lengths_B, coverage_BS, memory.mask_BS, options)
    torch.testing.assert_close(found.score_B, expected_B)


def test_scores_are_fp32_for_a_bf16_model():
    model = HistoryModel.random(7)
    model.log_probs_RV = model.log_probs_RV.bfloat16()
    found = force_decode(model, batch_of([[A]]), targets([B, EOS_ID]), SearchOptions(), attention=True)
    assert {tensor.dtype for tensor in found} == {torch.float32}
