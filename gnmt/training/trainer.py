"""The training loop.

`Trainer.fit` is the loop: take a batch, `update`, log, evaluate, save. The other methods follow in the order in which
the loop calls them. `TrainerOptions` holds the limits and intervals.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from gnmt.config.validate import BatchSize, Range
from gnmt.data.batching import LocalBatch, Prefetcher
from gnmt.device import Precision
from gnmt.errors import DivergedError
from gnmt.logs import format_duration, progress_bar
from gnmt.reporting.tensorboard import Reporter
from gnmt.signals import Abandoned, StopRequest, agreed_stop, describe_stop
from gnmt.training.data_parallel import DataParallel
from gnmt.training.dev_evaluation import DevResult, report_by_tokens, report_evaluation
from gnmt.training.objective import Objective
from gnmt.training.optimizer import Stage, StagedOptimizer, StageOptions, WeightAverage, check_stages
from gnmt.training.run_checkpoints import BackgroundWriter, RunCheckpoints, random_state, restore_random_state, snapshot
from gnmt.training.train_metrics import (
    BestMetric,
    FirstEstimate,
    GradientNorms,
    TrainMetrics,
    TrainState,
    UpdateRatios,
    describe_batch,
    format_metrics,
)

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger(__name__)

Steps = Annotated[int, Range(1)]
NUM_ZERO_BLEU = 3
"""Number of evaluations in a row with a dev BLEU of 0.00 that is warned about."""


@dataclass(frozen=True)
class TrainerOptions:
    """Limits, batch sizes and intervals of training.

    Args:
        max_steps: Largest number of updates.
        max_epochs: Largest number of passes over the training data; None for no limit.
        stages: Training stages, each with its own optimizer and schedule; None for one stage with those of the root
            keys `optimizer` and `schedule`.
        batch_tokens: Largest number of source and target tokens of one update, padding included.
        microbatch_tokens: Largest number of such tokens in one forward and backward pass; None for the whole batch at
            once, "auto" for the largest number that fits into the memory of the GPU, see
            `gnmt.training.memory.choose_microbatch_tokens`.
        pad_to_multiple_of: Lengths of both sides are padded to a multiple of this number, so that fewer shapes occur:
            a CPU compiles a kernel for each shape.
        clip_norm: Largest global norm of the gradient; None for no clipping.
        max_nonfinite_updates: Number of updates skipped in a row, because loss or gradient were not finite, that ends
            the run. Checked when a log line is written.
        subword_regularization: 0 for none. Otherwise, with a BPE tokenizer, the probability that a merge is left out;
            with a unigram tokenizer, the exponent on the probability of a segmentation (smaller is more random); with
            a word_character tokenizer, the probability that a word is spelled.
        subword_regularization_epochs: Passes over the training data in which the share of pairs with sampled subwords
            falls linearly from 1 to 0; None for all pairs in every pass.
        ema_decay: Decay of the moving average of the weights. The average is evaluated and saved as best.pt. None for
            no average.
        prefetch_batches: Number of batches that a thread prepares ahead; 0 for none.
        log_every_steps: Updates between two log lines.
        gradient_norms_every_steps: Updates between two records of `GradientNorms`; None for no records.
        evaluate_every_steps: Updates between two evaluations on the dev set.
        save_every_steps: Updates between two full checkpoints.
        keep_checkpoints: Number of newest full checkpoints that are kept.
        best_metric: Dev metric that chooses best.pt and that patience and the plateau schedule follow; dev loss breaks
            ties.
        patience_evaluations: Number of evaluations in a row without a new best one that ends the run; None for no
            limit.
        num_sample_translations: Number of dev translations that are shown in TensorBoard.
        evaluation_batch_size: Number of dev sentences that are translated at the same time.
    """

    max_steps: Steps = 20_000
    max_epochs: Annotated[int, Range(1)] | None = None
    stages: Sequence[StageOptions] | None = None
    batch_tokens: Annotated[int, Range(4)] = 4096
    microbatch_tokens: Annotated[int, Range(4)] | Literal["auto"] | None = None
    pad_to_multiple_of: Annotated[int, Range(1, 1024)] = 1
    clip_norm: Annotated[float, Range(0, open_low=True)] | None = 5.0
    max_nonfinite_updates: Annotated[int, Range(1)] = 25
    subword_regularization: Annotated[float, Range(0, 1)] = 0.0
    subword_regularization_epochs: Annotated[int, Range(1)] | None = None
    ema_decay: Annotated[float, Range(0, 1, open_high=True)] | None = None
    prefetch_batches: Annotated[int, Range(0, 1000)] = 2
    log_every_steps: Steps = 50
    gradient_norms_every_steps: Steps | None = None
    evaluate_every_steps: Steps = 500
    save_every_steps: Steps = 500
    keep_checkpoints: Annotated[int, Range(1)] = 3
    best_metric: BestMetric = "dev/bleu"
    patience_evaluations: Annotated[int, Range(1)] | None = None
    num_sample_translations: Annotated[int, Range(0)] = 5
    evaluation_batch_size: BatchSize = 64

    def __post_init__(self) -> None:
        if self.stages is not None:
            check_stages(self.stages)


class Trainer:
    """Train a model: update, log, evaluate and save until a limit is reached.

    Args:
        options: Limits, batch sizes and intervals.
        objective: The model with its loss, on the device.
        stages: Optimizers and schedules in their order.
        stream: Yields the local batches of this process.
        evaluate: Translates and scores the dev set with the current weights; see `DevEvaluator`.
        checkpoints: The checkpoint files of the run.
        reporter: Writes TensorBoard data.
        precision: Device and number format.
        checkpoint_extras: Entries of every checkpoint besides the training state, such as config and tokenizers.
        parallel: The processes that train together, of which rank 0 writes all files.
    """

    def __init__(
        self,
        options: TrainerOptions,
        objective: Objective,
        stages: Sequence[Stage],
        stream: Prefetcher,
        evaluate: Callable[..., DevResult],
        checkpoints: RunCheckpoints,
        reporter: Reporter,
        precision: Precision,
        checkpoint_extras: dict[str, Any],
        parallel: DataParallel,
    ) -> None:
        self.options = options
        self.objective = objective
        self.stream = stream
        self.evaluate = evaluate
        self.checkpoints = checkpoints
        self.reporter = reporter
        self.precision = precision
        self.device = precision.device
        self.checkpoint_extras = checkpoint_extras
        self.parallel = parallel
        self.ranks = self.parallel.ranks
        self.replica = self.parallel.replicate(objective)  # the objective, wrapped in DDP if there are several ranks
        # After the all-reduce every rank has the same gradients, so rank 0 alone records their norms.
        norms_every_steps = options.gradient_norms_every_steps if self.ranks.is_rank_0 else None
        self.gradient_norms = GradientNorms(objective.model, norms_every_steps, checkpoints.folder.parent, reporter)
        self.staged_optimizer = StagedOptimizer(
            list(objective.parameters()),
            stages,
            options.clip_norm,
            precision,
            self.gradient_norms.record,
            self.measuring_logged_update,
        )
        self.update_ratios = UpdateRatios(objective.model)
        self.average = None if options.ema_decay is None else WeightAverage(objective.model, options.ema_decay)
        self.writer = BackgroundWriter()
        self.stop_request = StopRequest()
        self.state = TrainState(options.best_metric)
        self.metrics = self.empty_metrics()
        self.last_saved_step: int | None = None  # of the newest full checkpoint
        self.microbatch_tokens: int | None = None  # the number that microbatch_tokens=auto has chosen

    def fit(self) -> TrainState:
        """Train until a limit is reached, then evaluate and save the last weights.

        Raises:
            DivergedError: The training diverged.
            Interrupted: A signal requested a stop; the state is saved.
        """
        options, state = self.options, self.state
        first_estimate = FirstEstimate(options.log_every_steps)
        if self.ranks.is_rank_0:
            self.gradient_norms.start_after(state.step)
            self.report_purged_points()
        with (
            self.stop_request,
            self.writer,
            closing(self.stream),
            progress_bar(unit="step", total=self.last_step, initial=state.step, shown=self.ranks.is_rank_0) as bar,
        ):
            with self.metrics.paused():
                if state.evaluation_due or self.finished():
                    self.evaluate_and_save()
            while not self.finished():
                self.metrics.loader_states.append(self.stream.loader_state)
                with self.metrics.waiting():
                    local_batch = next(self.stream)
                self.update(local_batch, self.metrics)
                bar.update()
                first_estimate.after_update(state.step, self.last_step)
                if state.step % options.log_every_steps == 0 or self.finished():
                    self.log_metrics(bar)
                    self.metrics = self.empty_metrics()
                with self.metrics.paused():
                    self.evaluate_and_save()
        return state

    def report_purged_points(self) -> None:
        """Report the earlier evaluations over tokens again, after a resume.

        TensorBoard's readers then drop all points whose step is after the checkpoint's. A number of tokens counts as a
        step and is larger, so they drop the points of evaluations before the checkpoint, too.
        """
        for step, metrics in self.state.evaluations:
            num_tokens = self.state.tokens_at_evaluations[step]
            if num_tokens > self.state.step:
                report_by_tokens(self.reporter, metrics, num_tokens)

    def update(self, local_batch: LocalBatch, metrics: TrainMetrics) -> None:
        """Make one optimizer update on a global batch.

        The gradient is that of the loss summed over all target tokens of the global batch, divided by their number.

        Args:
            local_batch: The microbatches that this rank computes.
            metrics: Sums to which the update is added.
        """
        self.objective.train()
        self.staged_optimizer.begin_update(self.state.step, self.state.qualities())
        self.objective.model.begin_update(self.state.step)
        self.parallel.begin_update(self.state.step)
        self.objective.begin_update(self.parallel.seed, self.state.step)
        metrics.count(local_batch)
        self.state.tokens_seen += local_batch.source_tokens + local_batch.target_tokens
        batches = local_batch.to_compute
        update_loss = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches, start=1):
            with self.parallel.no_sync(self.replica) if number < len(batches) else nullcontext():
                with self.precision.autocast():
                    loss_sum, _ = self.replica(batch.to(self.device))
                if not local_batch:
                    loss_sum = loss_sum * 0  # a dummy batch: another rank computes the loss of its pair
                # DDP averages the gradients of the ranks. Dividing by tokens / ranks turns the average into the sum.
                self.staged_optimizer.scaler.scale(
                    loss_sum / (local_batch.target_tokens / self.ranks.world_size)
                ).backward()
            update_loss += loss_sum.detach()
        statistics_M = self.objective.statistics_M if local_batch else torch.zeros_like(self.objective.statistics_M)
        sums_M = self.parallel.end_update(torch.cat((update_loss[None], statistics_M)), self.stop_request.received)
        update_loss, statistics_M = sums_M[0], sums_M[1:]
        norm, applied = self.staged_optimizer.apply(update_loss)
        self.state.step += 1
        if self.average is not None:
            self.average.update(self.state.step)
        metrics.add(
            update_loss,
            norm,
            local_batch.target_tokens,
            applied,
            self.staged_optimizer.skipped_in_a_row,
            statistics_M,
        )

    def measuring_logged_update(self) -> AbstractContextManager[None]:
        """Return the context of an update's step, which measures its size if a log line follows, on rank 0."""
        is_logged = (self.state.step + 1) % self.options.log_every_steps == 0
        return self.update_ratios.measured() if is_logged and self.ranks.is_rank_0 else nullcontext()

    def evaluate_and_save(self) -> None:
        """Evaluate and save if either is due at this step, and stop if a rank has received a signal."""
        options, state = self.options, self.state
        if state.evaluation_due or state.step % options.evaluate_every_steps == 0 or self.finished():
            self.run_evaluation()
            signal = self.parallel.stop_between_updates(self.stop_request.received)
        else:
            signal = self.parallel.stop_after_update(self.stop_request.received)
        # The evaluation comes first: it may end the run by patience, and the checkpoint holds its result.
        is_save_due = state.step > 0 and state.step % options.save_every_steps == 0
        if is_save_due or self.finished() or signal is not None:
            self.save()
        self.writer.poll()
        if signal is not None:
            self.writer.wait()
            saved_step = self.ranks.from_rank_0(self.last_saved_step)
            self.ranks.failures.conclude()  # all ranks stop here: a second signal to one must not fail the others
            raise agreed_stop(signal, describe_stop(state.step, saved_step))

    # Limits

    def finished(self) -> bool:
        """Return whether max_steps, max_epochs or patience_evaluations is reached."""
        options, state = self.options, self.state
        out_of_epochs = options.max_epochs is not None and self.stream.loader_state.epoch >= options.max_epochs
        patience = options.patience_evaluations
        out_of_patience = patience is not None and state.stale_evaluations >= patience
        return state.step >= options.max_steps or out_of_epochs or out_of_patience

    @property
    def last_step(self) -> int:
        """The update after which max_steps or max_epochs ends the run, if all epochs are as long as the current one."""
        options, last_step = self.options, self.options.max_steps
        if options.max_epochs is not None:
            updates_left = round((options.max_epochs - self.stream.epochs) * len(self.stream))
            last_step = min(last_step, self.state.step + updates_left)
        return max(last_step, self.state.step)  # a resumed run may have a limit below the updates it has done

    # Logging

    def empty_metrics(self) -> TrainMetrics:
        """Return metrics without any update."""
        return TrainMetrics.begin(self.device, len(self.objective.statistics_M))

    def log_metrics(self, bar: tqdm[Any]) -> None:
        """Write the metrics since the last log line to TensorBoard and to one log line, on rank 0.

        The metrics cover the global batches; only padding is estimated from the local batches of rank 0.

        Raises:
            DivergedError: As many updates in a row as max_nonfinite_updates were skipped.
        """
        if not self.ranks.is_rank_0:
            return
        metrics, step = self.metrics, self.state.step
        sums, seconds = metrics.sums(), metrics.seconds()
        self.gradient_norms.write()
        num_updates = len(metrics.loader_states)
        further = self.objective.scalars(metrics.statistics_M.tolist())
        scalars = metrics.scalars(sums, seconds) | further | self.update_ratios.scalars()
        scalars["train/learning_rate"] = self.staged_optimizer.learning_rate
        for tag, value in scalars.items():
            self.reporter.scalar(tag, value, step)
        bar.set_postfix(loss=f"{scalars.get('train/loss', math.nan):.3f}", refresh=False)
        seconds_left = (self.last_step - step) * seconds / num_updates
        log.info(
            "update %d/%d, epoch %.2f: %s, about %s left",
            step,
            self.last_step,
            self.stream.epochs,
            format_metrics(scalars, further),
            format_duration(seconds_left),
        )
        if num_skipped := scalars["train/skipped_updates"]:
            log.warning("%d of these %d updates were skipped: loss or gradient not finite", num_skipped, num_updates)
        if sums.longest_skip >= self.options.max_nonfinite_updates:
            index = round(sums.last_skipped)
            loader_state = metrics.loader_states[index]
            batch = describe_batch(self.stream.pairs_at(loader_state), loader_state, self.checkpoints.folder.parent)
            raise self.divergence_error(
                f"{sums.longest_skip:.0f} updates in a row were skipped because loss or gradient were not finite",
                f"\nThe last of them, update {step - num_updates + index + 1}, was on {batch}",
            )

    def divergence_error(self, reason: str, details: str = "") -> DivergedError:
        """Return the error that ends a run which further updates cannot repair."""
        self.writer.wait()
        step = self.last_saved_step
        saved = "has no full checkpoint" if step is None else f"is saved up to update {step}"
        return DivergedError(
            f"training diverged: {reason} at update {self.state.step}: lower optimizer.lr or trainer.clip_norm in a "
            f"new run (name=...); this one {saved}{details}"
        )

    # Evaluation

    def run_evaluation(self) -> None:
        """Evaluate on the dev set, report the result, and save best.pt if the result is better than its own.

        A signal interrupts the evaluation, and the resumed run repeats it with the same weights.
        """
        state = self.state
        state.evaluation_due = True
        self.writer.wait()  # `state.best` is updated when best.pt has been written
        self.objective.eval()
        try:
            with self.evaluated_weights():
                result = self.evaluate(self.stop_request.abandoning)
                metrics = result.scalars()
                better_than_best = state.is_better_than_best(metrics)
                improved = state.record_evaluation(metrics)
                if self.ranks.is_rank_0:
                    report_evaluation(self.reporter, result, state.step, self.options.num_sample_translations)
                    report_by_tokens(self.reporter, metrics, state.tokens_seen)
                    if better_than_best:
                        self.save_best(metrics)
        except Abandoned:
            log.warning("the evaluation after update %d was interrupted; the resumed run repeats it", state.step)
            return
        note = " (best so far)" if improved else " (better than best.pt)" if better_than_best else ""
        log.info("update %d, dev: %s%s", state.step, result.summary(), note)
        if state.zero_bleu_evaluations == NUM_ZERO_BLEU and self.ranks.is_rank_0:
            log.warning(
                "dev BLEU is 0.00 at %d evaluations in a row (signature %s): either the model has learned too little "
                "yet, or data.bleu_tokenize does not fit the target language; text without spaces between words needs "
                "zh, ja-mecab or char. trainer.best_metric=dev/chrf and dev/loss do not depend on words",
                NUM_ZERO_BLEU,
                result.scores.signatures.get("bleu"),
            )

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the model holds the weights to evaluate: averaged ones if there is an average."""
        return nullcontext() if self.average is None else self.average.applied()

    # Checkpoints

    def save_best(self, best: dict[str, float]) -> None:
        """Write best.pt in the background, from the weights that the model holds now.

        If the write fails, the previous best.pt stays.

        Args:
            best: Dev metrics of these weights.
        """
        step = self.state.step
        contents = self.common_contents() | {
            "best": best,
            "best_step": step,
            "model": self.objective.model.state_dict(),
        }

        def on_written() -> None:
            self.state.best, self.state.best_step = best, step

        self.writer.start(
            partial(self.checkpoints.save_best, snapshot(contents)),
            f"best.pt of update {step}",
            on_written,
            has_older=self.checkpoints.best.exists(),
        )

    def save(self) -> None:
        """Write a full checkpoint in the background, on rank 0.

        Raises:
            DivergedError: Some weights are not finite. Such a checkpoint would displace usable ones.
        """
        if not self.ranks.is_rank_0:
            return
        start = time.perf_counter()
        self.writer.wait()  # `state.best` is updated then, and memory holds one snapshot at a time
        self.gradient_norms.write()
        self.reporter.flush()  # a run resumed from this checkpoint does not report earlier updates again
        step = self.state.step
        if not torch.stack([torch.isfinite(weight).all() for weight in self.objective.parameters()]).all():
            raise self.divergence_error("some weights are not finite")
        contents = self.common_contents() | {
            "model": self.objective.model.state_dict(),
            **self.staged_optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            **self.state.state_dict(),
            "metrics": self.metrics.state_dict(),
            "microbatch_tokens": self.microbatch_tokens,
            "loader_state": tuple(self.stream.loader_state),
            "rng": random_state(self.device),
        }

        def on_written() -> None:
            self.last_saved_step = step
            log.info("the checkpoint of update %d is written; training paused %.2f seconds for it", step, stall)

        copied = snapshot(contents)
        stall = time.perf_counter() - start
        self.writer.start(
            partial(self.checkpoints.save, step, copied),
            f"the checkpoint of update {step}",
            on_written,
            has_older=bool(self.checkpoints.full()),
        )

    def common_contents(self) -> dict[str, Any]:
        """Return the entries that best.pt and full checkpoints have in common."""
        state = self.state
        return self.checkpoint_extras | {"step": state.step, "best": state.best, "best_step": state.best_step}

    def restore(self, contents: dict[str, Any]) -> None:
        """Restore the state that `save` wrote. The loader state is not restored here: the stream was built with it.

        On a CPU, the following updates are bitwise equal to those of an uninterrupted run.
        """
        self.objective.model.load_state_dict(contents["model"])
        if self.average is not None:
            self.average.load_state_dict(contents["average"])
        self.state = TrainState.from_checkpoint(contents)
        self.staged_optimizer.load_state_dict(contents, self.state.step)
        self.metrics = TrainMetrics.from_checkpoint(contents["metrics"], self.device)
        self.last_saved_step = self.state.step
        self.microbatch_tokens = contents["microbatch_tokens"]
        restore_random_state(contents["rng"], self.device)
