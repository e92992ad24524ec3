"""An update whose loss or gradient is not finite is skipped, and a run that only skips updates ends."""

from __future__ import annotations

import math

import pytest
import torch

from gnmt.checkpoint.file import read_checkpoint
from gnmt.data.batching import LoaderState
from gnmt.errors import InputError
from gnmt.training.train_metrics import TrainMetrics
from gnmt.training.trainer import Trainer

OPTIMIZERS = {
    "fused adam": ("optimizer=adam",),
    "adamw": ("optimizer=adamw", "optimizer.fused=false"),
    "fused sgd with momentum": ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.lr=0.5"),
    "plain sgd": ("optimizer=sgd", "optimizer.lr=0.5", "optimizer.weight_decay=0.1"),
    "no fused kernel": ("optimizer._target_=torch.optim.NAdam", "~optimizer.fused", "~optimizer.amsgrad"),
}


def spoil(trainer: Trainer, factor: float = math.nan) -> torch.utils.hooks.RemovableHandle:
    """Multiply every gradient of one weight by `factor` until the returned handle is removed."""
    return trainer.objective.model.output_layer.bias.register_hook(lambda gradient: gradient * factor)


def update(trainer: Trainer, metrics: TrainMetrics) -> None:
    metrics.loader_states.append(trainer.stream.loader_state)
    trainer.update(next(trainer.stream), metrics)


def state(trainer: Trainer) -> list[torch.Tensor]:
    """Return copies of the weights and of the optimizer state."""
    remembered = (item for state in trainer.staged_optimizer.optimizer.state.values() for item in state.values())
    tensors = [*trainer.objective.parameters(), *(item for item in remembered if isinstance(item, torch.Tensor))]
    return [tensor.detach().clone() for tensor in tensors]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("first", [0, 2], ids=["from the first update", "later"])
def test_a_skipped_update_changes_neither_weights_nor_optimizer(make_trainer, optimizer, first):
    """Fused SGD whose first update is skipped on the device leaves its momentum uninitialized."""
    trainer = make_trainer(*OPTIMIZERS[optimizer], "trainer.ema_decay=0.5")
    metrics = TrainMetrics.begin(trainer.device)
    for _ in range(first):
        update(trainer, metrics)
    before, gradients = state(trainer), spoil(trainer)
    for _ in range(2):
        update(trainer, metrics)
    gradients.remove()
    after = state(trainer)
    assert len(before) == len(after)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert trainer.state.step == first + 2, "the schedule counts it"
    assert all(average.isfinite().all() for average in trainer.average.state_dict().values())
    update(trainer, metrics)
    moved = state(trainer)
    assert all(tensor.isfinite().all() for tensor in moved)
    assert not torch.equal(moved[0], before[0])
    sums = metrics.sums()
    assert (sums.updates, sums.longest_skip, sums.last_skipped) == (first + 1, 2, first + 1)
    assert 0 < sums.loss / sums.target_tokens < 10
    assert 0 < sums.gradient_norm < 100


def test_updates_after_a_skipped_one_are_as_without_its_batch(make_trainer):
    """Adam's bias correction counts applied updates; the schedule counts all."""
    weights = []
    for skips in (True, False):
        trainer = make_trainer("model.encoder.dropout=0", "schedule=constant")
        for number in range(4):
            if number == 2 and not skips:
                next(trainer.stream)
                trainer.state.step += 1
                continue
            gradients = spoil(trainer, math.nan if number == 2 else 1.0)
            update(trainer, TrainMetrics.begin(trainer.device))
            gradients.remove()
        weights.append(state(trainer))
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_an_infinite_loss_with_finite_gradients_is_skipped_too(make_trainer):
    trainer = make_trainer()
    metrics = TrainMetrics.begin(trainer.device)
    update(trainer, metrics)
    before, forward = state(trainer), trainer.objective.loss.forward
    trainer.objective.loss.forward = lambda *given, **options: forward(*given, **options) + math.inf
    update(trainer, metrics)
    assert all(torch.equal(one, other) for one, other in zip(before, state(trainer), strict=True))
    assert metrics.sums().updates == 1


def test_no_update_reads_the_device(make_trainer, monkeypatch):
    """This holds after the first update of a stage, for skipped updates too."""
    trainer = make_trainer("trainer.ema_decay=0.5", "trainer.microbatch_tokens=100")
    update(trainer, TrainMetrics.begin(trainer.device))
    metrics, batches = TrainMetrics.begin(trainer.device), [next(trainer.stream) for _ in range(3)]
    numbers = [sum(int(batch.labels.lengths_B.sum()) for batch in microbatches) for microbatches in batches]

    def refuse(tensor, *_):
        assert not tensor.is_floating_point(), "the update waited for the device"
        assert tensor.dtype != torch.bool, "the update waited for the device"
        return int(tensor.numpy())

    for name in ("__bool__", "__int__", "__float__", "item"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for number, microbatches in enumerate(batches):
        gradients = spoil(trainer, math.nan if number == 1 else 1.0)
        metrics.loader_states.append(trainer.stream.loader_state)
        trainer.update(microbatches, metrics)
        gradients.remove()
    monkeypatch.undo()
    assert metrics.sums().target_tokens == numbers[0] + numbers[2]
    assert metrics.sums().last_skipped == 1


def test_the_reported_index_is_that_of_the_longest_row_of_skipped_updates():
    """Once, the error message named the batch of the last skipped update, which need not belong to that row."""
    metrics, one, in_a_row = TrainMetrics.begin(torch.device("cpu")), torch.ones(()), 0
    for number, made in enumerate([True, False, False, False, True, False, True]):
        metrics.loader_states.append(LoaderState(0, number))
        in_a_row = 0 if made else in_a_row + 1
        metrics.add(one, one, 1, torch.tensor(made), torch.tensor(in_a_row), torch.zeros(0))
    assert (metrics.sums().longest_skip, metrics.sums().last_skipped) == (3, 3)


def test_the_log_counts_skipped_updates_and_a_few_do_not_end_the_run(make_trainer, caplog):
    trainer = make_trainer(
        "trainer.max_steps=8", "trainer.log_every_steps=4", "trainer.evaluate_every_steps=8",
        "trainer.max_nonfinite_updates=3",
    )  # fmt: skip
    reported = []
    trainer.reporter.scalar = lambda tag, value, step: reported.append((tag, step, value))
    original = trainer.update

    def sometimes_bad(microbatches, metrics):
        gradients = spoil(trainer, math.nan if trainer.state.step in (0, 3, 4, 6, 7) else 1.0)
        original(microbatches, metrics)
        gradients.remove()

    trainer.update = sometimes_bad
    trainer.fit()
    assert [entry[1:] for entry in reported if entry[0] == "train/skipped_updates"] == [(4, 2), (8, 3)]
    assert all(math.isfinite(value) for tag, _, value in reported if tag.startswith("train/"))
    assert "3 of these 4 updates were skipped: loss or gradient not finite" in caplog.text
    assert read_checkpoint(trainer.checkpoints.last)["skipped_in_a_row"] == 2


def test_too_many_skipped_updates_in_a_row_end_the_run_and_name_the_batch(make_trainer, preprocessed):
    trainer = make_trainer(
        "trainer.max_steps=20", "trainer.log_every_steps=5", "trainer.save_every_steps=1",
        "trainer.max_nonfinite_updates=4",
    )  # fmt: skip
    consumed, original = [], trainer.update

    def bad_from_the_third(microbatches, metrics):
        consumed.append(microbatches)
        gradients = spoil(trainer, math.inf if trainer.state.step >= 2 else 1.0)
        original(microbatches, metrics)
        gradients.remove()

    trainer.update = bad_from_the_third
    with pytest.raises(InputError) as caught:
        trainer.fit()
    message = str(caught.value)
    assert len(consumed) == 10, "three at the first log line, eight at the second"
    assert message.startswith("training diverged: 8 updates in a row were skipped")
    assert "lower optimizer.lr or trainer.clip_norm" in message
    assert "saved up to update 9" in message
    pairs = [pair for batch in consumed[-1] for pair in batch.pairs_B.tolist()]
    loader_state = trainer.stream.loader_state
    assert f"update 10, was on batch {loader_state.batches - 1} of epoch {loader_state.epoch}" in message
    assert f"{len(pairs)} pairs of the preprocessed text: {', '.join(map(str, pairs[:20]))}" in message
    assert (
        f"{pairs[0]}: {preprocessed.store.source_text(pairs[0])} | {preprocessed.store.target_text(pairs[0])}"
        in message
    )
    listed = (trainer.checkpoints.folder.parent / "nonfinite_batch.tsv").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t") for line in listed] == [
        [str(pair), preprocessed.store.source_text(pair), preprocessed.store.target_text(pair)] for pair in pairs
    ]
    weights = read_checkpoint(trainer.checkpoints.last)["model"].values()
    assert all(weight.isfinite().all() for weight in weights), "the saved weights are finite"


def test_a_resumed_run_continues_the_count_of_skipped_updates(make_trainer):
    """Otherwise a run that is preempted often enough would never end."""
    first = make_trainer("trainer.save_every_steps=2", "trainer.max_steps=2", "trainer.max_nonfinite_updates=3")
    spoil(first)
    first.fit()
    second = make_trainer("trainer.max_steps=3", "trainer.max_nonfinite_updates=3")
    second.restore(read_checkpoint(first.checkpoints.last))
    spoil(second)
    with pytest.raises(InputError, match="3 updates in a row were skipped"):
        second.fit()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_an_update_is_skipped_on_cuda(make_trainer):
    trainer = make_trainer("device=cuda", "optimizer=sgd", "optimizer.momentum=0.9")
    update(trainer, TrainMetrics.begin(trainer.device))
    before, gradients = state(trainer), spoil(trainer)
    metrics = TrainMetrics.begin(trainer.device)
    update(trainer, metrics)
    gradients.remove()
    assert all(torch.equal(one, other) for one, other in zip(before, state(trainer), strict=True))
    assert metrics.sums()[3:6] == (0, 1, 0)
