"""PlainDecoder reads the source through the encoder's final states only."""

from __future__ import annotations

import torch
from tiny_gnmt import SOURCE, TARGET, padded

from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.plain_decoder import PlainDecoder
from gnmt.model.seq2seq import Seq2Seq


def test_only_the_final_states_influence_the_decoder():
    torch.manual_seed(1)
    encoder = LSTMEncoder(5, 6, 2, num_bidirectional_layers=0, residual_from=None, final_states=True)
    model = Seq2Seq(encoder, PlainDecoder(5, 6, 2), 9, 11, 5, init_range=0.8).double().eval()
    memory = model.encode(padded(SOURCE))
    hidden_BTH, attention = model.decode(padded(TARGET), memory, attention=True)
    assert attention is None
    other = memory._replace(states_BSH=torch.randn_like(memory.states_BSH))
    assert torch.equal(model.decode(padded(TARGET), other)[0], hidden_BTH)
    for name in memory.by_sentence:
        other = memory._replace(by_sentence={**memory.by_sentence, name: memory.by_sentence[name] + 0.1})
        assert ((model.decode(padded(TARGET), other)[0] - hidden_BTH).abs().amax((1, 2)) > 1e-6).all()
    assert sorted(memory.by_sentence) == ["final_cell_1", "final_cell_2", "final_hidden_1", "final_hidden_2"]
