"""The training loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from tqdm import tqdm

from gnmt.data.batching import BatchStream
from gnmt.reporting.tensorboard import Reporter
from gnmt.runtime import Precision
from gnmt.training.averaging import WeightAverage
from gnmt.training.checkpoint import RunCheckpoints
from gnmt.training.evaluation import DevResult, report_evaluation
from gnmt.training.interruption import Interruption
from gnmt.training.objective import Objective
from gnmt.training.progress import Interval, Progress
from gnmt.training.schedule import Schedule
from gnmt.types import Batch, InputError, Range

log = logging.getLogger(__name__)

Steps = Annotated[int, Range(1)]


@dataclass(frozen=True)
class TrainerOptions:
    """How long and in what portions to train.

    max_steps, max_epochs: whichever comes first; None for no limit on epochs.
    batch_tokens: padded source and target tokens of one update, at most. microbatch_tokens: of one forward and
    backward; None for the whole batch at once. clip_norm: the largest global gradient norm; None for no clipping.
    subword_sampling: how often subword regularisation departs from the usual pieces; 0 for never.
    ema_decay: of the moving average of the weights, which then is what is evaluated and kept as best; None for none.
    patience_evaluations: stop after so many evaluations without a better dev BLEU; None for never.
    """

    max_steps: Steps = 100_000
    max_epochs: Annotated[int, Range(1)] | None = None
    batch_tokens: Annotated[int, Range(4)] = 4096
    microbatch_tokens: Annotated[int, Range(4)] | None = None
    clip_norm: Annotated[float, Range(0, open_low=True)] | None = 5.0
    subword_sampling: Annotated[float, Range(0, 1)] = 0.0
    ema_decay: Annotated[float, Range(0, 1, open_high=True)] | None = None
    log_every_steps: Steps = 100
    evaluate_every_steps: Steps = 1000
    save_every_steps: Steps = 1000
    keep_checkpoints: Annotated[int, Range(1)] = 3
    patience_evaluations: Annotated[int, Range(1)] | None = None
    num_sample_translations: Annotated[int, Range(0)] = 5
    evaluation_batch_size: Annotated[int, Range(1)] = 64


class Trainer:
    """Updates, logs, evaluates and saves until a limit is reached.

    checkpoint_extras: what a checkpoint holds beside the training state (config, tokenizers, …).
    evaluate: translates and scores dev with the model as it is.
    """

    def __init__(
        self,
        options: TrainerOptions,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        stream: BatchStream,
        evaluate: Callable[[], DevResult],
        checkpoints: RunCheckpoints,
        reporter: Reporter,
        precision: Precision,
        checkpoint_extras: dict[str, Any],
    ) -> None:
        self.options = options
        self.objective = objective
        self.optimizer = optimizer
        self.schedule = schedule
        self.stream = stream
        self.evaluate = evaluate
        self.checkpoints = checkpoints
        self.reporter = reporter
        self.precision = precision
        self.device = precision.device
        self.checkpoint_extras = checkpoint_extras
        self.average = None if options.ema_decay is None else WeightAverage(objective.model, options.ema_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision.name == "fp16")
        self.progress = Progress()
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.last_saved_step = 0

    def fit(self) -> Progress:
        """Trains to the end, which is evaluated and saved. A first Ctrl-C saves and raises KeyboardInterrupt."""
        options, progress = self.options, self.progress
        interval = Interval.begin(self.device)
        with (
            Interruption() as interruption,
            tqdm(total=self.last_step, initial=progress.step, unit="step", disable=None) as bar,
        ):
            while not self.finished():
                self.update(next(self.stream), interval)
                bar.update()
                if progress.step % options.log_every_steps == 0 or self.finished():
                    self.log_interval(interval, bar)
                    interval = Interval.begin(self.device)
                with interval.paused():
                    if progress.step % options.evaluate_every_steps == 0 or self.finished():
                        self.run_evaluation()
                    # After the evaluation, which may end the run, and whose result is saved with the rest.
                    if progress.step % options.save_every_steps == 0 or self.finished() or interruption.requested:
                        self.save()
                if interruption.requested:
                    raise KeyboardInterrupt(
                        f"stopped after update {progress.step}, saved up to {self.last_saved_step}: "
                        "the same command continues from there"
                    )
        return progress

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
        factor = self.schedule.factor(self.progress.step)
        for group, base_rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base_rate * factor
        target_tokens = sum(int(batch.labels.lengths_B.sum()) for batch in microbatches)
        for batch in microbatches:
            interval.real_tokens += batch.num_real_tokens
            interval.padded_tokens += batch.num_padded_tokens
            with self.precision.autocast():
                loss_sum, _ = self.objective(batch.to(self.device))
            self.scaler.scale(loss_sum / target_tokens).backward()
            interval.loss += loss_sum.detach()
        self.scaler.unscale_(self.optimizer)
        limit = math.inf if self.options.clip_norm is None else self.options.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), limit)
        # Overflow of fp16 is skipped here: fused SGD would leave its momentum uninitialised where it comes first.
        if not self.scaler.is_enabled() or bool(norm.isfinite()):
            interval.gradient_norm += norm
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        if self.average is not None:
            self.average.update(self.progress.step)
        interval.updates += 1
        interval.target_tokens += target_tokens

    def log_interval(self, interval: Interval, bar: tqdm[Any]) -> None:
        """Writes the interval's means to TensorBoard and one log line. The one place where the host waits."""
        loss = float(interval.loss) / interval.target_tokens
        seconds = interval.seconds()
        step = self.progress.step
        if not math.isfinite(loss):
            raise self.divergence(f"the training loss is {loss}")
        scalars = {
            "train/loss": loss,
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            "train/gradient_norm": float(interval.gradient_norm) / interval.updates,
            "train/tokens_per_second": interval.real_tokens / seconds,
            "train/padding_fraction": 1 - interval.real_tokens / interval.padded_tokens,
        }
        for tag, value in scalars.items():
            self.reporter.scalar(tag, value, step)
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        seconds_left = (self.last_step - step) * seconds / interval.updates
        log.info(
            "update %d/%d, epoch %.2f: loss %.3f, gradient norm %.2f, learning rate %.2e, %.0f tokens/s, "
            "%.1f%% padding, about %s left",
            *(step, self.last_step, self.epochs, loss, scalars["train/gradient_norm"]),
            *(scalars["train/learning_rate"], scalars["train/tokens_per_second"]),
            *(100 * scalars["train/padding_fraction"], tqdm.format_interval(seconds_left)),
        )

    def divergence(self, what: str) -> InputError:
        """The error for a run that no further update can save."""
        return InputError(
            f"training diverged: {what} at update {self.progress.step}: lower optimizer.lr or trainer.clip_norm, "
            f"in a new run (name=...); this one is saved up to update {self.last_saved_step}"
        )

    def run_evaluation(self) -> None:
        """Translates dev, reports, and keeps the weights where dev BLEU is the best so far."""
        step = self.progress.step
        self.objective.eval()
        with self.evaluated_weights():
            result = self.evaluate()
            report_evaluation(self.reporter, result, step, self.options.num_sample_translations)
            improved = not self.progress.best or result.scores.bleu > self.progress.best["dev/bleu"]
            self.progress.stale_evaluations = 0 if improved else self.progress.stale_evaluations + 1
            kept = improved and self.keep_best(result)
        log.info("update %d, dev: %s%s", step, result.summary(), " (best so far)" if kept else "")

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Inside it, the model holds the weights that are evaluated and kept: averaged ones where there are."""
        return nullcontext() if self.average is None else self.average.applied()

    def keep_best(self, result: DevResult) -> bool:
        """Writes best.pt from the weights that the model holds now; where that fails, False, and the old one stays."""
        best = {"best": result.scalars(), "best_step": self.progress.step}
        contents = self.describe() | best | {"model": self.objective.model.state_dict()}
        written = self.try_to_write(lambda: self.checkpoints.save_best(contents), "best.pt")
        if written:
            self.progress.best, self.progress.best_step = result.scalars(), self.progress.step
        return written

    def save(self) -> None:
        """Writes everything that continuing exactly needs. Raises InputError rather than save diverged weights."""
        if not all(bool(torch.isfinite(weight).all()) for weight in self.objective.parameters()):
            raise self.divergence("some weights are not finite")
        contents = self.describe() | {
            "model": self.objective.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "stale_evaluations": self.progress.stale_evaluations,
            "position": tuple(self.stream.position),
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
        }
        if self.try_to_write(lambda: self.checkpoints.save(self.progress.step, contents), "the checkpoint"):
            self.last_saved_step = self.progress.step

    def try_to_write(self, write: Callable[[], object], what: str) -> bool:
        """Whether it could be written; a full disk costs a save, not the run."""
        try:
            write()
        except OSError as error:
            log.error("%s of update %d was not written (%s); the one before stays", what, self.progress.step, error)
            return False
        return True

    def describe(self) -> dict[str, Any]:
        """What every checkpoint of the run says of itself."""
        progress = self.progress
        return self.checkpoint_extras | {"step": progress.step, "best": progress.best, "best_step": progress.best_step}

    def restore(self, contents: dict[str, Any]) -> None:
        """Takes up the state that `save` wrote, but for the data position, which the stream was made with.

        What follows is bitwise what an uninterrupted run does on a CPU.
        """
        self.objective.model.load_state_dict(contents["model"])
        self.optimizer.load_state_dict(contents["optimizer"])
        self.scaler.load_state_dict(contents["scaler"])
        if self.average is not None:
            self.average.load_state_dict(contents["average"])
        self.progress = Progress(*(contents[key] for key in ("step", "best_step", "best", "stale_evaluations")))
        self.last_saved_step = self.progress.step
        torch.set_rng_state(contents["rng"]["cpu"])
        if self.device.type == "cuda" and len(contents["rng"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(contents["rng"]["cuda"])
