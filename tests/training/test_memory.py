"""microbatch_tokens=auto finds the largest microbatch that fits into memory, and a resumed run uses it again."""

from __future__ import annotations

import pytest
import torch

from gnmt.checkpoint.file import read_checkpoint
from gnmt.errors import InputError
from gnmt.training import memory
from gnmt.training.memory import choose_microbatch_tokens, run_trial

AUTO = "trainer.microbatch_tokens=auto"  # SETTINGS of conftest.py have batch_tokens=250


class FakeMemory:
    """A device on which microbatches of more than `largest` padded tokens run out of memory.

    Attributes:
        tried: Padded tokens of the microbatches that were tried.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
        self.largest = largest
        self.tried: list[int] = []
        monkeypatch.setattr(memory, "SEARCHED_DEVICES", ("cpu",))
        monkeypatch.setattr(memory, "run_trial", self)

    def __call__(self, trainer, batch) -> None:
        self.tried.append(batch.num_padded_tokens)
        if batch.num_padded_tokens > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_halves_are_tried_until_one_fits(make_trainer, monkeypatch, caplog):
    trainer = make_trainer(AUTO)
    device = FakeMemory(monkeypatch, 100)
    with caplog.at_level("INFO"):
        choose_microbatch_tokens(trainer)
    found = trainer.microbatch_tokens
    assert found in range(50, 101)
    assert all(tokens > 100 for tokens in device.tried[:-1])
    assert len(device.tried) == 1 + len([1 for half in (250, 125) if half > found])
    assert f"microbatch_tokens=auto: at most {found} tokens at a time (fits into the memory of cpu)" in caplog.text
    local_batch = next(trainer.stream)
    assert len(local_batch) > 1
    assert all(batch.num_padded_tokens <= found for batch in local_batch)


def test_a_global_batch_that_fits_is_not_split(make_trainer, monkeypatch):
    trainer = make_trainer(AUTO)
    device = FakeMemory(monkeypatch, 10**6)
    choose_microbatch_tokens(trainer)
    assert trainer.microbatch_tokens == 250
    assert len(device.tried) == 1
    assert len(next(trainer.stream)) == 1


def test_on_a_cpu_it_is_the_whole_batch_and_nothing_is_tried(make_trainer, monkeypatch):
    trainer = make_trainer(AUTO)
    device = FakeMemory(monkeypatch, 0)
    monkeypatch.undo()
    choose_microbatch_tokens(trainer)
    assert trainer.microbatch_tokens == 250
    assert device.tried == []


def test_all_ranks_use_the_smallest_number(make_trainer, monkeypatch):
    trainer = make_trainer(AUTO)
    FakeMemory(monkeypatch, 10**6)
    monkeypatch.setattr(trainer.ranks, "gather", lambda found: [found, 70])
    choose_microbatch_tokens(trainer)
    assert trainer.microbatch_tokens == 70
    assert all(batch.num_padded_tokens <= 70 for batch in next(trainer.stream))


def test_a_model_that_cannot_compute_the_longest_pair_is_refused(make_trainer, monkeypatch):
    trainer = make_trainer(AUTO)
    device = FakeMemory(monkeypatch, 0)
    with pytest.raises(InputError, match=r"not even the longest pair, \d+ tokens, fits into the memory of cpu: use a"):
        choose_microbatch_tokens(trainer)
    assert device.tried[-1] <= trainer.stream.longest_pair_tokens()


def test_other_errors_are_not_taken_for_a_lack_of_memory(make_trainer, monkeypatch):
    trainer = make_trainer(AUTO)
    FakeMemory(monkeypatch, 0)

    def fails(*args: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(memory, "run_trial", fails)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        choose_microbatch_tokens(trainer)


def test_a_trial_changes_neither_weights_nor_gradients_nor_random_numbers(make_trainer):
    trainer = make_trainer(AUTO)
    before = {name: tensor.clone() for name, tensor in trainer.objective.state_dict().items()}
    generator = torch.get_rng_state()
    run_trial(trainer, trainer.stream.largest_microbatch())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.objective.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.objective.parameters())


def test_the_optimizers_moments_are_reserved_until_they_exist(make_trainer):
    trainer = make_trainer(AUTO, "optimizer=adam")
    weights = sum(4 * parameter.numel() for parameter in trainer.objective.parameters())
    assert memory.reserved_bytes(trainer) == 2 * weights
    assert memory.estimate_state_bytes(trainer) == 4 * weights
    trainer.update(next(trainer.stream), trainer.metrics)
    assert memory.reserved_bytes(trainer) == 0


def test_a_resumed_run_begins_with_the_number_of_its_checkpoint(run, tmp_path, monkeypatch):
    device = FakeMemory(monkeypatch, 100)
    run(tmp_path, AUTO, "trainer.max_steps=1")
    found = read_checkpoint(tmp_path / "last.pt")["microbatch_tokens"]
    assert found in range(50, 101)

    device.largest = 10**6  # more memory does not matter
    device.tried.clear()
    run(tmp_path, AUTO, "trainer.max_steps=2")
    assert len(device.tried) == 1
    assert device.tried[0] <= found
    assert read_checkpoint(tmp_path / "last.pt")["microbatch_tokens"] == found
    assert "as in the checkpoint" in (tmp_path / "train.log").read_text(encoding="utf-8")

    device.largest = device.tried[0] - 1  # less memory does
    run(tmp_path, AUTO, "trainer.max_steps=3")
    assert read_checkpoint(tmp_path / "last.pt")["microbatch_tokens"] < found
