"""GNMT equals a plain oracle, and the context reaches the output layer if requested."""

from __future__ import annotations

import pytest
import torch
from oracle_gnmt import OracleGNMT, gradients
from tiny_gnmt import SOURCE, TARGET, padded, tiny_gnmt

from gnmt.errors import InputError
from gnmt.model.attention import AdditiveAttention
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.seq2seq import Seq2Seq

CASES = [
    {"query": "current", "layers": (2, 2)},
    {"query": "previous", "layers": (2, 2)},
    {"query": "current", "layers": (3, 5), "normalize": False},
    {"query": "previous", "layers": (5, 3)},
    {"query": "current", "layers": (4, 4), "tie": "source_target"},
    {"query": "previous", "layers": (3, 4), "tie": "all"},
    {"query": "current", "layers": (2, 3), "shortcut": True},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(value) for value in case.values()))
def test_hidden_states_attention_logits_and_gradients_equal_the_oracles(case):
    model = tiny_gnmt(**case)
    oracle = OracleGNMT(model, case["query"])
    source, target = padded(SOURCE), padded(TARGET)
    memory = model.encode(source)
    hidden_BTH, attention_BTS = model.decode(target, memory, attention=True)
    logits_BTV = model.output(hidden_BTH)

    generator = torch.Generator().manual_seed(2)
    total, oracle_total = 0.0, 0.0
    for row, (source_ids, target_ids) in enumerate(zip(SOURCE, TARGET, strict=True)):
        states = oracle.encode(source_ids)
        hidden_TH, attention_TS = oracle.decode(target_ids, states)
        logits_TV = oracle.logits(hidden_TH)
        length, width = len(target_ids), len(source_ids)
        torch.testing.assert_close(memory.states_BSH[row, :width], torch.stack(states))
        torch.testing.assert_close(hidden_BTH[row, :length], hidden_TH)
        torch.testing.assert_close(attention_BTS[row, :length, :width], attention_TS)
        torch.testing.assert_close(logits_BTV[row, :length], logits_TV)
        direction_TV = torch.rand(logits_TV.shape, generator=generator, dtype=torch.float64)
        total = total + (direction_TV * logits_BTV[row, :length]).sum()
        oracle_total = oracle_total + (direction_TV * logits_TV).sum()

    expected = gradients(oracle_total, model)
    for name, gradient in gradients(total, model).items():
        assert expected[name].abs().max() > 1e-4, f"{name} has no influence in this test"
        torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_the_first_query_of_query_previous_is_zero():
    """With `previous`, as in the paper, the first target token does not influence the first attention."""
    for query, equal in (("previous", True), ("current", False)):
        model = tiny_gnmt(query=query)
        memory = model.encode(padded([SOURCE[0], SOURCE[0]]))
        _, attention_BTS = model.decode(padded([[4, 9], [7, 9]]), memory, attention=True)
        assert torch.equal(attention_BTS[0, 0], attention_BTS[1, 0]) is equal
        assert not torch.equal(attention_BTS[0, 1], attention_BTS[1, 1])


def test_context_to_output_concatenated_appends_the_context_to_the_top_layers_output():
    torch.manual_seed(1)
    decoder = GNMTDecoder(
        5, 6, 3, AdditiveAttention(6, 4, 4, num_heads=2), context_to_output="concatenated", layer_norm=True
    )
    model = Seq2Seq(LSTMEncoder(5, 4, 2), decoder, 9, 11, 5).double().eval()
    memory = model.encode(padded(SOURCE))
    hidden_BTH, weights_BTS = decoder(model.target_embedding(padded(TARGET).ids_BT), memory)
    bottom_TBH = decoder.bottom(model.target_embedding(padded(TARGET).ids_BT).transpose(0, 1))
    context_BTH, _ = decoder.attention(bottom_TBH.transpose(0, 1), memory.extras["keys"], memory)
    torch.testing.assert_close(hidden_BTH[..., 6:], context_BTH)
    torch.testing.assert_close(weights_BTS.sum(-1), torch.ones_like(weights_BTS[..., 0]))
    assert hidden_BTH.shape[2] == decoder.output_size == 10


def test_context_to_output_added_keeps_the_width_so_that_the_output_layer_can_be_tied():
    torch.manual_seed(1)
    decoder = GNMTDecoder(6, 6, 2, AdditiveAttention(6, 4, 4), context_to_output="added")
    model = Seq2Seq(LSTMEncoder(6, 4, 2), decoder, 11, 11, 6, tie_embeddings="all").double().eval()
    memory = model.encode(padded(SOURCE))
    embedded_BTE = model.target_embedding(padded(TARGET).ids_BT)
    hidden_BTH, _ = decoder(embedded_BTE, memory)
    context_BTH, _ = decoder.attention(
        decoder.bottom(embedded_BTE.transpose(0, 1)).transpose(0, 1), memory.extras["keys"], memory
    )
    decoder.context_to_output = "none"
    without_BTH, _ = decoder(embedded_BTE, memory)
    torch.testing.assert_close(hidden_BTH, without_BTH + context_BTH @ decoder.readout.weight.T)
    assert decoder.output_size == 6


def test_a_readout_has_the_width_of_the_embeddings_and_reads_output_context_and_previous_token():
    torch.manual_seed(1)
    decoder = GNMTDecoder(5, 7, 2, AdditiveAttention(7, 4, 3), context_to_output="readout")
    model = Seq2Seq(LSTMEncoder(5, 4, 2), decoder, 11, 11, 5, tie_embeddings="all", init_range=0.5).double().eval()
    memory = model.encode(padded(SOURCE))
    embedded_BTE = model.target_embedding(padded(TARGET).ids_BT)
    hidden_BTH, _ = decoder(embedded_BTE, memory)
    assert hidden_BTH.shape[2] == decoder.output_size == 5
    bottom_TBH = decoder.bottom(embedded_BTE.transpose(0, 1))
    context_BTH, _ = decoder.attention(bottom_TBH.transpose(0, 1), memory.extras["keys"], memory)
    top_TBH = decoder.upper[0](torch.cat((bottom_TBH, context_BTH.transpose(0, 1)), dim=-1))
    from_top, from_context, from_token = decoder.readout.weight.split((7, 4, 5), dim=1)
    expected_BTH = torch.tanh(
        top_TBH.transpose(0, 1) @ from_top.T
        + context_BTH @ from_context.T
        + embedded_BTE @ from_token.T
        + decoder.readout.bias
    )
    torch.testing.assert_close(hidden_BTH, expected_BTH)


def test_a_single_layer_whose_context_is_not_read_is_refused():
    with pytest.raises(
        InputError, match=r"decoder\.num_layers=1 and .* nothing reads.*context_to_output=added or model.decoder.num_la"
    ):
        GNMTDecoder(5, 6, 1, AdditiveAttention(6, 6, 4))
    decoder = GNMTDecoder(5, 6, 1, AdditiveAttention(6, 4, 4), context_to_output="concatenated")
    assert decoder.output_size == 10
