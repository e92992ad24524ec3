"""The cheap dropout mask against what dropout must be."""

import pytest
import torch

from gnmt.model.layers import Dropout, WordDropout


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5, 0.9])
def test_the_share_of_zeros_and_the_mean(probability):
    torch.manual_seed(1)
    outputs = Dropout(probability)(torch.ones(400, 1003))
    assert (outputs == 0).float().mean().item() == pytest.approx(probability, abs=0.005)
    assert outputs.mean().item() == pytest.approx(1, abs=0.02)
    kept = outputs[outputs != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - probability)), rtol=1e-4, atol=0)


def test_elements_of_one_draw_are_independent():
    """Four elements share 64 random bits; none may tell anything of its neighbor."""
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(100_000, 4)) != 0).float()
    correlations = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlations.abs().max() < 0.015


def test_gradients_pass_where_the_elements_passed():
    torch.manual_seed(1)
    inputs = torch.ones(50, 7, requires_grad=True)
    outputs = Dropout(0.3)(inputs)
    outputs.sum().backward()
    assert torch.equal(inputs.grad, outputs.detach())


def test_the_same_seed_gives_the_same_mask_and_the_next_call_another():
    inputs = torch.ones(64, 32, dtype=torch.bfloat16)
    dropout = Dropout(0.5)
    torch.manual_seed(3)
    first, second = dropout(inputs), dropout(inputs)
    torch.manual_seed(3)
    assert torch.equal(dropout(inputs), first)
    assert not torch.equal(first, second)
    assert first.dtype == torch.bfloat16


@pytest.mark.parametrize("probability", [0.0, 1e-9])
def test_next_to_nothing_is_dropped_at_next_to_no_probability(probability):
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(Dropout(probability)(inputs), inputs)


def test_evaluation_changes_nothing():
    inputs = torch.randn(5, 3)
    assert Dropout(0.5).eval()(inputs) is inputs


def test_an_empty_batch_stays_empty():
    assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)


def test_one_mask_for_all_steps_of_a_sentence_and_another_for_the_next_sentence():
    torch.manual_seed(1)
    outputs_TBH = Dropout(0.5, variational=True)(torch.ones(6, 3, 64))
    assert torch.equal(outputs_TBH, outputs_TBH[:1].expand(6, 3, 64))
    assert not torch.equal(outputs_TBH[0, 0], outputs_TBH[0, 1])
    assert 0.3 < (outputs_TBH == 0).float().mean() < 0.7
    assert outputs_TBH.max() == 2


def test_words_are_dropped_as_a_whole():
    torch.manual_seed(1)
    outputs_BTE = WordDropout(0.25)(torch.ones(50, 40, 8))
    whole_BT = outputs_BTE.sum(2)
    assert set(whole_BT.unique().tolist()) == {0.0, whole_BT.max().item()}
    assert (whole_BT == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert whole_BT.mean().item() == pytest.approx(8, abs=0.3)
    assert torch.equal(WordDropout(0.25).eval()(outputs_BTE), outputs_BTE)
