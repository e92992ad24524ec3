"""The cheap dropout mask against what dropout must be."""

import pytest
import torch

from gnmt.model.dropout import Dropout


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5, 0.9])
def test_the_share_of_zeros_and_the_mean(probability):
    torch.manual_seed(1)
    outputs = Dropout(probability)(torch.ones(400, 1003))
    assert (outputs == 0).float().mean().item() == pytest.approx(probability, abs=0.005)
    assert outputs.mean().item() == pytest.approx(1, abs=0.02)
    kept = outputs[outputs != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - probability)), rtol=1e-4, atol=0)


def test_elements_of_one_draw_are_independent():
    """Four elements share 64 random bits; none may tell anything of its neighbour."""
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
