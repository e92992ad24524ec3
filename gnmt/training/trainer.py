"""The training loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from gnmt.data.batching import Position
from gnmt.reporting.tensorboard import Reporter
from gnmt.runtime import Precision
from gnmt.training.averaging import WeightAverage
from gnmt.training.background import BackgroundWriter, snapshot
from gnmt.training.checkpoint import RunCheckpoints
from gnmt.training.evaluation import DevResult, report_evaluation
from gnmt.training.interruption import Abandoned, Interruption
from gnmt.training.nonfinite import describe_batch
from gnmt.training.objective import Objective
from gnmt.training.optimisation import Optimisation
from gnmt.training.options import TrainerOptions
from gnmt.training.phases import Stage
from gnmt.training.prefetch import Prefetcher
from gnmt.training.progress import Interval, Progress
from gnmt.types import Batch, InputError

__all__ = ["Trainer", "TrainerOptions"]

log = logging.getLogger(__name__)


class Trainer:
    """Updates, logs, evaluates and saves until a limit is reached.

    checkpoint_extras: what a checkpoint holds beside the training state (config, tokenizers, …).
    evaluate: translates and scores dev with the model as it is.
    """

    def __init__(
        self,
        options: TrainerOptions,
        objective: Objective,
        stages: Sequence[Stage],
        stream: Prefetcher,
        evaluate: Callable[[], DevResult],
        checkpoints: RunCheckpoints,
        reporter: Reporter,
        precision: Precision,
        checkpoint_extras: dict[str, Any],
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
        self.optimisation = Optimisation(list(objective.parameters()), stages, options.clip_norm, precision)
        self.average = None if options.ema_decay is None else WeightAverage(objective.model, options.ema_decay)
        self.writer = BackgroundWriter()
        self.progress = Progress()
        self.interval = Interval.begin(self.device)
        self.last_saved_step = 0

    def fit(self) -> Progress:
        """Trains to the end, which is evaluated and saved. A first signal saves and raises Interrupted."""
        options, progress = self.options, self.progress
        with (
            Interruption() as interruption,
            self.writer,
            closing(self.stream),
            tqdm(total=self.last_step, initial=progress.step, unit="step", disable=None) as bar,
        ):
            with self.interval.paused():
                if progress.evaluation_due:
                    self.evaluate_and_save(interruption)
            while not self.finished():
                self.interval.positions.append(self.stream.position)
                with self.interval.waiting():
                    microbatches = next(self.stream)
                self.update(microbatches, self.interval)
                bar.update()
                if progress.step % options.log_every_steps == 0 or self.finished():
                    self.log_interval(self.interval, bar)
                    self.interval = Interval.begin(self.device)
                with self.interval.paused():
                    self.evaluate_and_save(interruption)
        return progress

    def evaluate_and_save(self, interruption: Interruption) -> None:
        """After an update: what is due at its step, and the end where a signal asked for it."""
        options, progress = self.options, self.progress
        if progress.evaluation_due or progress.step % options.evaluate_every_steps == 0 or self.finished():
            self.run_evaluation(interruption)
        # After the evaluation, which may end the run, and whose result is saved with the rest.
        if progress.step % options.save_every_steps == 0 or self.finished() or interruption.requested:
            self.save()
        self.writer.poll()
        if interruption.requested:
            self.writer.wait()
            raise interruption.stop(
                f"stopped after update {progress.step}, saved up to {self.last_saved_step}: "
                "the same command continues from there"
            )

    def finished(self) -> bool:
        """Whether a limit is reached: updates, epochs or patience."""
        options, progress = self.options, self.progress
        out_of_epochs = options.max_epochs is not None and self.stream.position.epoch >= options.max_epochs
        patience = options.patience_evaluations
        out_of_patience = patience is not None and progress.stale_evaluations >= patience
        return progress.step >= options.max_steps or out_of_epochs or out_of_patience

    @property
    def last_step(self) -> int:
        """The update that max_steps or max_epochs ends the run with, epochs taken to be as long as the one at hand."""
        options = self.options
        if options.max_epochs is None:
            return options.max_steps
        updates_left = round((options.max_epochs - self.stream.epochs) * len(self.stream))
        return min(options.max_steps, self.progress.step + updates_left)

    @property
    def epochs(self) -> float:
        """Passes over the data so far."""
        return self.stream.epochs

    def update(self, microbatches: list[Batch], interval: Interval) -> None:
        """One optimiser update on a global batch: the gradient of its summed loss over its number of target tokens."""
        self.objective.train()
        self.optimisation.begin(self.progress.step, self.progress.evaluations)
        target_tokens = sum(int(batch.labels.lengths_B.sum()) for batch in microbatches)
        update_loss = torch.zeros((), device=self.device)
        for batch in microbatches:
            interval.real_tokens += batch.num_real_tokens
            interval.padded_tokens += batch.num_padded_tokens
            with self.precision.autocast():
                loss_sum, _ = self.objective(batch.to(self.device))
            self.optimisation.scaler.scale(loss_sum / target_tokens).backward()
            update_loss += loss_sum.detach()
        norm, made = self.optimisation.apply(update_loss)
        self.progress.step += 1
        if self.average is not None:
            self.average.update(self.progress.step)
        interval.add(update_loss, norm, target_tokens, made, self.optimisation.skipped_in_a_row)

    def log_interval(self, interval: Interval, bar: tqdm[Any]) -> None:
        """Writes the interval's means to TensorBoard and one log line; ends a run that only skips updates."""
        sums, seconds, step = interval.sums(), interval.seconds(), self.progress.step
        num_updates = len(interval.positions)
        num_skipped = num_updates - round(sums.updates)
        scalars = {
            "train/learning_rate": self.optimisation.optimizer.param_groups[0]["lr"],
            "train/skipped_updates": num_skipped,
            "train/seconds": seconds,
            "train/tokens_per_second": interval.real_tokens / seconds,
            "train/data_wait_fraction": interval.seconds_waited / seconds,
            "train/padding_fraction": 1 - interval.real_tokens / interval.padded_tokens,
        }
        if sums.updates:
            scalars["train/loss"] = sums.loss / sums.target_tokens
            scalars["train/gradient_norm"] = sums.gradient_norm / sums.updates
        for tag, value in scalars.items():
            self.reporter.scalar(tag, value, step)
        loss, norm = (scalars.get(tag, math.nan) for tag in ("train/loss", "train/gradient_norm"))
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        seconds_left = (self.last_step - step) * seconds / num_updates
        log.info(
            "update %d/%d, epoch %.2f: loss %.3f, gradient norm %.2f, learning rate %.2e, %.0f tokens/s, "
            "%.1f%% padding, about %s left",
            *(step, self.last_step, self.epochs, loss, norm),
            *(scalars["train/learning_rate"], scalars["train/tokens_per_second"]),
            *(100 * scalars["train/padding_fraction"], tqdm.format_interval(seconds_left)),
        )
        if num_skipped:
            log.warning("%d of these %d updates were skipped: loss or gradient not finite", num_skipped, num_updates)
        if sums.longest_skip >= self.options.max_nonfinite_updates:
            place = round(sums.last_skipped)
            batch = self.batch_at(interval.positions[place])
            raise self.divergence(
                f"{sums.longest_skip:.0f} updates in a row were skipped, for loss or gradient were not finite,",
                f"The last of them, update {step - num_updates + place + 1}, was {batch}",
            )

    def batch_at(self, position: Position) -> str:
        """The sentences of the batch that begins at that place in the data."""
        return describe_batch(self.stream.pairs_at(position), position, self.checkpoints.folder.parent)

    def divergence(self, what: str, details: str = "") -> InputError:
        """The error for a run that no further update can save."""
        self.writer.wait()
        return InputError(
            f"training diverged: {what} at update {self.progress.step}: lower optimizer.lr or trainer.clip_norm, "
            f"in a new run (name=...); this one is saved up to update {self.last_saved_step}" + f"\n{details}".rstrip()
        )

    def run_evaluation(self, interruption: Interruption) -> None:
        """Translates dev, reports, and keeps the weights where dev BLEU is the best so far.

        A signal breaks it off: it is done again, from the same weights, when the run goes on.
        """
        progress = self.progress
        progress.evaluation_due = True
        self.writer.wait()  # for what is called the best so far
        self.objective.eval()
        try:
            with self.evaluated_weights():
                with interruption.abandoning():
                    result = self.evaluate()
                progress.evaluation_due = False
                report_evaluation(self.reporter, result, progress.step, self.options.num_sample_translations)
                improved = not progress.best or result.scores.bleu > progress.best["dev/bleu"]
                progress.stale_evaluations = 0 if improved else progress.stale_evaluations + 1
                progress.evaluations.append((progress.step, result.scores.bleu))
                if improved:
                    self.keep_best(result)
        except Abandoned:
            log.warning("the evaluation after update %d is left for when the run goes on", progress.step)
            return
        log.info("update %d, dev: %s%s", progress.step, result.summary(), " (best so far)" if improved else "")

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Inside it, the model holds the weights that are evaluated and kept: averaged ones where there are."""
        return nullcontext() if self.average is None else self.average.applied()

    def keep_best(self, result: DevResult) -> None:
        """Has best.pt written from the weights that the model holds now; where that fails, the old best stays."""
        best, step = result.scalars(), self.progress.step
        contents = self.describe() | {"best": best, "best_step": step, "model": self.objective.model.state_dict()}

        def written() -> None:
            self.progress.best, self.progress.best_step = best, step

        self.writer.start(
            partial(self.checkpoints.save_best, snapshot(contents)), f"best.pt of update {step}", on_written=written
        )

    def save(self) -> None:
        """Has everything written that continuing exactly needs. Raises InputError rather than save diverged weights."""
        self.writer.wait()  # the state holds what is in best.pt, and one copy of the state is enough
        step = self.progress.step
        if not torch.stack([torch.isfinite(weight).all() for weight in self.objective.parameters()]).all():
            raise self.divergence("some weights are not finite")
        contents = self.describe() | {
            "model": self.objective.model.state_dict(),
            **self.optimisation.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            **self.progress.state_dict(),
            "interval": self.interval.state_dict(),
            "position": tuple(self.stream.position),
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
        }

        def written() -> None:
            self.last_saved_step = step

        self.writer.start(
            partial(self.checkpoints.save, step, snapshot(contents)),
            f"the checkpoint of update {step}",
            on_written=written,
        )

    def describe(self) -> dict[str, Any]:
        """What every checkpoint of the run says of itself."""
        progress = self.progress
        return self.checkpoint_extras | {"step": progress.step, "best": progress.best, "best_step": progress.best_step}

    def restore(self, contents: dict[str, Any]) -> None:
        """Takes up the state that `save` wrote, but for the data position, which the stream was made with.

        What follows is bitwise what an uninterrupted run does on a CPU.
        """
        self.objective.model.load_state_dict(contents["model"])
        if self.average is not None:
            self.average.load_state_dict(contents["average"])
        self.progress = Progress.of(contents)
        self.optimisation.load_state_dict(contents, self.progress.step)
        if "interval" in contents:  # a checkpoint from before it was saved begins a new one
            self.interval = Interval.of(contents["interval"], self.device)
        self.last_saved_step = self.progress.step
        torch.set_rng_state(contents["rng"]["cpu"])
        if self.device.type == "cuda" and len(contents["rng"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(contents["rng"]["cuda"])
