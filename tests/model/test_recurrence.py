"""The LSTMs against torch's own, with packing as the reference for what padding must not do."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gnmt.model.recurrent.layers import LSTM, Bidirectional, reverse_by_length

LENGTHS_B = torch.tensor([3, 6, 1, 4])


def inputs_and_mask() -> tuple[torch.Tensor, torch.Tensor]:
    """[T, B, I] with large numbers in the padding, and the bool mask [T, B]."""
    torch.manual_seed(3)
    mask_TB = torch.arange(6)[:, None] < LENGTHS_B
    inputs_TBI = torch.randn(6, 4, 5, dtype=torch.float64)
    inputs_TBI[~mask_TB] = 1e3
    return inputs_TBI, mask_TB


def test_steps_equal_the_whole_sequence():
    torch.manual_seed(1)
    layer = LSTM(5, 7).double()
    inputs_TBI, _ = inputs_and_mask()
    reference = nn.LSTM(5, 7).double()
    reference.load_state_dict(layer.state_dict())
    expected_TBH, _ = reference(inputs_TBI)
    torch.testing.assert_close(layer(inputs_TBI), expected_TBH)
    state = (torch.zeros(4, 7, dtype=torch.float64), torch.zeros(4, 7, dtype=torch.float64))
    for inputs_BI, expected_BH in zip(inputs_TBI, expected_TBH, strict=True):
        state = layer.step(inputs_BI, state)
        torch.testing.assert_close(state[0], expected_BH)


def bidirectional_pair() -> tuple[Bidirectional, nn.LSTM]:
    """Ours and torch's with the same weights."""
    torch.manual_seed(2)
    ours = Bidirectional(5, 7).double()
    reference = nn.LSTM(5, 7, bidirectional=True).double()
    reference.load_state_dict(
        ours.ahead.state_dict() | {f"{name}_reverse": weight for name, weight in ours.back.state_dict().items()}
    )
    return ours, reference


def packed(layer: nn.LSTM, inputs_TBI: torch.Tensor) -> torch.Tensor:
    """Outputs [T, B, H] of torch's LSTM, which sees no padding."""
    sequence = pack_padded_sequence(inputs_TBI, LENGTHS_B, enforce_sorted=False)
    return pad_packed_sequence(layer(sequence)[0])[0]


def test_the_bidirectional_layer_equals_a_packed_one_in_values_and_gradients():
    """The backward direction of a plain bidirectional LSTM would start in the padding."""
    ours, reference = bidirectional_pair()
    inputs_TBI, mask_TB = inputs_and_mask()
    ours_inputs, reference_inputs = inputs_TBI.clone().requires_grad_(), inputs_TBI.clone().requires_grad_()
    outputs = ours(ours_inputs, LENGTHS_B)[mask_TB]
    expected = packed(reference, reference_inputs)[mask_TB]
    torch.testing.assert_close(outputs, expected)
    direction = torch.randn_like(outputs)
    (outputs * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(ours_inputs.grad, reference_inputs.grad)
    assert ours_inputs.grad[~mask_TB].abs().max() == 0
    for layer, suffix in ((ours.ahead, ""), (ours.back, "_reverse")):
        for name, weight in layer.named_parameters():
            torch.testing.assert_close(weight.grad, reference.get_parameter(name + suffix).grad)


def test_gradcheck_of_the_bidirectional_layer():
    torch.manual_seed(4)
    layer = Bidirectional(2, 2).double()
    inputs_TBI = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    lengths_B = torch.tensor([2, 3])
    assert torch.autograd.gradcheck(lambda inputs: layer(inputs, lengths_B), inputs_TBI)


def test_reversal_turns_each_sequence_round_and_leaves_padding_in_its_place():
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
