"""Optimizers in stages, gradient clipping, skipped updates, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gnmt.config.build import Deferred
from gnmt.config.validate import Range
from gnmt.device import Precision
from gnmt.errors import InputError
from gnmt.training.schedule import Schedule

MakeOptimizer = Callable[..., Optimizer]


@dataclass(frozen=True)
class StageOptions:
    """A stretch of training.

    until_step: updates of the whole run after which the next stage begins; None for the last one, which lasts as
    long as the run. optimizer: begins without any memory of the stage before. schedule: its updates count from the
    stage's first. None stands for what the root key `optimizer` or `schedule` says.
    """

    until_step: Annotated[int, Range(1)] | None
    optimizer: Annotated[MakeOptimizer | None, Deferred(Optimizer, ("params",))] = None
    schedule: Schedule | None = None


class Stage(NamedTuple):
    """A stage ready to be entered: its first update, counted from 0, what makes its optimizer, and its schedule."""

    start: int
    make_optimizer: MakeOptimizer
    schedule: Schedule


def check_stages(stages: Sequence[StageOptions]) -> None:
    """Raises InputError for stages without order, and where a root key would be given and never used."""
    ends = [stage.until_step for stage in stages]
    starts = [0, *(end for end in ends if end is not None)]
    rising = all(one < next_ for one, next_ in pairwise(starts))
    if not ends or ends[-1] is not None or len(starts) < len(ends) or not rising:
        raise InputError(
            f"trainer.stages: found until_step {ends}, allowed are rising numbers, and null for the last stage, which "
            "trainer.max_steps ends"
        )
    for key in ("optimizer", "schedule"):
        if all(getattr(stage, key) is not None for stage in stages):
            raise InputError(
                f"trainer.stages: found no stage with {key}: null, so that the root key {key} would do nothing; "
                f"move what one stage has there, and give that stage {key}: null"
            )


def build_stages(
    stages: Sequence[StageOptions] | None, make_optimizer: MakeOptimizer, schedule: Schedule
) -> list[Stage]:
    """The run's stages in order; without any, the root keys' optimizer and schedule from the start to the end."""
    if stages is None:
        return [Stage(0, make_optimizer, schedule)]
    starts = [0, *(stage.until_step or 0 for stage in stages[:-1])]
    return [
        Stage(start, stage.optimizer or make_optimizer, stage.schedule or schedule)
        for start, stage in zip(starts, stages, strict=True)
    ]


class StagedOptimizer:
    """Applies updates, stage after stage.

    An update whose loss or gradient is not finite is skipped where it is computed: weights and optimizer stay as they
    were, and the host does not wait to hear of it. Optimizers with a fused kernel (`fused: true`) can do this on the
    device; for others, and until the first update of a stage, the host looks. (Fused SGD, told to skip its first
    update, would leave its momentum uninitialized.)

    stages: see `build_stages`. clip_norm: the largest global norm of the gradient; None for no clipping.
    before_clipping: called in every update when the gradient is whole and has its true scale.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        stages: Sequence[Stage],
        clip_norm: float | None,
        precision: Precision,
        before_clipping: Callable[[], None] = lambda: None,
    ) -> None:
        self.parameters = parameters
        self.stages = stages
        self.clip_norm = math.inf if clip_norm is None else clip_norm
        self.before_clipping = before_clipping
        self.scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.name == "fp16")
        self.skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=precision.device)
        """Updates skipped since the last one that was not; on the device."""
        self._enter(0)

    def begin_update(self, step: int, evaluations: Sequence[tuple[int, float]]) -> None:
        """Sets the learning rate for the update of that number, counted from 0, and enters its stage where that is new.

        evaluations: the number of updates before each evaluation so far, and its dev BLEU.
        """
        index = self._stage_of(step)
        if index != self.index:
            self._enter(index)
        stage = self.stages[index]
        bleus = [bleu for evaluated_step, bleu in evaluations if evaluated_step > stage.start]
        factor = stage.schedule.factor(step - stage.start) * stage.schedule.plateau_factor(bleus)
        for group, base_rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base_rate * factor

    def apply(self, loss_sum: Tensor) -> tuple[Tensor, Tensor]:
        """One update from the gradients, which are gone afterwards; loss_sum: the loss that they are of.

        Returns the gradient's norm before clipping, and whether the update was made: scalars on the device.
        """
        self.scaler.unscale_(self.optimizer)
        self.before_clipping()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        finite = torch.isfinite(norm) & torch.isfinite(loss_sum)
        self._step_where(finite)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * ~finite
        return norm, finite

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it; the stage follows from the step."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, contents: Mapping[str, Any], step: int) -> None:
        """Takes up what was saved after that many updates, whose last one decides which stage's optimizer it is."""
        self._enter(self._stage_of(max(0, step - 1)))
        self.optimizer.load_state_dict(contents["optimizer"])
        self.scaler.load_state_dict(contents["scaler"])
        if "skipped_in_a_row" in contents:  # a checkpoint from before they were counted has none
            self.skipped_in_a_row.copy_(contents["skipped_in_a_row"])
        self._has_stepped = bool(self.optimizer.state)

    def _stage_of(self, step: int) -> int:
        return max(index for index, stage in enumerate(self.stages) if stage.start <= step)

    def _enter(self, index: int) -> None:
        self.index = index
        self.optimizer = self.stages[index].make_optimizer(params=self.parameters)
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._has_stepped = False

    def _step_where(self, finite: Tensor) -> None:
        optimizer: Any = self.optimizer
        if self._has_stepped and getattr(optimizer, "_step_supports_amp_scaling", False):
            # What torch.amp.GradScaler gives them too.
            optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        elif bool(finite):
            optimizer.step()
            self._has_stepped = True


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights, after every update.

    Early on the decay is min(decay, (1 + step) / (10 + step)), so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = dict(model.named_parameters())
        self.averages = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after update `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.averages.values()), list(self.weights.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averaged weights inside, its own again afterwards."""
        own = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._copy(self.averages)
        try:
            yield
        finally:
            self._copy(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(self.averages)

    @torch.no_grad()
    def load_state_dict(self, averages: Mapping[str, Tensor]) -> None:
        """Takes up averages that were saved."""
        for name, average in self.averages.items():
            average.copy_(averages[name])

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])
