"""Learning-rate schedules: pure functions of the update's number, counted from 0, and of what dev said so far.

Each gives the factor by which `optimizer.lr` is multiplied for that update, so schedules have no state to be saved.
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


class Schedule(ABC):
    """The factor of the learning rate at every update."""

    @abstractmethod
    def factor(self, step: int) -> float:
        """For the update of that number, from 0."""

    def plateau_factor(self, bleus: Sequence[float]) -> float:
        """What multiplies it besides, after evaluations with these dev BLEU scores, the first one first."""
        return 1.0


def linear_warmup(step: int, warmup_steps: int) -> float:
    """Rises linearly and reaches 1 at the last update of the warm-up; the first update is not wasted on 0."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


@dataclass(frozen=True)
class Constant(Schedule):
    """1, after a linear warm-up."""

    warmup_steps: Steps = 0

    def factor(self, step: int) -> float:
        return linear_warmup(step, self.warmup_steps)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warm-up, then half a cosine from 1 down to final_fraction at total_steps, and flat behind it."""

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
    """Linear warm-up to 1, then sqrt(warmup_steps / step) (Vaswani et al. 2017, eq. 3, without the model's width)."""

    warmup_steps: Annotated[int, Range(1)]

    def factor(self, step: int) -> float:
        return min((step + 1) / self.warmup_steps, math.sqrt(self.warmup_steps / (step + 1)))


@dataclass(frozen=True)
class WarmupStepDecay(Schedule):
    """Exponential warm-up from 1/100, then 1, then a cut by decay_factor at every decay_interval_steps.

    The recipe of tensorflow/nmt and NVIDIA's GNMT. The first cut is at decay_start_step, and there are
    at most num_decays; Wu et al. 2016, section 8, halve from 1.2 million updates every 200,000.
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
    """Linear warm-up, then 1, and a cut by decay_factor whenever dev BLEU stops rising.

    A cut comes after patience_evaluations evaluations in a row none of which was better than all before them; the next
    ones are counted from there. At most num_decays cuts.
    """

    patience_evaluations: Annotated[int, Range(1)]
    warmup_steps: Steps = 0
    decay_factor: Annotated[float, Range(0, 1, open_low=True)] = 0.5
    num_decays: Annotated[int, Range(0)] = 4

    def factor(self, step: int) -> float:
        return linear_warmup(step, self.warmup_steps)

    def plateau_factor(self, bleus: Sequence[float]) -> float:
        best, stale, decays = -math.inf, 0, 0
        for bleu in bleus:
            stale = 0 if bleu > best else stale + 1
            best = max(best, bleu)
            if stale == self.patience_evaluations:
                stale, decays = 0, decays + 1
        return self.decay_factor ** min(decays, self.num_decays)
