"""Dropout masks have the right statistics; positions and the affine product equal their formulas."""

import pytest
import torch
from torch import nn

from gnmt.device import onednn_dtypes
from gnmt.model.layers import Dropout, Positions, WordDropout, affine, sinusoids


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5, 0.9])
def test_the_fraction_of_zeros_and_the_mean_are_right(probability):
    torch.manual_seed(1)
    outputs = Dropout(probability)(torch.ones(400, 1003))
    assert (outputs == 0).float().mean().item() == pytest.approx(probability, abs=0.005)
    assert outputs.mean().item() == pytest.approx(1, abs=0.02)
    kept = outputs[outputs != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - probability)), rtol=1e-4, atol=0)


def test_elements_of_one_draw_are_independent():
    """Four elements are drawn from 64 random bits."""
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(100_000, 4)) != 0).float()
    correlations = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlations.abs().max() < 0.015


def test_gradients_have_the_same_mask_as_the_elements():
    torch.manual_seed(1)
    inputs = torch.ones(50, 7, requires_grad=True)
    outputs = Dropout(0.3)(inputs)
    outputs.sum().backward()
    assert torch.equal(inputs.grad, outputs.detach())


def test_a_seed_determines_the_mask_and_each_call_draws_another():
    inputs = torch.ones(64, 32, dtype=torch.bfloat16)
    dropout = Dropout(0.5)
    torch.manual_seed(3)
    first, second = dropout(inputs), dropout(inputs)
    torch.manual_seed(3)
    assert torch.equal(dropout(inputs), first)
    assert not torch.equal(first, second)
    assert first.dtype == torch.bfloat16


@pytest.mark.parametrize("probability", [0.0, 1e-9])
def test_a_probability_near_zero_drops_nothing(probability):
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(Dropout(probability)(inputs), inputs)


def test_evaluation_changes_nothing():
    inputs = torch.randn(5, 3)
    assert Dropout(0.5).eval()(inputs) is inputs


def test_an_empty_batch_stays_empty():
    assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)


def test_variational_dropout_has_one_mask_for_all_steps_and_another_for_each_sentence():
    torch.manual_seed(1)
    outputs_TBH = Dropout(0.5, variational=True)(torch.ones(6, 3, 64))
    assert torch.equal(outputs_TBH, outputs_TBH[:1].expand(6, 3, 64))
    assert not torch.equal(outputs_TBH[0, 0], outputs_TBH[0, 1])
    assert 0.3 < (outputs_TBH == 0).float().mean() < 0.7
    assert outputs_TBH.max() == 2


def test_word_dropout_drops_whole_embeddings():
    torch.manual_seed(1)
    outputs_BTE = WordDropout(0.25)(torch.ones(50, 40, 8))
    sum_BT = outputs_BTE.sum(2)
    assert set(sum_BT.unique().tolist()) == {0.0, sum_BT.max().item()}
    assert (sum_BT == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert sum_BT.mean().item() == pytest.approx(8, abs=0.3)
    assert torch.equal(WordDropout(0.25).eval()(outputs_BTE), outputs_BTE)


def test_word_dropout_keeps_the_tokens_of_a_mask_as_they_are():
    kept_BT = torch.arange(40).expand(50, 40) % 7 == 3
    torch.manual_seed(1)
    plain_BTE = WordDropout(0.25)(torch.ones(50, 40, 8))
    torch.manual_seed(1)
    outputs_BTE = WordDropout(0.25)(torch.ones(50, 40, 8), kept_BT)
    assert torch.equal(outputs_BTE[~kept_BT], plain_BTE[~kept_BT])
    assert (outputs_BTE[kept_BT] == 1).all()


def test_distant_positions_differ_in_bf16():
    """Angles computed in bf16 would be equal for hundreds of neighboring positions."""
    far = torch.arange(1000, 1010)
    vectors = sinusoids(far, 64, torch.bfloat16)
    assert vectors.dtype == torch.bfloat16
    torch.testing.assert_close(vectors.double(), sinusoids(far, 64, torch.float64), atol=0.005, rtol=0)


def test_positions_at_steps_equal_those_of_the_whole_sequence():
    torch.manual_seed(1)
    like = torch.zeros(2, 7, 5)  # an odd width too
    for learned in (None, 7):
        positions = Positions(5, learned)
        positions_BK = torch.tensor([[6, 0], [3, 3]])
        assert torch.equal(positions.at(positions_BK, like), positions(like)[positions_BK])


@pytest.mark.parametrize("dtype", [torch.float64, *onednn_dtypes()])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_affine_equals_torchs_linear(rows, dtype):
    torch.manual_seed(8)
    inputs, weight, bias = (torch.randn(size).to(dtype) for size in ((2 * rows, 5), (7, 5), (7,)))
    expected = nn.functional.linear(inputs[::2], weight, bias)
    torch.testing.assert_close(affine(inputs[::2], weight, bias), expected)
