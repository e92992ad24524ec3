"""Parts of a model that do not fit together are refused with the keys to change."""

from __future__ import annotations

import pytest

from gnmt.errors import InputError
from gnmt.model.attention import AdditiveAttention
from gnmt.model.convolutional import ConvolutionalDecoder
from gnmt.model.interfaces import Decoder
from gnmt.model.recurrent.attention_decoder import AttentionDecoder
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.recurrent.plain_decoder import PlainDecoder
from gnmt.model.seq2seq import Seq2Seq
from gnmt.model.transformer import TransformerDecoder
from gnmt.model.validate import check_shared_vocabulary


def seq2seq(encoder: LSTMEncoder, decoder: Decoder) -> Seq2Seq:
    return Seq2Seq(encoder, decoder, 9, 11, 5, init_range=0.8).double().eval()


def encoder_of(**options) -> LSTMEncoder:
    return LSTMEncoder(5, 6, **{"num_layers": 2, "num_bidirectional_layers": 0, "final_states": True, **options})


def test_states_of_a_width_that_the_decoder_does_not_read_are_refused():
    for decoder, key, follows in (
        (AttentionDecoder(5, 6, 1, AdditiveAttention(6, 6, 4)), r"attention\.memory_size", True),
        (TransformerDecoder(5, 6, 1, 1, 4), "memory_size", True),
        # Its embeddings have the same width, so input_size=8, which was once the advice, is refused as well.
        (ConvolutionalDecoder(5, 6, 1), "input_size", False),
    ):
        advice = rf"use model\.decoder\.{key}=8, or change" if follows else "must be equal: change"
        message = rf"states is 8, but model\.decoder\.{key} is \d; .*{advice} model\.encoder\.hidden_size"
        with pytest.raises(InputError, match=message):
            seq2seq(LSTMEncoder(5, 4, 1), decoder)


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
def test_a_bridge_between_unequal_layers_is_refused(encoder, message):
    decoders = (PlainDecoder(5, 6, 2), GNMTDecoder(5, 6, 2, AdditiveAttention(6, 6, 4), bridge="final"))
    for decoder in decoders:
        with pytest.raises(InputError, match=message):
            seq2seq(encoder_of(**encoder), decoder)


def test_encoder_layers_that_a_decoder_without_attention_does_not_start_from_are_refused():
    """They would get no gradient, which fails in data parallel training; with attention all layers are read."""
    with pytest.raises(InputError, match=r"returns final_hidden_3, which .* make num_layers of model.encoder and"):
        seq2seq(encoder_of(num_layers=3), PlainDecoder(5, 6, 2))
    seq2seq(encoder_of(num_layers=3), GNMTDecoder(5, 6, 2, AdditiveAttention(6, 6, 4), bridge="final"))
    seq2seq(encoder_of(), PlainDecoder(5, 6, 2, cell="gru"))


@pytest.mark.parametrize("option", [{"projection_size": 6}, {"attend_to_embeddings": True}])
def test_options_that_change_states_which_the_decoder_does_not_read_are_refused(option):
    """They used to be accepted without effect."""
    with pytest.raises(
        InputError, match=rf"model\.encoder\.{next(iter(option))} would change the encoder's states, .* no attention"
    ):
        seq2seq(encoder_of(**option), PlainDecoder(5, 6, 2))
    seq2seq(encoder_of(**option), GNMTDecoder(5, 6, 2, AdditiveAttention(6, 6, 4)))


@pytest.mark.parametrize(
    ("tie_embeddings", "message"),
    [
        ("all", r"model\.embedding_size \(6\) equal to the decoder's output size \(8\): .* or use .*=source_target"),
        ("target_output", r"model\.tie_embeddings=target_output .* use .*=none"),
    ],
)
def test_an_output_layer_of_another_width_than_the_tied_embeddings_is_refused(tie_embeddings, message):
    decoder = GNMTDecoder(6, 8, 2, AdditiveAttention(8, 6, 5))
    with pytest.raises(InputError, match=message):
        Seq2Seq(LSTMEncoder(6, 6, 2), decoder, 11, 11, 6, tie_embeddings=tie_embeddings)


@pytest.mark.parametrize("tie_embeddings", ["source_target", "all"])
def test_one_table_for_two_tokenizers_is_refused(tie_embeddings):
    message = rf"^model\.tie_embeddings={tie_embeddings} .*subwords differ: use tokenizer\.joint=true, or .*=none"
    with pytest.raises(InputError, match=message):
        check_shared_vocabulary({"tie_embeddings": tie_embeddings}, joint=False)
    check_shared_vocabulary({"tie_embeddings": tie_embeddings}, joint=True)
    check_shared_vocabulary({"tie_embeddings": "target_output"}, joint=False)
    check_shared_vocabulary({}, joint=False)
