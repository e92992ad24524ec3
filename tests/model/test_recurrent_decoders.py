"""Decoders without attention and with attention from the top layer, step by step by their formulas; what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_gnmt import SOURCE, TARGET, padded

from gnmt.errors import InputError
from gnmt.model.attention import AdditiveAttention, GeneralAttention
from gnmt.model.convolutional import ConvolutionalDecoder
from gnmt.model.interfaces import Decoder
from gnmt.model.recurrent.attention_decoder import AttentionDecoder
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.recurrent.layers import reverse_by_length
from gnmt.model.recurrent.plain_decoder import PlainDecoder
from gnmt.model.seq2seq import Seq2Seq
from gnmt.model.transformer import TransformerDecoder


def seq2seq(encoder: LSTMEncoder, decoder: Decoder) -> Seq2Seq:
    return Seq2Seq(encoder, decoder, 9, 11, 5, init_range=0.8).double().eval()


def top_attention(query: str, input_feeding: bool, num_layers: int = 2, **options) -> Seq2Seq:
    torch.manual_seed(1)
    encoder = LSTMEncoder(5, 3, num_layers, num_bidirectional_layers=num_layers, final_states=True)
    decoder = AttentionDecoder(
        5, 6, num_layers, GeneralAttention(6, 6), query, input_feeding, bridge="final", **options
    )
    return seq2seq(encoder, decoder)


@pytest.mark.parametrize("input_feeding", [True, False])
@pytest.mark.parametrize("query", ["current", "previous"])
def test_the_papers_recurrence(query, input_feeding):
    """Luong et al. 2015, eq. 5 and section 3.3; Bahdanau et al. 2015, A.1.2: one sentence, one step at a time."""
    model = top_attention(query, input_feeding)
    decoder = model.decoder
    memory = model.encode(padded(SOURCE))
    hidden_BTH, attention_BTS = model.decode(padded(TARGET), memory, attention=True)
    for row, (source_ids, target_ids) in enumerate(zip(SOURCE, TARGET, strict=True)):
        states_SH = memory.states_BSH[row, : len(source_ids)]
        layers = [
            (memory.by_sentence[f"final_hidden_{n}"][row, None], memory.by_sentence[f"final_cell_{n}"][row, None])
            for n in (1, 2)
        ]
        asked, fed = layers[1][0], torch.zeros(1, 6, dtype=torch.float64)
        for step, token in enumerate(target_ids):
            embedded = model.target_embedding(torch.tensor([token]))

            def attend(query_1H, states_SH=states_SH):
                weights_1S = torch.softmax(query_1H @ decoder.attention.key_projection(states_SH).T, dim=1)
                return weights_1S, weights_1S @ states_SH

            if query == "previous":
                weights, context = attend(asked)
                fed = context
            bottom = torch.cat((embedded, fed), dim=1) if input_feeding else embedded
            layers[0] = decoder.stack.layers[0].step(bottom, layers[0])
            layers[1] = decoder.stack.layers[1].step(layers[0][0], layers[1])
            asked = layers[1][0]
            if query == "current":
                weights, context = attend(asked)
            expected = torch.tanh(torch.cat((context, asked), dim=1) @ decoder.combination.weight.T)
            if query == "current":
                fed = expected
            torch.testing.assert_close(hidden_BTH[row, step], expected[0])
            torch.testing.assert_close(attention_BTS[row, step, : len(source_ids)], weights[0])


def test_without_attention_only_the_final_states_reach_the_decoder():
    torch.manual_seed(1)
    encoder = LSTMEncoder(5, 6, 2, num_bidirectional_layers=0, residual_from=None, final_states=True)
    model = seq2seq(encoder, PlainDecoder(5, 6, 2))
    memory = model.encode(padded(SOURCE))
    hidden_BTH, attention = model.decode(padded(TARGET), memory, attention=True)
    assert attention is None
    other = memory._replace(states_BSH=torch.randn_like(memory.states_BSH))
    assert torch.equal(model.decode(padded(TARGET), other)[0], hidden_BTH)
    for name in memory.by_sentence:
        other = memory._replace(by_sentence={**memory.by_sentence, name: memory.by_sentence[name] + 0.1})
        assert ((model.decode(padded(TARGET), other)[0] - hidden_BTH).abs().amax((1, 2)) > 1e-6).all()
    assert sorted(memory.by_sentence) == ["final_cell_1", "final_cell_2", "final_hidden_1", "final_hidden_2"]


def test_the_reversed_source_ends_with_its_eos_and_states_keep_its_order():
    torch.manual_seed(1)
    plain = LSTMEncoder(5, 6, 2, num_bidirectional_layers=0, final_states=True).double()
    turned = LSTMEncoder(5, 6, 2, num_bidirectional_layers=0, final_states=True, reverse_source=True).double()
    turned.load_state_dict(plain.state_dict())
    embedded_BSE, lengths_B = torch.randn(4, 7, 5, dtype=torch.float64), padded(SOURCE).lengths_B
    by_hand_BSE = embedded_BSE.clone()
    for row, length in enumerate(lengths_B.tolist()):
        by_hand_BSE[row, : length - 1] = embedded_BSE[row, : length - 1].flip(0)
    found, expected = turned(embedded_BSE, lengths_B), plain(by_hand_BSE, lengths_B)
    for name, tensor in expected.by_sentence.items():
        torch.testing.assert_close(found.by_sentence[name], tensor)
    back_SBH = reverse_by_length(expected.states_BSH.transpose(0, 1), lengths_B - 1)
    for row, length in enumerate(lengths_B.tolist()):
        torch.testing.assert_close(found.states_BSH[row, :length], back_SBH[:length, row])


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("num_bidirectional_layers", [0, 1, 4])
def test_a_layer_that_says_nothing_passes_its_input_on_from_the_residual_layer_up(num_bidirectional_layers, layer_norm):
    """With bidirectional layers too, as in all of RNMT+: without weights an LSTM's outputs are zero."""
    torch.manual_seed(1)
    hidden_size = 3 if num_bidirectional_layers == 4 else 6
    encoder = LSTMEncoder(6, hidden_size, 4, num_bidirectional_layers, residual_from=3, layer_norm=layer_norm).double()
    for parameter in encoder.layers[2:].parameters():
        torch.nn.init.zeros_(parameter)
    two = LSTMEncoder(6, hidden_size, 2, min(2, num_bidirectional_layers), layer_norm=layer_norm).double()
    two.load_state_dict({name: encoder.state_dict()[name] for name in two.state_dict()})
    embedded_BSE, lengths_B = torch.randn(2, 4, 6, dtype=torch.float64), torch.tensor([4, 3])
    states_BSH, below_BSH = (one(embedded_BSE, lengths_B).states_BSH for one in (encoder, two))
    for row, length in enumerate(lengths_B):
        torch.testing.assert_close(states_BSH[row, :length], below_BSH[row, :length])
    assert below_BSH.abs().max() > 0.01


def test_the_projection_narrows_the_states_but_not_what_is_bridged():
    encoder = LSTMEncoder(5, 6, 2, num_bidirectional_layers=2, projection_size=3, final_states=True)
    encoded = encoder(torch.randn(2, 4, 5), torch.tensor([4, 2]))
    assert encoded.states_BSH.shape[2] == encoder.output_size == 3
    assert {name: tensor.shape[1] for name, tensor in encoded.by_sentence.items()} == encoder.by_sentence_sizes
    assert set(encoder.by_sentence_sizes.values()) == {12}


@pytest.mark.parametrize("variational", [False, True])
def test_dropout_reaches_the_fed_decoder_in_training_only(variational):
    model = top_attention("current", True, dropout=0.5, variational_dropout=variational)
    memory = model.encode(padded(SOURCE))
    still = [model.decode(padded(TARGET), memory)[0] for _ in range(2)]
    assert torch.equal(*still)
    model.train()
    first, second = (model.decode(padded(TARGET), memory)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, still[0])


def encoder_of(**options) -> LSTMEncoder:
    return LSTMEncoder(5, 6, **{"num_layers": 2, "num_bidirectional_layers": 0, "final_states": True, **options})


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"final_states": False}, "this encoder returns none: set model.encoder.final_states=true"),
        (
            {"num_layers": 1},
            "starts from final_hidden_2, but the encoder returns final_hidden_1, final_cell_1: make",
        ),
        (
            {"cell": "gru"},
            "starts from final_cell_1, but the encoder returns final_hidden_1, final_hidden_2: make nu",
        ),
        ({"num_bidirectional_layers": 1}, "final_hidden_1 of width 6, but the encoder returns it with width 12"),
    ],
)
def test_a_bridge_between_unlike_sides_is_refused(encoder, message):
    decoders = (PlainDecoder(5, 6, 2), GNMTDecoder(5, 6, 2, AdditiveAttention(6, 6, 4), bridge="final"))
    for decoder in decoders:
        with pytest.raises(InputError, match=message):
            seq2seq(encoder_of(**encoder), decoder)


def test_encoder_layers_that_a_decoder_without_attention_does_not_start_from_are_refused():
    """They got no gradient, at which data parallel training fails; with attention all layers are read."""
    with pytest.raises(InputError, match=r"returns final_hidden_3, which .* make num_layers of model.encoder and"):
        seq2seq(encoder_of(num_layers=3), PlainDecoder(5, 6, 2))
    seq2seq(encoder_of(num_layers=3), GNMTDecoder(5, 6, 2, AdditiveAttention(6, 6, 4), bridge="final"))
    seq2seq(encoder_of(), PlainDecoder(5, 6, 2, cell="gru"))


@pytest.mark.parametrize("option", [{"projection_size": 6}, {"attend_to_embeddings": True}])
def test_what_changes_states_that_nobody_reads_is_refused(option):
    """It was taken, and did nothing."""
    with pytest.raises(
        InputError, match=rf"model\.encoder\.{next(iter(option))} changes the encoder's states, .* no attention"
    ):
        seq2seq(encoder_of(**option), PlainDecoder(5, 6, 2))
    seq2seq(encoder_of(**option), GNMTDecoder(5, 6, 2, AdditiveAttention(6, 6, 4)))


def test_states_of_another_width_than_the_decoder_reads_are_refused_with_the_keys_to_change():
    for decoder, key, follows in (
        (AttentionDecoder(5, 6, 1, AdditiveAttention(6, 6, 4)), r"attention\.memory_size", True),
        (TransformerDecoder(5, 6, 1, 1, 4), "memory_size", True),
        # Of one width with its embeddings: to use input_size=8 was the advice, and was refused too.
        (ConvolutionalDecoder(5, 6, 1), "input_size", False),
    ):
        advice = rf"use model\.decoder\.{key}=8, or change" if follows else "must be equal: change"
        message = rf"states is 8, but model\.decoder\.{key} is \d; .*{advice} model\.encoder\.hidden_size"
        with pytest.raises(InputError, match=message):
            seq2seq(LSTMEncoder(5, 4, 1), decoder)


def test_one_layer_that_nobody_hears_is_refused():
    with pytest.raises(
        InputError, match=r"decoder\.num_layers=1 and .* nothing reads.*context_to_output=added or model.decoder.num_la"
    ):
        GNMTDecoder(5, 6, 1, AdditiveAttention(6, 6, 4))
    decoder = GNMTDecoder(5, 6, 1, AdditiveAttention(6, 4, 4), context_to_output="concatenated")
    assert decoder.output_size == 10


def test_a_query_of_another_width_is_refused():
    with pytest.raises(
        InputError, match=r"attention.query_size=4, but the decoder's layers have model.decoder.hidden_size=6"
    ):
        AttentionDecoder(5, 6, 1, AdditiveAttention(4, 6, 4))


def test_the_context_goes_to_the_output_beside_the_top_layer():
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


def test_the_context_added_to_the_output_keeps_its_width_so_that_the_output_layer_can_be_tied():
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
