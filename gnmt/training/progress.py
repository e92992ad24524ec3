"""What the training loop remembers, and what it counts between two log lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Progress:
    """What the loop remembers: it is saved with every checkpoint.

    step: updates done. best: the dev result of the best evaluation, by its name. stale_evaluations: those since then.
    """

    step: int = 0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    stale_evaluations: int = 0


@dataclass
class Interval:
    """Sums since the last log line; tensors stay on the device, so that a step never waits for the host."""

    loss: torch.Tensor
    gradient_norm: torch.Tensor
    started: float
    updates: int = 0
    target_tokens: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0

    @classmethod
    def begin(cls, device: torch.device) -> Interval:
        """An empty interval that starts now."""
        return cls(torch.zeros((), device=device), torch.zeros((), device=device), time.perf_counter())

    def seconds(self) -> float:
        """Wall clock since the start, without pauses."""
        return time.perf_counter() - self.started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is none of training's."""
        start = time.perf_counter()
        yield
        self.started += time.perf_counter() - start
