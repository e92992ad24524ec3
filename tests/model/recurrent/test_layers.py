"""Recurrent layers and stacks equal torch's layers, packed sequences and the papers' formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gnmt.errors import InputError
from gnmt.model.layers import Dropout
from gnmt.model.recurrent.cells import layer_class
from gnmt.model.recurrent.layers import (
    GRU,
    LSTM,
    Bidirectional,
    LayerNormLSTM,
    RecurrentLayer,
    ResidualStack,
    reverse_by_length,
)
from gnmt.model.recurrent.linear_recurrence import RGLRU, MinLSTM
from gnmt.model.recurrent.quantizable_lstm import QuantizableLSTM

LENGTHS_B = torch.tensor([3, 6, 1, 4])
REAL_TB = torch.arange(6)[:, None] < LENGTHS_B
WITH_RECURRENT_WEIGHTS = [LSTM, GRU, LayerNormLSTM, QuantizableLSTM]
CLASSES = [*WITH_RECURRENT_WEIGHTS, MinLSTM, RGLRU]


def padded_inputs(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return inputs [T, B, I] with large numbers in the padding."""
    torch.manual_seed(3)
    inputs_TBI = torch.randn(6, 4, 5, dtype=torch.float64)
    inputs_TBI[~REAL_TB] = 1e3
    return inputs_TBI.to(dtype)


def layer_of(cls: type[RecurrentLayer]) -> RecurrentLayer:
    torch.manual_seed(1)
    layer = cls(5, 7).double()  # type: ignore[call-arg]
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -0.9, 0.9)
    return layer


def test_steps_of_an_lstm_equal_torchs_lstm():
    torch.manual_seed(1)
    layer = LSTM(5, 7).double()
    inputs_TBI = padded_inputs()
    reference = nn.LSTM(5, 7).double()
    reference.load_state_dict(layer.state_dict())
    expected_TBH, _ = reference(inputs_TBI)
    torch.testing.assert_close(layer(inputs_TBI), expected_TBH)
    state = (torch.zeros(4, 7, dtype=torch.float64), torch.zeros(4, 7, dtype=torch.float64))
    for inputs_BI, expected_BH in zip(inputs_TBI, expected_TBH, strict=True):
        state = layer.step(inputs_BI, state)
        torch.testing.assert_close(state[0], expected_BH)


@pytest.mark.parametrize("cls", CLASSES)
def test_steps_equal_the_whole_sequence_from_zeros_and_from_a_state(cls):
    layer, inputs_TBI = layer_of(cls), padded_inputs()
    zeros = layer.start(4, inputs_TBI)
    other = tuple(torch.randn_like(tensor) for tensor in zeros)
    for start in (zeros, other):
        outputs_TBH = layer(inputs_TBI, start)
        state = start
        for inputs_BI, expected_BH in zip(inputs_TBI, outputs_TBH, strict=True):
            state = layer.step(inputs_BI, state)
            torch.testing.assert_close(state[0], expected_BH)
        if start is zeros:
            torch.testing.assert_close(layer(inputs_TBI), outputs_TBH)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_final_state_and_its_gradients_equal_those_of_each_sentence_alone(cls):
    """The last state of a layer that is not packed has read the padding."""
    layer, inputs_TBI = layer_of(cls), padded_inputs().requires_grad_()
    outputs_TBH, final = layer.forward_with_final_state(inputs_TBI, LENGTHS_B)
    torch.testing.assert_close(outputs_TBH[0], layer(inputs_TBI)[0])
    expected = []
    for row, length in enumerate(LENGTHS_B.tolist()):
        state = layer.start(1, inputs_TBI)
        for step in range(length):
            state = layer.step(inputs_TBI[step, row : row + 1], state)
            torch.testing.assert_close(state[0][0], outputs_TBH[step, row])
        expected.append(state)
    generator = torch.Generator().manual_seed(2)
    found_sum = expected_sum = torch.zeros(())
    for part, found_BH in enumerate(final):
        expected_BH = torch.cat([state[part] for state in expected])
        torch.testing.assert_close(found_BH, expected_BH)
        direction_BH = torch.rand(found_BH.shape, generator=generator)
        found_sum = found_sum + (found_BH * direction_BH).sum()
        expected_sum = expected_sum + (expected_BH * direction_BH).sum()
    parts = [inputs_TBI, *layer.parameters()]
    torch.testing.assert_close(torch.autograd.grad(found_sum, parts), torch.autograd.grad(expected_sum, parts))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_final_cell_does_not_depend_on_the_padding_in_any_precision(precision):
    """The results are bitwise equal, because the gates are saturated in the padding."""
    layer, inputs_TBI = layer_of(LSTM).to(precision), padded_inputs(precision)
    other_TBI = inputs_TBI.clone()
    other_TBI[inputs_TBI == inputs_TBI.max()] = -7.0
    assert not torch.equal(other_TBI, inputs_TBI)
    for one, other in zip(
        layer.forward_with_final_state(inputs_TBI, LENGTHS_B)[1],
        layer.forward_with_final_state(other_TBI, LENGTHS_B)[1],
        strict=True,
    ):
        assert torch.equal(one, other)


def recurrent_weight(layer: RecurrentLayer) -> nn.Parameter:
    stepwise = isinstance(layer, LayerNormLSTM | QuantizableLSTM)
    return layer.from_hidden.weight if stepwise else layer.weight_hh_l0


@pytest.mark.parametrize("cls", WITH_RECURRENT_WEIGHTS)
def test_weight_dropout_masks_the_recurrent_weight_once_for_all_steps(cls):
    """The outputs are those of a layer without dropout whose recurrent weight is the masked one."""
    torch.manual_seed(1)
    dropping, plain, inputs_TBI = cls(5, 7, weight_dropout=0.5).double(), layer_of(cls), padded_inputs()
    weight_GH = recurrent_weight(plain).detach().clone()
    dropping.load_state_dict(plain.state_dict())
    torch.manual_seed(4)
    outputs_TBH = dropping(inputs_TBI)
    torch.manual_seed(4)
    masked_GH = dropping.weight_dropout(weight_GH)
    assert ((masked_GH == 0) | torch.isclose(masked_GH, 2 * weight_GH)).all()
    assert 0.3 < (masked_GH == 0).double().mean() < 0.7
    with torch.no_grad():
        recurrent_weight(plain).copy_(masked_GH)
    torch.testing.assert_close(outputs_TBH, plain(inputs_TBI))
    torch.manual_seed(4)
    _, final = dropping.forward_with_final_state(inputs_TBI, LENGTHS_B)
    torch.testing.assert_close(final, plain.forward_with_final_state(inputs_TBI, LENGTHS_B)[1])
    assert not torch.equal(dropping(inputs_TBI), outputs_TBH), "a second call draws another mask"
    dropping.eval()
    assert torch.equal(dropping(inputs_TBI), dropping(inputs_TBI, dropping.start(4, inputs_TBI)))


@pytest.mark.parametrize("cls", [LSTM, LayerNormLSTM, QuantizableLSTM])
def test_dropped_recurrent_weights_get_no_gradient_and_the_others_do(cls):
    layer, inputs_TBI = cls(5, 7, weight_dropout=0.5).double(), padded_inputs().clamp(max=1)
    torch.manual_seed(4)
    layer(inputs_TBI).sum().backward()
    torch.manual_seed(4)
    dropped_GH = layer.weight_dropout(torch.ones_like(recurrent_weight(layer))) == 0
    assert torch.equal(recurrent_weight(layer).grad == 0, dropped_GH)


def test_each_gate_is_normalized_by_itself():
    """One step is compared with Ba et al. 2016, gate by gate."""
    layer = layer_of(LayerNormLSTM)
    inputs_NI, hidden_NH, cell_NH = (torch.randn(2, width, dtype=torch.float64) for width in (5, 7, 7))
    new_hidden_NH, new_cell_NH = layer.step(inputs_NI, (hidden_NH, cell_NH))
    for row in range(2):
        gates = []
        for gate in range(4):
            rows = slice(7 * gate, 7 * gate + 7)
            summed = layer.from_inputs.weight[rows] @ inputs_NI[row] + layer.from_hidden.weight[rows] @ hidden_NH[row]
            centered = summed - summed.sum() / 7
            normalized = centered / ((centered * centered).sum() / 7 + 1e-5).sqrt()
            gates.append(layer.gain[gate] * normalized + layer.bias[gate])
        cell = torch.sigmoid(gates[1]) * cell_NH[row] + torch.sigmoid(gates[0]) * torch.tanh(gates[2])
        torch.testing.assert_close(new_cell_NH[row], cell)
        torch.testing.assert_close(new_hidden_NH[row], torch.sigmoid(gates[3]) * torch.tanh(cell))


def test_layer_normalization_starts_with_gain_1_and_bias_0():
    layer = LayerNormLSTM(5, 7)
    assert (layer.gain == 1).all()
    assert (layer.bias == 0).all()


@pytest.mark.parametrize("cell", ["gru", "quantizable_lstm", "min_lstm", "rg_lru"])
def test_normalization_of_another_cell_is_refused(cell):
    with pytest.raises(
        InputError, match=rf"model.encoder.layer_norm=true needs model.encoder.cell=lstm, found cell={cell}: change one"
    ):
        layer_class(cell, True, "model.encoder")


@pytest.mark.parametrize("cell", ["min_lstm", "rg_lru"])
def test_dropout_of_recurrent_weights_that_do_not_exist_is_refused(cell):
    with pytest.raises(
        InputError,
        match=rf"weight_dropout=0.1 needs recurrent weights, and model.decoder.cell={cell} has none: use",
    ):
        layer_class(cell, False, "model.decoder", 0.1)


def bidirectional_pair() -> tuple[Bidirectional, nn.LSTM]:
    """Return our layer and torch's with the same weights."""
    torch.manual_seed(2)
    ours = Bidirectional(5, 7).double()
    reference = nn.LSTM(5, 7, bidirectional=True).double()
    reference.load_state_dict(
        ours.ahead.state_dict() | {f"{name}_reverse": weight for name, weight in ours.back.state_dict().items()}
    )
    return ours, reference


def packed(layer: nn.LSTM, inputs_TBI: torch.Tensor) -> torch.Tensor:
    """Return the outputs [T, B, H] of torch's LSTM on packed sequences, without padding."""
    sequence = pack_padded_sequence(inputs_TBI, LENGTHS_B, enforce_sorted=False)
    return pad_packed_sequence(layer(sequence)[0])[0]


def test_the_bidirectional_layer_equals_a_packed_one_in_values_and_gradients():
    """The backward direction of a plain bidirectional LSTM would start in the padding."""
    ours, reference = bidirectional_pair()
    inputs_TBI = padded_inputs()
    ours_inputs, reference_inputs = inputs_TBI.clone().requires_grad_(), inputs_TBI.clone().requires_grad_()
    outputs = ours(ours_inputs, LENGTHS_B)[REAL_TB]
    expected = packed(reference, reference_inputs)[REAL_TB]
    torch.testing.assert_close(outputs, expected)
    direction = torch.randn_like(outputs)
    (outputs * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(ours_inputs.grad, reference_inputs.grad)
    assert ours_inputs.grad[~REAL_TB].abs().max() == 0
    for layer, suffix in ((ours.ahead, ""), (ours.back, "_reverse")):
        for name, weight in layer.named_parameters():
            torch.testing.assert_close(weight.grad, reference.get_parameter(name + suffix).grad)


@pytest.mark.parametrize(("cls", "reference_cls"), [(LSTM, nn.LSTM), (GRU, nn.GRU)])
def test_final_states_of_both_directions_equal_a_packed_layers(cls, reference_cls):
    torch.manual_seed(2)
    ours, reference = Bidirectional(5, 7, cls).double(), reference_cls(5, 7, bidirectional=True).double()
    back = {f"{name}_reverse": weight for name, weight in ours.back.state_dict().items()}
    reference.load_state_dict(ours.ahead.state_dict() | back)
    inputs_TBI = padded_inputs()
    outputs_TBH, final = ours.forward_with_final_state(inputs_TBI, LENGTHS_B)
    torch.testing.assert_close(outputs_TBH[REAL_TB], ours(inputs_TBI, LENGTHS_B)[REAL_TB])
    packed = reference(pack_padded_sequence(inputs_TBI, LENGTHS_B, enforce_sorted=False))[1]
    for found_BH, expected_2BH in zip(final, packed if isinstance(packed, tuple) else (packed,), strict=True):
        torch.testing.assert_close(found_BH, torch.cat(tuple(expected_2BH), dim=1))


def test_gradcheck_of_the_bidirectional_layer():
    torch.manual_seed(4)
    layer = Bidirectional(2, 2).double()
    inputs_TBI = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    lengths_B = torch.tensor([2, 3])
    assert torch.autograd.gradcheck(lambda inputs: layer(inputs, lengths_B), inputs_TBI)


def test_each_sequence_is_reversed_and_padding_stays_in_place():
    sequences_TB = torch.tensor([[1, 4, 9], [2, 5, 0], [3, 0, 0], [7, 0, 0]])
    lengths_B = torch.tensor([4, 2, 1])
    once_TB1 = reverse_by_length(sequences_TB[..., None], lengths_B)
    assert once_TB1[..., 0].tolist() == [[7, 5, 9], [3, 4, 0], [2, 0, 0], [1, 0, 0]]
    assert torch.equal(reverse_by_length(once_TB1, lengths_B)[..., 0], sequences_TB)


def test_the_gradient_of_reversal_is_reversal():
    torch.manual_seed(5)
    inputs_TBI = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    lengths_B = torch.tensor([4, 2, 1])
    assert torch.autograd.gradcheck(lambda inputs: reverse_by_length(inputs, lengths_B), inputs_TBI)


@pytest.mark.parametrize(("cls", "reference_cls"), [(LSTM, nn.LSTM), (GRU, nn.GRU)])
def test_a_stack_equals_torchs_with_the_same_weights(cls, reference_cls):
    torch.manual_seed(1)
    stack = ResidualStack(5, 7, 3, cls, None, Dropout(0.0)).double()
    reference = reference_cls(5, 7, 3).double()
    weights = {}
    for number, layer in enumerate(stack.layers):
        weights |= {name.replace("l0", f"l{number}"): weight for name, weight in layer.state_dict().items()}
    reference.load_state_dict(weights)
    inputs_TBI = torch.randn(6, 4, 5, dtype=torch.float64, requires_grad=True)
    found_TBH, (expected_TBH, _) = stack(inputs_TBI, [None] * 3), reference(inputs_TBI)
    torch.testing.assert_close(found_TBH, expected_TBH)
    direction_TBH = torch.randn_like(found_TBH)
    found = torch.autograd.grad((found_TBH * direction_TBH).sum(), [inputs_TBI, *stack.parameters()])
    expected = torch.autograd.grad((expected_TBH * direction_TBH).sum(), [inputs_TBI, *reference.parameters()])
    torch.testing.assert_close(found, expected)


def test_variational_masks_are_equal_for_all_steps_and_other_masks_are_not():
    for variational, same in ((True, True), (False, False)):
        stack = ResidualStack(64, 64, 2, LSTM, None, Dropout(0.5, variational))
        torch.manual_seed(1)
        masks = list(stack.dropout_masks(3, torch.zeros(4, 64)))
        assert [len(of_layers) for of_layers in masks] == [2, 2, 2]
        assert torch.equal(masks[0][0], masks[2][0]) is same
        assert not torch.equal(masks[0][0], masks[0][1])
        assert set(masks[1][1].unique().tolist()) == {0.0, 2.0}
        assert list(stack.eval().dropout_masks(3, torch.zeros(4, 64))) == [None] * 3
