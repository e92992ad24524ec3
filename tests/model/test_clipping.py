"""Bounds of activations and logits: their schedule, where they act, and the models that they are refused for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_gnmt import SOURCE, TARGET, padded

from gnmt.errors import InputError
from gnmt.model.attention import AdditiveAttention
from gnmt.model.clipping import Clip, Clipping, is_clipping_delta
from gnmt.model.interfaces import Memory
from gnmt.model.recurrent.attention_decoder import AttentionDecoder
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.seq2seq import Seq2Seq


def quantizable(clipping: Clipping | None, cell: Any = "quantizable_lstm") -> Seq2Seq:
    """Return a GNMT of 5+3 layers with residual connections and weights so large that everything is clipped."""
    torch.manual_seed(3)
    encoder = LSTMEncoder(5, 6, 5, cell=cell)
    decoder = GNMTDecoder(5, 6, 3, AdditiveAttention(6, encoder.output_size, 3), residual_from=2, cell=cell)
    return Seq2Seq(encoder, decoder, 9, 11, 5, init_range=2.0, clipping=clipping).double().eval()


def with_input_feeding(query: Any, clipping: Clipping) -> Seq2Seq:
    """Return a model whose decoder's bottom layer reads a result of attention, with weights as large."""
    torch.manual_seed(3)
    encoder = LSTMEncoder(5, 6, 2, cell="quantizable_lstm")
    attention = AdditiveAttention(6, encoder.output_size, 3)
    decoder = AttentionDecoder(5, 6, 2, attention, query, input_feeding=True, cell="quantizable_lstm")
    return Seq2Seq(encoder, decoder, 9, 11, 5, init_range=2.0, clipping=clipping).double().eval()


def decoded_with_inputs_of_layers(model: Seq2Seq) -> tuple[Memory, torch.Tensor, list[torch.Tensor]]:
    """Return Memory, hidden states, and the inputs of all unidirectional layers."""
    inputs: list[torch.Tensor] = []
    layers = (*model.encoder.layers[1:], model.decoder.bottom, *model.decoder.upper)
    handles = [layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for layer in layers]
    memory = model.encode(padded(SOURCE))
    hidden_BTH, _ = model.decode(padded(TARGET), memory)
    for handle in handles:
        handle.remove()
    return memory, hidden_BTH, inputs


def test_the_bound_falls_linearly_and_stays():
    clipping = Clipping(start=8.0, end=1.0, steps=100)
    assert [clipping.delta(step) for step in (0, 50, 100, 1000)] == [8.0, 4.5, 1.0, 1.0]


def test_a_bound_that_would_grow_is_refused():
    with pytest.raises(InputError, match=r"model.clipping.start=0.5 is less than model.clipping.end=1: the "):
        Clipping(start=0.5)


def test_embeddings_states_hidden_states_and_logits_are_clipped_at_once_and_by_step():
    model = quantizable(Clipping(start=0.5, end=0.25, steps=10, logits=0.4))
    for step, delta in ((0, 0.5), (10, 0.25)):
        model.begin_update(step)
        memory, hidden_BTH, layer_inputs = decoded_with_inputs_of_layers(model)
        assert len(layer_inputs) == 7
        for tensor in (*layer_inputs, memory.states_BSH, hidden_BTH):
            assert tensor.abs().max() <= delta
        for tensor in (memory.states_BSH, hidden_BTH):
            assert tensor.abs().max() == delta, "the bound has an effect"
        assert model.output(hidden_BTH).abs().max() == 0.4
        log_probs_BKV, _, _ = model.step(padded(TARGET).ids_BT[:, :1], model.start(memory, 1), memory)
        expected_BV = torch.log_softmax(model.output(hidden_BTH)[:, 0], dim=-1)
        torch.testing.assert_close(log_probs_BKV[:, 0], expected_BV.float())


@pytest.mark.parametrize("query", ["current", "previous"])
@torch.no_grad()
def test_input_feeding_is_clipped_too(query):
    """Once, h~ was not: with a delta below 1, int8 cut off the inputs of the bottom layer."""
    model = with_input_feeding(query, Clipping(start=0.25, end=0.25))
    inputs: list[torch.Tensor] = []
    for layer in model.decoder.stack.layers:
        layer.from_inputs.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    memory = model.encode(padded(SOURCE))
    state, tokens_B1 = model.start(memory, 1), padded(TARGET).ids_BT[:, :1]
    for _ in range(3):
        _, _, state = model.step(tokens_B1, state, memory)
    assert len(inputs) == 2 * 3
    assert max(float(tensor.abs().max()) for tensor in inputs) == 0.25


def test_a_state_dict_contains_the_bound_of_its_update():
    trained, loaded = quantizable(Clipping(steps=10)), quantizable(Clipping(steps=10))
    trained.begin_update(5)
    loaded.load_state_dict(trained.state_dict())
    assert float(loaded.clip.delta) == float(loaded.decoder.bottom.clip.delta) == 4.5
    deltas = [value for name, value in loaded.state_dict().items() if is_clipping_delta(name)]
    assert [float(delta) for delta in deltas] == [4.5] * sum(isinstance(module, Clip) for module in loaded.modules())


def test_models_without_clipping_have_no_bound():
    model = quantizable(None, cell="lstm")
    model.begin_update(5)
    assert not [name for name in model.state_dict() if "clip" in name]
    assert model.logit_bound is None


def test_bounds_and_quantizable_cells_need_each_other():
    with pytest.raises(InputError, match=r"model.clipping is null, but cell=quantizable_lstm needs .* add model/clipp"):
        quantizable(None)
    with pytest.raises(InputError, match=r"this model has none: set model.encoder.cell=quantizable_lstm, or leave out"):
        quantizable(Clipping(), cell="lstm")
