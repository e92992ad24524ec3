"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gnmt.training.optimizer import WeightAverage


def test_the_average_follows_its_formula():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay=0.25)
    expected = model.weight.item()
    for step, value in enumerate([3.0, -1.0, 5.0], start=1):
        nn.init.constant_(model.weight, value)
        average.update(step)
        decay = min(0.25, (1 + step) / (10 + step))  # 2/11, then 0.25 twice
        expected = decay * expected + (1 - decay) * value
        assert average.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-6)
        assert model.weight.item() == value


def test_the_model_has_its_own_weights_again_after_an_error():
    model = nn.Linear(2, 2)
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        model.weight += 1
    own = model.weight.detach().clone()

    def evaluation_that_fails() -> None:
        with average.applied():
            assert torch.equal(model.weight, average.state_dict()["weight"])
            assert not torch.equal(model.weight, own)
            raise KeyError

    with pytest.raises(KeyError):
        evaluation_that_fails()
    assert torch.equal(model.weight, own)


def test_shared_weights_are_averaged_once_and_a_saved_average_continues():
    model = nn.ModuleDict({"table": nn.Embedding(3, 2), "output": nn.Linear(2, 3)})
    model["output"].weight = model["table"].weight
    average = WeightAverage(model, decay=0.9)
    with torch.no_grad():
        model["table"].weight += 1
    average.update(1)
    saved = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    assert saved.keys() == {"table.weight", "output.bias"}
    other = WeightAverage(model, decay=0.9)
    other.load_state_dict(saved)
    for one in (average, other):
        one.update(2)
    assert torch.equal(average.state_dict()["table.weight"], other.state_dict()["table.weight"])
