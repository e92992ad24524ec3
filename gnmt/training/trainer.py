"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import torch

from gnmt.config.validate import Range
from gnmt.data.batching import LocalBatch, Prefetcher
from gnmt.device import Precision
from gnmt.distributed import Ranks
from gnmt.errors import InputError
from gnmt.logs import format_duration, progress_bar
from gnmt.reporting.tensorboard import Reporter
from gnmt.signals import Abandoned, StopRequest, describe_stop, stop
from gnmt.training.data_parallel import DataParallel
from gnmt.training.dev_evaluation import DevResult, report_evaluation
from gnmt.training.objective import Objective
from gnmt.training.optimizer import Stage, StagedOptimizer, StageOptions, WeightAverage, check_stages
from gnmt.training.run_checkpoints import BackgroundWriter, RunCheckpoints, random_state, restore_random_state, snapshot
from gnmt.training.train_metrics import (
    FirstEstimate,
    GradientNorms,
    IntervalMetrics,
    TrainState,
    describe_batch,
    format_metrics,
)

if TYPE_CHECKING:
    from tqdm import tqdm

Steps = Annotated[int, Range(1)]


@dataclass(frozen=True)
class TrainerOptions:
    """How long and in what portions to train.

    max_steps, max_epochs: whichever comes first; None for no limit on epochs.
    stages: optimizers and schedules that follow each other; None for the root keys' from start to end.
    batch_tokens: padded source and target tokens of one update, at most. microbatch_tokens: of one forward and
    backward; None for the whole batch at once. pad_to_multiple_of: batches are padded to multiples of so many tokens a
    side, so that fewer shapes occur: a CPU's kernels, each made for one shape, are made less often.
    clip_norm: the largest global gradient norm; None for no clipping.
    max_nonfinite_updates: so many updates in a row that were skipped, because loss or gradient were not finite, end
    the run; it is looked at when the log is written.
    subword_regularization: 0 for none. Otherwise, with a BPE tokenizer, the probability that a merge is left out, and with a
    unigram tokenizer the exponent on the probability of a cut, less being more random.
    ema_decay: of the moving average of the weights, which then is what is evaluated and kept as best; None for none.
    gradient_norms_every_steps: updates between records of the gradient's norm in each layer, see
    gnmt.training.train_metrics; None for none.
    prefetch_batches: made ahead by a thread; 0 for none.
    patience_evaluations: stop after so many evaluations without a better dev BLEU; None for never.
    """

    max_steps: Steps = 20_000
    max_epochs: Annotated[int, Range(1)] | None = None
    stages: Sequence[StageOptions] | None = None
    batch_tokens: Annotated[int, Range(4)] = 4096
    microbatch_tokens: Annotated[int, Range(4)] | None = None
    pad_to_multiple_of: Annotated[int, Range(1)] = 1
    clip_norm: Annotated[float, Range(0, open_low=True)] | None = 5.0
    max_nonfinite_updates: Annotated[int, Range(1)] = 25
    subword_regularization: Annotated[float, Range(0, 1)] = 0.0
    ema_decay: Annotated[float, Range(0, 1, open_high=True)] | None = None
    prefetch_batches: Annotated[int, Range(0)] = 2
    log_every_steps: Steps = 50
    gradient_norms_every_steps: Steps | None = None
    evaluate_every_steps: Steps = 500
    save_every_steps: Steps = 500
    keep_checkpoints: Annotated[int, Range(1)] = 3
    patience_evaluations: Annotated[int, Range(1)] | None = None
    num_sample_translations: Annotated[int, Range(0)] = 5
    evaluation_batch_size: Annotated[int, Range(1)] = 64

    def __post_init__(self) -> None:
        if self.stages is not None:
            check_stages(self.stages)


log = logging.getLogger(__name__)


class Trainer:
    """Updates, logs, evaluates and saves until a limit is reached.

    checkpoint_extras: what a checkpoint holds beside the training state (config, tokenizers, …).
    evaluate: translates and scores dev with the model as it is; see `DevEvaluator`.
    parallel: the processes that train this model together, of which rank 0 writes all files; None for one alone.
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
        parallel: DataParallel | None = None,
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
        self.parallel = parallel or DataParallel(Ranks(), self.device, seed=0)
        self.ranks = self.parallel.ranks
        self.replica = self.parallel.replicate(objective)  # what updates call in place of the objective
        every_steps = (
            options.gradient_norms_every_steps if self.ranks.is_rank_0 else None
        )  # all have the same gradients
        self.gradient_norms = GradientNorms(objective.model, every_steps, checkpoints.folder.parent, reporter)
        parameters = list(objective.parameters())
        self.staged_optimizer = StagedOptimizer(
            parameters, stages, options.clip_norm, precision, self.gradient_norms.take
        )
        self.average = None if options.ema_decay is None else WeightAverage(objective.model, options.ema_decay)
        self.writer = BackgroundWriter()
        self.stop_request = StopRequest()
        self.state = TrainState()
        self.metrics = IntervalMetrics.begin(self.device)
        self.last_saved_step = 0

    def fit(self) -> TrainState:
        """Trains to the end, which is evaluated and saved. A first signal saves and raises Interrupted."""
        options, state = self.options, self.state
        first_estimate = FirstEstimate(options.log_every_steps)
        if self.ranks.is_rank_0:
            self.gradient_norms.begin(state.step)
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
                    share = next(self.stream)
                self.update(share, self.metrics)
                bar.update()
                first_estimate.after_update(state.step, self.last_step)
                if state.step % options.log_every_steps == 0 or self.finished():
                    self.log_interval(self.metrics, bar)
                    self.metrics = IntervalMetrics.begin(self.device)
                with self.metrics.paused():
                    self.evaluate_and_save()
        return state

    def evaluate_and_save(self) -> None:
        """After an update: what is due at its step, and the end where a signal asked any process for it."""
        options, state = self.options, self.state
        if state.evaluation_due or state.step % options.evaluate_every_steps == 0 or self.finished():
            self.run_evaluation()
            signal = self.parallel.stop_between_updates(self.stop_request.received)
        else:
            signal = self.parallel.stop_after_update(self.stop_request.received)
        # After the evaluation, which may end the run, and whose result is saved with the rest.
        if state.step % options.save_every_steps == 0 or self.finished() or signal is not None:
            self.save()
        self.writer.poll()
        if signal is not None:
            self.writer.wait()
            saved_step = self.ranks.from_rank_0(self.last_saved_step)
            self.ranks.failures.conclude()  # all have stopped: a second signal to one concerns no other
            raise stop(signal, describe_stop(state.step, saved_step))

    def finished(self) -> bool:
        """Whether a limit is reached: updates, epochs or patience."""
        options, state = self.options, self.state
        out_of_epochs = options.max_epochs is not None and self.stream.loader_state.epoch >= options.max_epochs
        patience = options.patience_evaluations
        out_of_patience = patience is not None and state.stale_evaluations >= patience
        return state.step >= options.max_steps or out_of_epochs or out_of_patience

    @property
    def last_step(self) -> int:
        """The update that max_steps or max_epochs ends the run with, epochs taken to be as long as the one at hand."""
        options, last_step = self.options, self.options.max_steps
        if options.max_epochs is not None:
            updates_left = round((options.max_epochs - self.stream.epochs) * len(self.stream))
            last_step = min(last_step, self.state.step + updates_left)
        return max(last_step, self.state.step)  # a limit may be lowered below what is done

    @property
    def epochs(self) -> float:
        """Passes over the data so far."""
        return self.stream.epochs

    def update(self, share: LocalBatch, metrics: IntervalMetrics) -> None:
        """One optimizer update on a global batch: the gradient of its summed loss over its number of target tokens."""
        self.objective.train()
        self.staged_optimizer.begin_update(self.state.step, self.state.evaluations)
        self.parallel.begin_update(self.state.step)
        metrics.count(share)
        batches = share.to_compute
        update_loss = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches, start=1):
            with self.parallel.accumulating(self.replica) if number < len(batches) else nullcontext():
                with self.precision.autocast():
                    loss_sum, _ = self.replica(batch.to(self.device))
                if not share:
                    loss_sum = loss_sum * 0  # the dummy batch: its pair is counted by another process
                # The gradients of the processes are averaged, and their sum is wanted.
                self.staged_optimizer.scaler.scale(loss_sum / (share.target_tokens / self.ranks.world_size)).backward()
            update_loss += loss_sum.detach()
        update_loss = self.parallel.end_update(update_loss, self.stop_request.received)
        norm, made = self.staged_optimizer.apply(update_loss)
        self.state.step += 1
        if self.average is not None:
            self.average.update(self.state.step)
        metrics.add(update_loss, norm, share.target_tokens, made, self.staged_optimizer.skipped_in_a_row)

    def log_interval(self, metrics: IntervalMetrics, bar: tqdm[Any]) -> None:
        """Writes the interval's means to TensorBoard and one log line; ends a run that only skips updates.

        The first process does, whose figures are those of all but for the padding, which is that of its share.
        """
        if not self.ranks.is_rank_0:
            return
        sums, seconds, step = metrics.sums(), metrics.seconds(), self.state.step
        self.gradient_norms.write()
        num_updates = len(metrics.loader_states)
        scalars = metrics.scalars(sums, seconds)
        scalars["train/learning_rate"] = self.staged_optimizer.optimizer.param_groups[0]["lr"]
        for tag, value in scalars.items():
            self.reporter.scalar(tag, value, step)
        bar.set_postfix(loss=f"{scalars.get('train/loss', math.nan):.3f}", refresh=False)
        seconds_left = (self.last_step - step) * seconds / num_updates
        so_far = f"update {step}/{self.last_step}, epoch {self.epochs:.2f}"
        log.info("%s: %s, about %s left", so_far, format_metrics(scalars), format_duration(seconds_left))
        if num_skipped := scalars["train/skipped_updates"]:
            log.warning("%d of these %d updates were skipped: loss or gradient not finite", num_skipped, num_updates)
        if sums.longest_skip >= self.options.max_nonfinite_updates:
            place = round(sums.last_skipped)
            loader_state = metrics.loader_states[place]
            batch = describe_batch(self.stream.pairs_at(loader_state), loader_state, self.checkpoints.folder.parent)
            raise self.divergence(
                f"{sums.longest_skip:.0f} updates in a row were skipped, for loss or gradient were not finite,",
                f"The last of them, update {step - num_updates + place + 1}, was {batch}",
            )

    def divergence(self, what: str, details: str = "") -> InputError:
        """The error for a run that no further update can save."""
        self.writer.wait()
        return InputError(
            f"training diverged: {what} at update {self.state.step}: lower optimizer.lr or trainer.clip_norm, "
            f"in a new run (name=...); this one is saved up to update {self.last_saved_step}" + f"\n{details}".rstrip()
        )

    def run_evaluation(self) -> None:
        """Translates dev, reports, and keeps the weights where dev BLEU is the best so far.

        A signal breaks it off: it is done again, from the same weights, when the run goes on.
        """
        state = self.state
        state.evaluation_due = True
        self.writer.wait()  # for what is called the best so far
        self.objective.eval()
        try:
            with self.evaluated_weights():
                result = self.evaluate(self.stop_request.abandoning)
                bleu, kept = result.scores.bleu, state.best.get("dev/bleu", -math.inf)
                improved = state.take_evaluation(bleu)
                if self.ranks.is_rank_0:
                    report_evaluation(self.reporter, result, state.step, self.options.num_sample_translations)
                    if bleu > kept:
                        self.keep_best(result)
        except Abandoned:
            log.warning("the evaluation after update %d is left for when the run goes on", state.step)
            return
        said = " (best so far)" if improved else " (better than what best.pt holds)" if bleu > kept else ""
        log.info("update %d, dev: %s%s", state.step, result.summary(), said)

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Inside it, the model holds the weights that are evaluated and kept: averaged ones where there are."""
        return nullcontext() if self.average is None else self.average.applied()

    def keep_best(self, result: DevResult) -> None:
        """Has best.pt written from the weights that the model holds now; where that fails, the old best stays."""
        best, step = result.scalars(), self.state.step
        contents = self.describe() | {"best": best, "best_step": step, "model": self.objective.model.state_dict()}

        def written() -> None:
            self.state.best, self.state.best_step = best, step

        self.writer.start(
            partial(self.checkpoints.save_best, snapshot(contents)),
            f"best.pt of update {step}",
            on_written=written,
            has_older=self.checkpoints.best.exists(),
        )

    def save(self) -> None:
        """Has everything written that continuing exactly needs, by the first process.

        Raises InputError rather than save diverged weights.
        """
        if not self.ranks.is_rank_0:
            return
        stopped = time.perf_counter()
        self.writer.wait()  # the state holds what is in best.pt, and one copy of the state is enough
        self.gradient_norms.write()
        self.reporter.flush()  # who goes on from this checkpoint reports nothing up to its update again
        step = self.state.step
        if not torch.stack([torch.isfinite(weight).all() for weight in self.objective.parameters()]).all():
            raise self.divergence("some weights are not finite")
        contents = self.describe() | {
            "model": self.objective.model.state_dict(),
            **self.staged_optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            **self.state.state_dict(),
            "interval": self.metrics.state_dict(),
            "loader_state": tuple(self.stream.loader_state),
            "rng": random_state(self.device),
        }

        def written() -> None:
            self.last_saved_step = step
            log.info("the checkpoint of update %d is written; updates stood still for %.2f seconds", step, stall)

        copied = snapshot(contents)
        stall = time.perf_counter() - stopped
        self.writer.start(
            partial(self.checkpoints.save, step, copied),
            f"the checkpoint of update {step}",
            on_written=written,
            has_older=bool(self.checkpoints.full()),
        )

    def describe(self) -> dict[str, Any]:
        """What every checkpoint of the run says of itself."""
        state = self.state
        return self.checkpoint_extras | {"step": state.step, "best": state.best, "best_step": state.best_step}

    def restore(self, contents: dict[str, Any]) -> None:
        """Takes up the state that `save` wrote, but for the loader state, which the stream was made with.

        What follows is bitwise what an uninterrupted run does on a CPU.
        """
        self.objective.model.load_state_dict(contents["model"])
        if self.average is not None:
            self.average.load_state_dict(contents["average"])
        self.state = TrainState.from_checkpoint(contents)
        self.staged_optimizer.load_state_dict(contents, self.state.step)
        if "interval" in contents:  # a checkpoint from before it was saved begins a new one
            self.metrics = IntervalMetrics.from_checkpoint(contents["interval"], self.device)
        self.last_saved_step = self.state.step
        restore_random_state(contents["rng"], self.device)
