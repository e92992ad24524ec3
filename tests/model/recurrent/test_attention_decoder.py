"""AttentionDecoder follows the papers' recurrences step by step."""

from __future__ import annotations

import pytest
import torch
from tiny_gnmt import SOURCE, TARGET, padded

from gnmt.errors import InputError
from gnmt.model.attention import AdditiveAttention, GeneralAttention
from gnmt.model.recurrent.attention_decoder import AttentionDecoder
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.seq2seq import Seq2Seq


def model_of(query: str, input_feeding: bool, num_layers: int = 2, **options) -> Seq2Seq:
    torch.manual_seed(1)
    encoder = LSTMEncoder(5, 3, num_layers, num_bidirectional_layers=num_layers, final_states=True)
    decoder = AttentionDecoder(
        5, 6, num_layers, GeneralAttention(6, 6), query, input_feeding, bridge="final", **options
    )
    return Seq2Seq(encoder, decoder, 9, 11, 5, init_range=0.8).double().eval()


@pytest.mark.parametrize("input_feeding", [True, False])
@pytest.mark.parametrize("query", ["current", "previous"])
def test_hidden_states_and_attention_follow_the_papers_recurrence(query, input_feeding):
    """Luong et al. 2015, eq. 5 and section 3.3; Bahdanau et al. 2015, A.1.2: one sentence, one step at a time."""
    model = model_of(query, input_feeding)
    decoder = model.decoder
    memory = model.encode(padded(SOURCE))
    hidden_BTH, attention_BTS = model.decode(padded(TARGET), memory, attention=True)
    for row, (source_ids, target_ids) in enumerate(zip(SOURCE, TARGET, strict=True)):
        states_SH = memory.states_BSH[row, : len(source_ids)]
        layers = [
            (memory.by_sentence[f"final_hidden_{n}"][row, None], memory.by_sentence[f"final_cell_{n}"][row, None])
            for n in (1, 2)
        ]
        top, feed = layers[1][0], torch.zeros(1, 6, dtype=torch.float64)
        for step, token in enumerate(target_ids):
            embedded = model.target_embedding(torch.tensor([token]))

            def attend(query_1H, states_SH=states_SH):
                weights_1S = torch.softmax(query_1H @ decoder.attention.key_projection(states_SH).T, dim=1)
                return weights_1S, weights_1S @ states_SH

            if query == "previous":
                weights, context = attend(top)
                feed = context
            bottom = torch.cat((embedded, feed), dim=1) if input_feeding else embedded
            layers[0] = decoder.stack.layers[0].step(bottom, layers[0])
            layers[1] = decoder.stack.layers[1].step(layers[0][0], layers[1])
            top = layers[1][0]
            if query == "current":
                weights, context = attend(top)
            expected = torch.tanh(torch.cat((context, top), dim=1) @ decoder.combination.weight.T)
            if query == "current":
                feed = expected
            torch.testing.assert_close(hidden_BTH[row, step], expected[0])
            torch.testing.assert_close(attention_BTS[row, step, : len(source_ids)], weights[0])


@pytest.mark.parametrize("variational", [False, True])
def test_dropout_applies_with_input_feeding_in_training_only(variational):
    model = model_of("current", True, dropout=0.5, variational_dropout=variational)
    memory = model.encode(padded(SOURCE))
    without = [model.decode(padded(TARGET), memory)[0] for _ in range(2)]
    assert torch.equal(*without)
    model.train()
    first, second = (model.decode(padded(TARGET), memory)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, without[0])


def test_a_query_of_another_width_is_refused():
    with pytest.raises(
        InputError, match=r"attention.query_size=4, but the decoder's layers have model.decoder.hidden_size=6"
    ):
        AttentionDecoder(5, 6, 1, AdditiveAttention(4, 6, 4))
