"""What the training loop remembers, and what it counts between two log lines."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from gnmt.data.batching import Position, Share

log = logging.getLogger(__name__)
ESTIMATE_SECONDS = 10.0


@dataclass
class Progress:
    """What the loop remembers: it is saved with every checkpoint.

    step: updates done, skipped ones counted. best: the dev result of the best evaluation, by its name.
    stale_evaluations: those since then. evaluations: the step and the dev BLEU of each so far. evaluation_due: whether
    this step's evaluation was broken off by a signal, so that going on begins with it.
    """

    step: int = 0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    stale_evaluations: int = 0
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    evaluation_due: bool = False

    def end_is_due(self) -> bool:
        """Whether a run that ends with this step has still to be evaluated, or to write the best.pt that it earned."""
        if self.evaluation_due or not self.best:
            return True
        if not self.evaluations:
            return False  # a checkpoint from before they were listed
        step, bleu = self.evaluations[-1]
        return step != self.step or bleu > self.best["dev/bleu"]

    def take_evaluation(self, bleu: float) -> bool:
        """Notes the dev BLEU of this step, and whether it is the best of all, those counted whose best.pt was lost."""
        before = [(step, other) for step, other in self.evaluations if step != self.step]  # it may be a repetition
        best_before = max([other for _, other in before] + [self.best.get("dev/bleu", -math.inf)])
        self.evaluations = [*before, (self.step, bleu)]
        self.evaluation_due = False
        improved = bleu > best_before
        self.stale_evaluations = 0 if improved else self.stale_evaluations + 1
        return improved

    def state_dict(self) -> dict[str, Any]:
        """By name, as a checkpoint holds it."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def of(cls, contents: Mapping[str, Any]) -> Progress:
        """That of a checkpoint; what an older one does not hold is as at the start."""
        return cls(**{item.name: contents[item.name] for item in fields(cls) if item.name in contents})


class FirstEstimate:
    """Says once how long the run will take, where its first log line is far: ten seconds after the first update.

    That one is left out: kernels are chosen and memory is taken in it.
    """

    def __init__(self, log_every_steps: int) -> None:
        self._log_every_steps = log_every_steps
        self._began: tuple[int, float] | None = None
        self._said = False

    def after_update(self, step: int, last_step: int) -> None:
        """step: updates done; last_step: those of the whole run. The first log line says the same."""
        now = time.perf_counter()
        first_step, start = self._began = self._began or (step, now)
        if self._said or step == first_step or now - start < ESTIMATE_SECONDS:
            return
        self._said = True
        if step - first_step < self._log_every_steps:
            seconds_left = (last_step - step) * (now - start) / (step - first_step)
            log.info("update %d/%d: about %s left", step, last_step, tqdm.format_interval(seconds_left))


def in_words(scalars: Mapping[str, float]) -> str:
    """The figures of an interval for its log line, by their TensorBoard tags; without a mean where none was made."""
    loss, norm = (scalars.get(tag, math.nan) for tag in ("train/loss", "train/gradient_norm"))
    return (
        f"loss {loss:.3f}, gradient norm {norm:.2f}, learning rate {scalars['train/learning_rate']:.2e}, "
        f"{scalars['train/tokens_per_second']:.0f} tokens/s, {100 * scalars['train/padding_fraction']:.1f}% padding"
    )


class Sums(NamedTuple):
    """An interval's tensors as numbers.

    loss, gradient_norm, target_tokens: summed over the updates that were made. updates: how many these are.
    longest_skip: the most updates in a row that were skipped, those before the interval counted. last_skipped: the
    place in the interval of the last one of these, or -1. largest_loss, largest_gradient_norm: of one update that was
    made, the loss per target token.
    """

    loss: float
    gradient_norm: float
    target_tokens: float
    updates: float
    longest_skip: float
    last_skipped: float
    largest_loss: float
    largest_gradient_norm: float


@dataclass
class Interval:
    """Sums since the last log line; those that depend on the device stay on it, so that a step never waits for it.

    sums_4: loss, gradient norm, target tokens and number of the updates that were made. largest_2: of these the largest
    loss per target token and the largest gradient norm, in which spikes show that means hide. positions: where in the
    data each update's batch begins. seconds_waited: for data. A checkpoint between two log lines holds them too.
    """

    sums_4: Tensor
    longest_skip_1: Tensor
    last_skipped_1: Tensor
    largest_2: Tensor
    positions: list[Position] = field(default_factory=list)
    real_tokens: int = 0
    padded_tokens: int = 0
    seconds_before: float = 0.0
    seconds_waited: float = 0.0
    running_since: float | None = None

    @classmethod
    def begin(cls, device: torch.device) -> Interval:
        """An empty interval, whose clock starts at the end of its first pause."""
        zeros_4, zeros_2, zero_1 = (torch.zeros(size, dtype=torch.float64, device=device) for size in (4, 2, 1))
        return cls(zeros_4, longest_skip_1=zero_1, last_skipped_1=zero_1 - 1, largest_2=zeros_2)

    def count(self, share: Share) -> None:
        """Takes in the tokens of a global batch; all of it is taken to be padded as this process's share is."""
        real = sum(batch.num_real_tokens for batch in share.to_compute)
        padded = sum(batch.num_padded_tokens for batch in share.to_compute)
        global_tokens = share.source_tokens + share.target_tokens
        self.real_tokens += global_tokens
        self.padded_tokens += round(padded * (global_tokens / real))

    def add(self, loss: Tensor, norm: Tensor, target_tokens: int, made: Tensor, skipped_in_a_row: Tensor) -> None:
        """Takes in an update, whose position is the last of `positions`. All but target_tokens: device scalars."""
        made_or_0 = made.double()
        one_4 = torch.stack([loss.double(), norm.double(), made_or_0 * target_tokens, made_or_0])
        self.sums_4 += torch.where(made, one_4, 0.0)
        one_2 = torch.stack([one_4[0] / target_tokens, one_4[1]])
        self.largest_2 = torch.where(made, torch.maximum(self.largest_2, one_2), self.largest_2)
        is_longest = skipped_in_a_row > self.longest_skip_1
        self.longest_skip_1 = torch.where(is_longest, skipped_in_a_row.double(), self.longest_skip_1)
        self.last_skipped_1 = torch.where(is_longest, len(self.positions) - 1.0, self.last_skipped_1)

    def sums(self) -> Sums:
        """What the device has counted. The one place where the host waits for it."""
        return Sums(*torch.cat([self.sums_4, self.longest_skip_1, self.last_skipped_1, self.largest_2]).tolist())

    def scalars(self, sums: Sums, seconds: float) -> dict[str, float]:
        """The figures by their TensorBoard tags; without a mean where no update was made."""
        scalars = {
            "train/skipped_updates": len(self.positions) - round(sums.updates),
            "train/seconds": seconds,
            "train/tokens_per_second": self.real_tokens / seconds,
            "train/data_wait_fraction": self.seconds_waited / seconds,
            "train/padding_fraction": 1 - self.real_tokens / self.padded_tokens,
        }
        if sums.updates:
            scalars["train/loss"] = sums.loss / sums.target_tokens
            scalars["train/gradient_norm"] = sums.gradient_norm / sums.updates
            scalars["train/loss_max"] = sums.largest_loss
            scalars["train/gradient_norm_max"] = sums.largest_gradient_norm
        return scalars

    def seconds(self) -> float:
        """Wall clock without pauses."""
        running = 0.0 if self.running_since is None else time.perf_counter() - self.running_since
        return self.seconds_before + running

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside is spent on waiting for data."""
        start = time.perf_counter()
        yield
        self.seconds_waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is none of training's."""
        self.seconds_before, self.running_since = self.seconds(), None
        yield
        self.running_since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """By name, as a checkpoint holds it."""
        state = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "running_since"}
        return state | {"positions": [tuple(position) for position in self.positions], "seconds_before": self.seconds()}

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device) -> Interval:
        """That of a checkpoint; its clock goes on at the end of the next pause. What an older one lacks begins anew."""
        values: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in state.items()
        }
        values = {"largest_2": cls.begin(device).largest_2} | values
        return cls(**values | {"positions": [Position(*position) for position in state["positions"]]})
