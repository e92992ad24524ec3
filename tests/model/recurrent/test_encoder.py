"""Options of LSTMEncoder: reversed source, residual connections, projection."""

from __future__ import annotations

import pytest
import torch
from tiny_gnmt import SOURCE, padded

from gnmt.errors import InputError
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.layers import reverse_by_length


def test_a_reversed_source_ends_with_eos_and_the_states_keep_the_sources_order():
    torch.manual_seed(1)
    plain = LSTMEncoder(5, 6, 2, num_bidirectional_layers=0, final_states=True).double()
    reverse = LSTMEncoder(5, 6, 2, num_bidirectional_layers=0, final_states=True, reverse_source=True).double()
    reverse.load_state_dict(plain.state_dict())
    embedded_BSE, lengths_B = torch.randn(4, 7, 5, dtype=torch.float64), padded(SOURCE).lengths_B
    by_hand_BSE = embedded_BSE.clone()
    for row, length in enumerate(lengths_B.tolist()):
        by_hand_BSE[row, : length - 1] = embedded_BSE[row, : length - 1].flip(0)
    found, expected = reverse(embedded_BSE, lengths_B), plain(by_hand_BSE, lengths_B)
    for name, tensor in expected.by_sentence.items():
        torch.testing.assert_close(found.by_sentence[name], tensor)
    back_SBH = reverse_by_length(expected.states_BSH.transpose(0, 1), lengths_B - 1)
    for row, length in enumerate(lengths_B.tolist()):
        torch.testing.assert_close(found.states_BSH[row, :length], back_SBH[:length, row])


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("num_bidirectional_layers", [0, 1, 4])
def test_layers_with_zero_weights_pass_their_input_on_from_residual_from_up(num_bidirectional_layers, layer_norm):
    """An LSTM without weights has zero outputs. All layers of RNMT+ are bidirectional."""
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


def test_the_projection_changes_the_states_but_not_the_final_states():
    encoder = LSTMEncoder(5, 6, 2, num_bidirectional_layers=2, projection_size=3, final_states=True)
    encoded = encoder(torch.randn(2, 4, 5), torch.tensor([4, 2]))
    assert encoded.states_BSH.shape[2] == encoder.output_size == 3
    assert {name: tensor.shape[1] for name, tensor in encoded.by_sentence.items()} == encoder.by_sentence_sizes
    assert set(encoder.by_sentence_sizes.values()) == {12}


def test_more_bidirectional_layers_than_layers_are_refused():
    with pytest.raises(InputError, match=r"num_bidirectional_layers=3 is more than model.encoder.num_layers=2"):
        LSTMEncoder(6, 6, 2, num_bidirectional_layers=3)


@pytest.mark.parametrize(
    ("layers", "bidirectional", "residual_from", "message"),
    [
        (2, 1, 2, "residual_from=2 adds the input of layer 2, of width 12, to its output, of width 6 .* is null"),
        (4, 1, 2, r"allowed is 3 \(the next layer with equal widths\) or null"),
        (4, 2, 3, "adds the input of layer 3, of width 12, .* allowed is 4 "),
    ],
)
def test_a_residual_connection_between_unequal_widths_is_refused(layers, bidirectional, residual_from, message):
    """Such a connection used to be left out silently."""
    with pytest.raises(InputError, match=message):
        LSTMEncoder(5, 6, layers, bidirectional, residual_from)


def test_residual_connections_between_equal_widths_are_accepted():
    for layers, bidirectional, residual_from in ((2, 1, 3), (4, 1, 3), (4, 0, 2), (3, 3, 2), (4, 3, 2), (2, 1, None)):
        assert LSTMEncoder(5, 6, layers, bidirectional, residual_from).residual_from == residual_from
