"""The training loop: one update, limits, best.pt, failed writes, divergence, and reports."""

from __future__ import annotations

import copy
import errno
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from stub_evaluation import results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import gnmt.training.train_metrics as metrics_module
from gnmt.checkpoint.file import read_checkpoint
from gnmt.data.batching import collate
from gnmt.data.store import PreprocessedData
from gnmt.errors import InputError
from gnmt.training.dev_evaluation import DevResult
from gnmt.training.train_metrics import TrainMetrics
from gnmt.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]
PLAIN_GRADIENT = (
    "optimizer=sgd",
    "optimizer.lr=1",
    "optimizer.momentum=0",
    "model.encoder.dropout=0",
    "trainer.batch_tokens=300",
)


def flat_weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([weight.detach().flatten().double() for weight in trainer.objective.parameters()])


def one_update(trainer: Trainer) -> tuple[torch.Tensor, TrainMetrics, list]:
    """Make one update. Return the negative change of the weights (the gradient for SGD at rate 1), metrics, batches."""
    before = flat_weights(trainer)
    microbatches = next(trainer.stream)
    metrics = TrainMetrics.begin(trainer.device)
    trainer.update(microbatches, metrics)
    return before - flat_weights(trainer), metrics, microbatches


def plain_gradient(trainer: Trainer, preprocessed: PreprocessedData, pairs: list[int]) -> torch.Tensor:
    """Return the gradient of the mean loss per target token, computed sentence by sentence in fp64."""
    objective = copy.deepcopy(trainer.objective).double().train()
    losses, counts = zip(*(objective(collate(preprocessed.store, [pair])) for pair in pairs), strict=True)
    gradients = torch.autograd.grad(sum(losses) / sum(counts), list(objective.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("microbatch_tokens", ["null", "60"])
def test_the_gradient_is_that_of_the_mean_over_all_target_tokens(make_trainer, preprocessed, microbatch_tokens):
    """With and without microbatches: no mean of means, and no division per sentence."""
    trainer = make_trainer(*PLAIN_GRADIENT, "trainer.clip_norm=null", f"trainer.microbatch_tokens={microbatch_tokens}")
    original = copy.deepcopy(trainer.objective)
    gradient, metrics, microbatches = one_update(trainer)
    assert (len(microbatches) > 2) is (microbatch_tokens != "null")
    trainer.objective = original
    expected = plain_gradient(
        trainer, preprocessed, [pair for batch in microbatches for pair in batch.pairs_B.tolist()]
    )
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()
    assert metrics.sums().gradient_norm == pytest.approx(expected.norm().item(), rel=1e-5)


def test_clipping_is_by_the_global_norm(make_trainer):
    free, free_metrics, _ = one_update(make_trainer(*PLAIN_GRADIENT, "trainer.clip_norm=null"))
    clipped, metrics, _ = one_update(make_trainer(*PLAIN_GRADIENT, "trainer.clip_norm=0.001"))
    assert clipped.norm().item() == pytest.approx(0.001, rel=1e-3)
    assert torch.nn.functional.cosine_similarity(free, clipped, dim=0) > 0.99999
    assert metrics.sums().gradient_norm == free_metrics.sums().gradient_norm, (
        "the reported norm is that before clipping"
    )
    roomy, _, _ = one_update(make_trainer(*PLAIN_GRADIENT, "trainer.clip_norm=1000"))
    torch.testing.assert_close(roomy, free)


def test_an_overflow_of_fp16_is_skipped_and_leaves_no_momentum(make_trainer):
    """Fused SGD whose first step is skipped on the device leaves its momentum uninitialized."""
    trainer = make_trainer(*PLAIN_GRADIENT, "optimizer.momentum=0.9")
    trainer.staged_optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    overflow = trainer.objective.model.output_layer.bias.register_hook(lambda gradient: gradient * torch.inf)
    change, metrics, _ = one_update(trainer)
    assert change.abs().max() == 0
    assert trainer.staged_optimizer.scaler.get_scale() == 2.0
    assert len(trainer.staged_optimizer.optimizer.state) == 0
    assert metrics.sums() == (0, 0, 0, 0, 1, -1, -math.inf, -math.inf)
    overflow.remove()
    change, metrics, _ = one_update(trainer)
    momentum = [state["momentum_buffer"].flatten() for state in trainer.staged_optimizer.optimizer.state.values()]
    torch.testing.assert_close(change, torch.cat(momentum).double(), rtol=1e-4, atol=1e-6)
    assert metrics.sums().gradient_norm > 0


def test_the_schedule_scales_the_rate_of_the_config(make_trainer, preprocessed):
    trainer = make_trainer("schedule.warmup_steps=4", "optimizer.lr=0.02")
    rates = []
    for _ in range(5):
        trainer.update(next(trainer.stream), TrainMetrics.begin(trainer.device))
        rates.append(trainer.staged_optimizer.learning_rate)
    assert rates == pytest.approx([0.005, 0.01, 0.015, 0.02, 0.02])


def test_the_bound_of_activations_falls_with_the_updates(make_trainer):
    quantizable = ("model/clipping=annealed", "model.encoder.cell=quantizable_lstm", "model.clipping.steps=4")
    trainer = make_trainer(*quantizable)
    bounds = []
    for _ in range(6):
        trainer.update(next(trainer.stream), TrainMetrics.begin(trainer.device))
        bounds.append(float(trainer.objective.model.decoder.bottom.clip.delta))
    assert bounds == [8.0, 6.25, 4.5, 2.75, 1.0, 1.0]


def test_the_average_includes_every_update(make_trainer):
    trainer = make_trainer("trainer.ema_decay=0.5")
    expected = flat_weights(trainer)
    for step in (1, 2, 3):
        trainer.update(next(trainer.stream), TrainMetrics.begin(trainer.device))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * flat_weights(trainer)
    found = torch.cat([average.flatten().double() for average in trainer.average.state_dict().values()])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# Limits


def test_max_epochs_ends_with_the_last_batch_of_the_epoch(make_trainer, preprocessed):
    trainer = make_trainer("trainer.max_epochs=2", "trainer.max_steps=1000")
    trainer.evaluate = results([1.0], preprocessed)
    first_epoch = len(trainer.stream)
    seen: list[int] = []
    update = trainer.update

    def watched(microbatches, metrics):
        seen.extend(pair for batch in microbatches for pair in batch.pairs_B.tolist())
        update(microbatches, metrics)

    trainer.update = watched
    state = trainer.fit()
    assert first_epoch > 2
    assert state.step == pytest.approx(2 * first_epoch, abs=2)
    assert sorted(seen) == sorted(2 * list(range(len(preprocessed.store)))), "every pair once in each epoch"


def test_patience_counts_evaluations_without_a_better_bleu(make_trainer, preprocessed):
    trainer = make_trainer("trainer.patience_evaluations=2", "trainer.evaluate_every_steps=1")
    trainer.evaluate = results([5.0, 4.0, 6.0, 6.0, 5.5, 99.0], preprocessed)
    state = trainer.fit()
    assert (state.step, state.best_step, state.best["dev/bleu"]) == (5, 3, 6.0)
    saved = trainer.checkpoints.newest()
    assert (saved["step"], len(saved["evaluations"]), saved["best"]["dev/bleu"]) == (5, 5, 6.0)


@pytest.mark.parametrize(
    ("metric", "bleus", "losses", "best_step"),
    [
        ("dev/bleu", [0.0, 0.0, 0.0, 0.0], [5.0, 4.0, 3.0, 3.5], 3),  # once, this was update 1
        ("dev/bleu", [0.0, 2.0, 1.0, 2.0], [5.0, 4.0, 3.0, 4.5], 2),
        ("dev/loss", [9.0, 8.0, 7.0, 6.0], [5.0, 4.0, 3.0, 3.5], 3),
        ("dev/loss", [9.0, 8.0, 7.0, 6.0], [math.nan, math.inf, 3.0, math.nan], 3),
        ("dev/bleu", [1.0, 1.0, 1.0, 1.0], [math.nan, math.nan, math.nan, 2.0], 4),
    ],
)
def test_the_best_evaluation_is_that_of_best_metric_and_dev_loss_breaks_ties(
    make_trainer, preprocessed, metric, bleus, losses, best_step
):
    trainer = make_trainer(f"trainer.best_metric={metric}", "trainer.max_steps=4", "trainer.evaluate_every_steps=1")
    trainer.evaluate = results(bleus, preprocessed, losses)
    state = trainer.fit()
    best = read_checkpoint(trainer.checkpoints.best)
    assert best["step"] == state.best_step == best_step
    assert best["best"]["dev/loss"] == losses[best_step - 1]
    assert state.stale_evaluations == 4 - best_step


def test_patience_follows_best_metric(make_trainer, preprocessed):
    trainer = make_trainer(
        "trainer.best_metric=dev/loss", "trainer.patience_evaluations=2", "trainer.evaluate_every_steps=1"
    )
    trainer.evaluate = results([1.0, 2.0, 3.0, 4.0, 5.0], preprocessed, [3.0, 2.0, 2.5, 2.2, 1.0])
    assert trainer.fit().step == 4


def test_a_bleu_of_0_at_three_evaluations_in_a_row_is_warned_about_once(make_trainer, preprocessed, caplog):
    trainer = make_trainer("trainer.max_steps=7", "trainer.evaluate_every_steps=1")
    trainer.evaluate = results([0.0, 0.0, 1.0, 0.0, 0.001, 0.0, 0.0], preprocessed)
    trainer.fit()
    warnings = [message for message in caplog.messages if "dev BLEU is 0.00" in message]
    assert len(warnings) == 1
    assert warnings[0].startswith("dev BLEU is 0.00 at 3 evaluations in a row (signature ")
    assert "data.bleu_tokenize" in warnings[0]


def test_the_end_is_evaluated_and_saved_with_its_result(make_trainer, preprocessed):
    """Once, the last checkpoint was written before the last evaluation, so a resumed run did not have its result."""
    trainer = make_trainer("trainer.max_steps=4", "trainer.evaluate_every_steps=3", "trainer.save_every_steps=2")
    trainer.evaluate = results([1.0, 2.0], preprocessed)
    trainer.fit()
    saved = trainer.checkpoints.newest()
    assert (saved["step"], saved["best_step"], saved["best"]["dev/bleu"]) == (4, 4, 2.0)


# best.pt and failed writes


def test_best_holds_the_averaged_weights_of_the_best_evaluation(make_trainer, preprocessed):
    trainer = make_trainer("trainer.ema_decay=0.9", "trainer.max_steps=3", "trainer.evaluate_every_steps=1")
    evaluated = []
    outcomes = results([1.0, 3.0, 2.0], preprocessed)

    def evaluate(*_) -> DevResult:
        evaluated.append({name: weight.clone() for name, weight in trainer.objective.model.state_dict().items()})
        return outcomes()

    trainer.evaluate = evaluate
    trainer.fit()
    best = read_checkpoint(trainer.checkpoints.best)
    assert best["step"] == best["best_step"] == 2
    assert best["best"]["dev/bleu"] == 3.0
    assert all(torch.equal(best["model"][name], weight) for name, weight in evaluated[1].items())
    assert "optimizer" not in best
    full = read_checkpoint(trainer.checkpoints.last)
    assert all(torch.equal(full["average"][name], evaluated[2][name]) for name in full["average"])
    assert not torch.equal(full["model"]["output_layer.bias"], evaluated[2]["output_layer.bias"])


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(make_trainer, preprocessed, monkeypatch, caplog):
    trainer = make_trainer("trainer.max_steps=3", "trainer.save_every_steps=1", "trainer.evaluate_every_steps=1")
    trainer.evaluate = results([1.0, 3.0, 2.0], preprocessed)
    fsync = os.fsync

    def full_at_the_second_update(descriptor):
        if trainer.writer._name.endswith("of update 2"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_at_the_second_update)
    with caplog.at_level(logging.ERROR):
        state = trainer.fit()
    assert [path.name for path in trainer.checkpoints.full()] == ["step_00000001.pt", "step_00000003.pt"]
    assert not list(trainer.checkpoints.folder.parent.rglob("*.tmp"))
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(" was not")[0] for message in messages] == [
        "best.pt of update 2",
        "the checkpoint of update 2",
    ]
    assert all("No space left on device" in message and "the previous one stays" in message for message in messages)
    # `state.best` describes best.pt, so a later evaluation can still replace it.
    best = read_checkpoint(trainer.checkpoints.best)
    assert best["step"] == best["best_step"] == state.best_step == 3
    assert best["best"] == state.best


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(make_trainer):
    trainer = make_trainer("optimizer.lr=1e30", "trainer.save_every_steps=1")
    with pytest.raises(InputError, match=r"diverged: .* at update \d+: lower optimizer\.lr or trainer\.clip_norm"):
        trainer.fit()


def test_diverged_weights_are_never_saved(make_trainer):
    """Between two log lines they would displace the sound checkpoints."""
    trainer = make_trainer("trainer.log_every_steps=1000", "trainer.save_every_steps=1")
    update = trainer.update

    def diverge_at_the_third(microbatches, metrics):
        update(microbatches, metrics)
        if trainer.state.step == 3:
            torch.nn.init.constant_(trainer.objective.model.output_layer.bias, torch.nan)

    trainer.update = diverge_at_the_third
    with pytest.raises(InputError, match=r"some weights are not finite at update 3: .* saved up to update 2"):
        trainer.fit()
    assert [read_checkpoint(path)["step"] for path in trainer.checkpoints.full()] == [1, 2]


# Evaluation during training, and reports


def test_evaluation_does_not_change_the_updates_after_it(make_trainer):
    """With dropout and averaged weights, training is bitwise the same with and without evaluations."""
    outcomes = []
    for every in (1, 1000):
        trainer = make_trainer("trainer.max_steps=3", f"trainer.evaluate_every_steps={every}", "trainer.ema_decay=0.9")
        trainer.fit()
        outcomes.append((flat_weights(trainer), torch.get_rng_state(), *trainer.average.state_dict().values()))
    assert all(torch.equal(one, other) for one, other in zip(*outcomes, strict=True))


def scalars(trainer: Trainer) -> dict[str, list[tuple[int, float]]]:
    trainer.reporter.flush()
    events = EventAccumulator(str(trainer.checkpoints.folder.parent), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_throughput_counts_real_tokens_and_the_time_of_training_and_data_loading(
    make_trainer, preprocessed, monkeypatch
):
    trainer = make_trainer("trainer.max_steps=4", "trainer.log_every_steps=2", "trainer.evaluate_every_steps=1")
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(metrics_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    outcomes, update, stream = results([1.0] * 4, preprocessed), trainer.update, trainer.stream
    seen = []

    def evaluate(*_) -> DevResult:
        clock.now += 1000
        return outcomes()

    def timed_update(microbatches, metrics):
        clock.now += 2
        seen.append(microbatches)
        update(microbatches, metrics)

    def load():
        clock.now += 1
        return next(stream)

    class Slow:
        loader_state, epochs = stream.loader_state, stream.epochs
        __next__ = staticmethod(load)
        __len__ = staticmethod(lambda: len(stream))
        close = staticmethod(stream.close)

    trainer.evaluate, trainer.update, trainer.stream = evaluate, timed_update, Slow()
    trainer.fit()
    found = scalars(trainer)
    for interval, step in ((seen[:2], 2), (seen[2:], 4)):
        batches = [batch for microbatches in interval for batch in microbatches]
        real = sum(int(batch.source.lengths_B.sum() + batch.labels.lengths_B.sum()) for batch in batches)
        padded = sum(batch.source.ids_BT.numel() + batch.labels.ids_BT.numel() for batch in batches)
        assert dict(found["train/tokens_per_second"])[step] == pytest.approx(real / 6, rel=1e-5)
        assert dict(found["train/padding_fraction"])[step] == pytest.approx(1 - real / padded, rel=1e-4, abs=1e-7)
    assert [step for step, _ in found["train/loss"]] == [2, 4]
    assert [step for step, _ in found["dev/bleu"]] == [1, 2, 3, 4]


def test_the_log_tells_how_long_updates_waited_for_a_checkpoint(make_trainer, preprocessed, caplog, monkeypatch):
    """Only the waiting of the loop counts: the write itself runs during updates."""
    trainer = make_trainer("trainer.max_steps=3", "trainer.save_every_steps=1")
    trainer.evaluate = results([1.0], preprocessed)
    save, wait, waited = trainer.checkpoints.save, trainer.writer.wait, threading.Semaphore(0)

    def save_when_waited_for(step, contents):
        waited.acquire()
        time.sleep(0.5)
        save(step, contents)

    def wait_and_say_so():
        if trainer.writer._thread is not None:
            waited.release()
        wait()

    monkeypatch.setattr(trainer.checkpoints, "save", save_when_waited_for)
    monkeypatch.setattr(trainer.checkpoints, "save_best", lambda contents: waited.acquire())
    monkeypatch.setattr(trainer.writer, "wait", wait_and_say_so)
    with caplog.at_level(logging.INFO):
        trainer.fit()
    stalls = re.findall(r"the checkpoint of update (\d) is written; training paused (\S+) seconds for it", caplog.text)
    assert [int(step) for step, _ in stalls] == [1, 2, 3]
    assert float(stalls[1][1]) >= 0.5  # the second one waited for the first one's write
    assert float(stalls[0][1]) < float(stalls[1][1])


def test_training_is_the_same_with_and_without_prefetching_and_no_thread_remains(make_trainer):
    weights = []
    for ahead in (0, 2):
        trainer = make_trainer("trainer.max_steps=7", f"trainer.prefetch_batches={ahead}")
        trainer.fit()
        weights.append(torch.cat([weight.detach().flatten() for weight in trainer.objective.parameters()]))
    assert torch.equal(*weights)
    assert [
        thread for thread in threading.enumerate() if thread.name in ("batch prefetcher", "checkpoint writer")
    ] == []
