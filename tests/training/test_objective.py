"""The objective: summed loss, number of tokens, and no padding in the output layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gnmt.batch import Tokens
from gnmt.data.batching import batch_of, collate
from gnmt.training.objective import Objective, _SelectTokens, real_token_indices


@pytest.fixture
def objective(make_trainer) -> Objective:
    return make_trainer("model.encoder.dropout=0").objective


def test_the_sum_and_the_number_of_target_tokens_with_eos(objective, preprocessed):
    pairs = np.arange(5)
    batch = collate(preprocessed.store, pairs)
    objective.eval()
    loss_sum, num_tokens = objective(batch)
    assert num_tokens == sum(len(preprocessed.store.target_ids([pair])[0]) + 1 for pair in pairs)
    expected = 0.0
    for pair in pairs:  # one at a time, so that there is no padding at all
        row = collate(preprocessed.store, [pair])
        hidden_BTH, _ = objective.model.decode(row.target_input, objective.model.encode(row.source))
        expected += F.cross_entropy(objective.model.output(hidden_BTH)[0], row.labels.ids_BT[0], reduction="sum")
    torch.testing.assert_close(loss_sum, expected, rtol=1e-5, atol=1e-5)


def test_padding_never_enters_the_output_layer(objective, preprocessed):
    seen = []
    objective.loss.register_forward_hook(lambda _, inputs, __: seen.append((inputs[0].shape[0], inputs[2])))
    batch = collate(preprocessed.store, np.arange(8))
    _, num_tokens = objective(batch)
    [(rows, labels_N)] = seen
    assert rows == len(labels_N) == num_tokens < batch.labels.ids_BT.numel()
    assert (labels_N != 0).all()


def test_smoothing_applies_in_training_only(objective, preprocessed):
    batch = collate(preprocessed.store, np.arange(3))
    losses = [objective.train(mode)(batch)[0].item() for mode in (True, False)]
    objective.loss.smoothing = 0.0
    assert objective.train()(batch)[0].item() == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_output_dropout_is_applied_in_training(make_trainer, preprocessed):
    objective = make_trainer("model.encoder.dropout=0", "model.output_dropout=0.5").objective
    batch = collate(preprocessed.store, np.arange(3))
    assert objective.train()(batch)[0] != objective(batch)[0]
    assert objective.eval()(batch)[0] == objective(batch)[0]


def test_r_drop_without_dropout_is_the_loss_of_one_pass(objective, preprocessed):
    """Both passes then agree, so the mean of the cross-entropies is the loss, and the divergence is zero."""
    batch = collate(preprocessed.store, np.arange(5))
    once, num_tokens = objective.train()(batch)
    grads = torch.autograd.grad(once, list(objective.parameters()))
    objective.loss.r_drop = 2.0
    doubled, num_tokens_of_both = objective(batch)
    torch.testing.assert_close(doubled, once, rtol=1e-5, atol=1e-5)
    assert num_tokens_of_both == num_tokens
    for found, expected in zip(torch.autograd.grad(doubled, list(objective.parameters())), grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_r_drop_runs_two_passes_with_different_dropout_in_training_only(make_trainer, preprocessed):
    objective = make_trainer("model.output_dropout=0.5", "loss.r_drop=1.0").objective
    rows = []
    objective.loss.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0]))
    batch = collate(preprocessed.store, np.arange(4))
    objective.train()(batch)
    objective.eval()(batch)
    assert [len(hidden_NH) for hidden_NH in rows] == [2 * batch.num_labels, batch.num_labels]
    assert not torch.equal(rows[0][0::2], rows[0][1::2])
    for rate in ("0", "0.5"):
        plain = make_trainer(f"model.encoder.dropout={rate}", "loss.r_drop=1.0").objective.train()
        plain.loss.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0]))
        plain(batch)
        assert torch.allclose(rows[-1][0::2], rows[-1][1::2], atol=1e-6) == (rate == "0"), "twins must be neighbors"


def test_the_indices_of_real_tokens_are_those_of_the_mask():
    lengths_B = torch.tensor([3, 1, 0, 4])
    mask_BT = Tokens(torch.zeros(4, 5, dtype=torch.int64), lengths_B).mask_BT
    assert torch.equal(torch.stack(real_token_indices(lengths_B, 8)), mask_BT.nonzero().T)


@pytest.mark.parametrize("time_major", [True, False])
def test_selecting_real_tokens_has_the_gradient_of_indexing(time_major):
    states = torch.randn(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    states_BTH = (states.transpose(0, 1) if time_major else states.reshape(3, 4, 2)).requires_grad_()
    indices = real_token_indices(torch.tensor([4, 1, 2]), 7)
    assert torch.equal(_SelectTokens.apply(states_BTH, *indices), states_BTH[indices])
    assert torch.autograd.gradcheck(lambda states_BTH: _SelectTokens.apply(states_BTH, *indices), states_BTH)
    [grad_BTH] = torch.autograd.grad(_SelectTokens.apply(states_BTH, *indices).sum(), states_BTH)
    assert grad_BTH.stride() == states_BTH.stride()


class Recorder(TorchDispatchMode):
    """Count all operations, and list those for whose result the host waits on CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.num_operations = 0
        self.waiting: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.num_operations += 1
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if by_mask or name in ("nonzero", "_local_scalar_dense", "is_nonzero", "masked_select"):
            self.waiting.append(name)
        return func(*args, **(kwargs or {}))


def test_no_operation_synchronizes_with_the_device(objective):
    """Once, a bool mask as index, whose output size is data-dependent, synchronized every update on CUDA."""
    batch = batch_of([[5, 6, 7], [8]], [[9], [4, 5, 6, 7]], np.arange(2))
    with Recorder() as recorder:
        loss_sum, _ = objective.train()(batch)
        loss_sum.backward()
    assert recorder.num_operations > 50
    assert recorder.waiting == []
    with Recorder() as recorder:  # the recorder detects such operations
        batch.labels.ids_BT[batch.labels.mask_BT].sum().item()
    assert recorder.waiting == ["index", "_local_scalar_dense"]


def test_the_number_of_labels_is_that_of_target_tokens_with_eos():
    batch = batch_of([[5, 6, 7], [8]], [[9], [4, 5, 6, 7]], np.arange(2))
    assert batch.num_labels == int(batch.labels.lengths_B.sum()) == 7
    assert batch.num_real_tokens == 7 + 6
