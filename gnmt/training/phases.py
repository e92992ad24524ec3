"""A training in several phases, each with an optimiser and a schedule of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, NamedTuple

from torch.optim import Optimizer

from gnmt.training.schedule import Schedule
from gnmt.types import Deferred, InputError, Range

MakeOptimizer = Callable[..., Optimizer]


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    until_step: updates of the whole run after which the next phase begins; None for the last one, which lasts as
    long as the run. optimizer: begins without any memory of the phase before. schedule: its updates count from the
    phase's first. None stands for what the root key `optimizer` or `schedule` says.
    """

    until_step: Annotated[int, Range(1)] | None
    optimizer: Annotated[MakeOptimizer | None, Deferred(Optimizer, ("params",))] = None
    schedule: Schedule | None = None


class Stage(NamedTuple):
    """A phase ready to be entered: its first update, counted from 0, what makes its optimiser, and its schedule."""

    start: int
    make_optimizer: MakeOptimizer
    schedule: Schedule


def check_phases(phases: Sequence[Phase]) -> None:
    """Raises InputError for phases without order, and where a root key would be given and never used."""
    ends = [phase.until_step for phase in phases]
    starts = [0, *(end for end in ends if end is not None)]
    rising = all(one < next_ for one, next_ in pairwise(starts))
    if not ends or ends[-1] is not None or len(starts) < len(ends) or not rising:
        raise InputError(
            f"trainer.phases: found until_step {ends}, allowed are rising numbers, and null for the last phase, which "
            "trainer.max_steps ends"
        )
    for key in ("optimizer", "schedule"):
        if all(getattr(phase, key) is not None for phase in phases):
            raise InputError(
                f"trainer.phases: found no phase with {key}: null, so that the root key {key} would do nothing; "
                f"move what one phase has there, and give that phase {key}: null"
            )


def stages_of(phases: Sequence[Phase] | None, make_optimizer: MakeOptimizer, schedule: Schedule) -> list[Stage]:
    """The run's phases in order; without any, the root keys' optimiser and schedule from the start to the end."""
    if phases is None:
        return [Stage(0, make_optimizer, schedule)]
    starts = [0, *(phase.until_step or 0 for phase in phases[:-1])]
    return [
        Stage(start, phase.optimizer or make_optimizer, phase.schedule or schedule)
        for start, phase in zip(starts, phases, strict=True)
    ]
