"""The loss of a batch: its sum, its count, and what never reaches the output layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gnmt.data.batching import collate
from gnmt.training.objective import Objective


@pytest.fixture
def objective(make_trainer) -> Objective:
    return make_trainer("model.encoder.dropout=0").objective


def test_the_sum_and_the_number_of_target_tokens_with_eos(objective, prepared):
    pairs = np.arange(5)
    batch = collate(prepared.store, pairs)
    objective.eval()
    loss_sum, num_tokens = objective(batch)
    assert num_tokens == sum(len(prepared.store.target_ids(pair)) + 1 for pair in pairs)
    expected = 0.0
    for pair in pairs:  # one at a time, so that there is no padding at all
        row = collate(prepared.store, [pair])
        hidden_BTH, _ = objective.model.decode(row.target_input, objective.model.encode(row.source))
        expected += F.cross_entropy(objective.model.output(hidden_BTH)[0], row.labels.ids_BT[0], reduction="sum")
    torch.testing.assert_close(loss_sum, expected, rtol=1e-5, atol=1e-5)


def test_padding_never_enters_the_output_layer(objective, prepared):
    seen = []
    objective.loss.register_forward_hook(lambda _, inputs, __: seen.append((inputs[0].shape[0], inputs[2])))
    batch = collate(prepared.store, np.arange(8))
    _, num_tokens = objective(batch)
    [(rows, labels_N)] = seen
    assert rows == len(labels_N) == num_tokens < batch.labels.ids_BT.numel()
    assert (labels_N != 0).all()


def test_smoothing_is_of_training_only(objective, prepared):
    batch = collate(prepared.store, np.arange(3))
    losses = [objective.train(mode)(batch)[0].item() for mode in (True, False)]
    objective.loss.smoothing = 0.0
    assert objective.train()(batch)[0].item() == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_output_dropout_is_applied_in_training(make_trainer, prepared):
    objective = make_trainer("model.encoder.dropout=0", "model.output_dropout=0.5").objective
    batch = collate(prepared.store, np.arange(3))
    assert objective.train()(batch)[0] != objective(batch)[0]
    assert objective.eval()(batch)[0] == objective(batch)[0]
