"""Learning-rate schedules: pure functions of the step and of the dev evaluations so far.

For each update a schedule returns the factor by which `optimizer.lr` is multiplied. Schedules have no state, so
checkpoints hold none. Updates are counted from 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from gnmt.config.validate import Range

Steps = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Quality = tuple[float, ...]
"""Quality of a dev evaluation, larger for better ones; see `gnmt.training.train_metrics.TrainState.quality`."""


class Schedule(ABC):
    """Base class of schedules, which multiply the learning rate by two factors."""

    @abstractmethod
    def factor(self, step: int) -> float:
        """Return the factor for update `step`."""

    def plateau_factor(self, qualities: Sequence[Quality]) -> float:
        """Return a second factor, which depends on the qualities of the dev evaluations so far, oldest first."""
        return 1.0


def linear_warmup(step: int, warmup_steps: int) -> float:
    """Return a factor that rises linearly from 1/warmup_steps and is 1 from the last update of the warm-up on."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


@dataclass(frozen=True)
class Constant(Schedule):
    """Warm up linearly to 1, then stay at 1."""

    warmup_steps: Steps = 0

    def factor(self, step: int) -> float:
        return linear_warmup(step, self.warmup_steps)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Warm up linearly to 1, fall along half a cosine to final_fraction at total_steps, then stay there."""

    total_steps: Annotated[int, Range(1)]
    warmup_steps: Steps = 0
    final_fraction: Fraction = 0.0

    def factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return linear_warmup(step, self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return self.final_fraction + (1 - self.final_fraction) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class InverseSquareRoot(Schedule):
    """Warm up linearly to 1, then fall as sqrt(warmup_steps / (step + 1)).

    This is the schedule of Vaswani et al. 2017, eq. 3, scaled so that its peak is 1.
    """

    warmup_steps: Annotated[int, Range(1)]

    def factor(self, step: int) -> float:
        return min((step + 1) / self.warmup_steps, math.sqrt(self.warmup_steps / (step + 1)))


@dataclass(frozen=True)
class WarmupStepDecay(Schedule):
    """Warm up exponentially from 0.01 to 1, then multiply by decay_factor every decay_interval_steps updates.

    This is the recipe of tensorflow/nmt and of NVIDIA's GNMT. Wu et al. 2016, section 8, halve the rate every 200,000
    updates from update 1.2 million on.

    Args:
        decay_start_step: Update of the first decay.
        decay_interval_steps: Updates between two decays.
        warmup_steps: Updates until the factor reaches 1.
        decay_factor: Factor of each decay.
        num_decays: Largest number of decays.
    """

    decay_start_step: Steps
    decay_interval_steps: Annotated[int, Range(1)]
    warmup_steps: Steps = 0
    decay_factor: Annotated[float, Range(0, 1, open_low=True)] = 0.5
    num_decays: Annotated[int, Range(0)] = 4

    def factor(self, step: int) -> float:
        warmup = 0.01 ** max(0.0, 1 - step / self.warmup_steps) if self.warmup_steps else 1.0
        if step < self.decay_start_step:
            return warmup
        decays = 1 + (step - self.decay_start_step) // self.decay_interval_steps
        return warmup * self.decay_factor ** min(decays, self.num_decays)


@dataclass(frozen=True)
class Plateau(Schedule):
    """Warm up linearly to 1, then multiply by decay_factor whenever the dev evaluations stop getting better.

    Args:
        patience_evaluations: Number of evaluations in a row without a new best one, by trainer.best_metric, that
            causes a decay. After a decay, counting begins again.
        warmup_steps: Updates of the warm-up.
        decay_factor: Factor of each decay.
        num_decays: Largest number of decays.
    """

    patience_evaluations: Annotated[int, Range(1)]
    warmup_steps: Steps = 0
    decay_factor: Annotated[float, Range(0, 1, open_low=True)] = 0.5
    num_decays: Annotated[int, Range(0)] = 4

    def factor(self, step: int) -> float:
        return linear_warmup(step, self.warmup_steps)

    def plateau_factor(self, qualities: Sequence[Quality]) -> float:
        best: Quality = ()
        stale, decays = 0, 0
        for quality in qualities:
            stale = 0 if quality > best else stale + 1
            best = max(best, quality)
            if stale == self.patience_evaluations:
                stale, decays = 0, decays + 1
        return self.decay_factor ** min(decays, self.num_decays)
