"""Data-parallel training in one process: costs nothing alone, and stop requests on CUDA."""

from __future__ import annotations

import signal

import pytest
import torch
from torch.distributed import HashStore

from gnmt.data.batching import LocalBatch
from gnmt.distributed import Ranks
from gnmt.training.data_parallel import DataParallel

CPU = torch.device("cpu")


def test_a_process_that_runs_alone_joins_no_group_and_calls_the_objective_itself(monkeypatch):
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail("joined a group"))
    objective = torch.nn.Linear(2, 2)
    with Ranks().process_group(CPU):
        parallel = DataParallel(Ranks(), CPU, seed=0)
        assert parallel.replicate(objective) is objective
        state = torch.get_rng_state()
        parallel.begin_update(3)
        assert torch.equal(torch.get_rng_state(), state)
        loss = torch.tensor(2.0)
        assert parallel.end_update(loss, None) is loss


def test_a_local_batch_without_pairs_needs_a_dummy_batch():
    with pytest.raises(AssertionError):
        LocalBatch([], 3, 4)


def test_on_cuda_a_stop_request_is_followed_one_update_later():
    """The host does not wait for the present update."""
    parallel = DataParallel(Ranks(0, 2, 0, HashStore()), torch.device("cuda"), seed=1)
    parallel._stop_requests.append((torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0]), None))
    assert parallel.stop_after_update(None) is None, "the first update's requests are not read before the second"
    parallel._stop_requests.append((torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0]), None))
    assert parallel.stop_after_update(None) is None
    parallel._stop_requests.append((torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0]), None))
    assert parallel.stop_after_update(None) == signal.SIGTERM
