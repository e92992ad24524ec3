"""Training stages, optimizer updates, and the moving average of the weights.

A run has one training stage or several in a row, each with its own optimizer and schedule. `StageOptions` is a stage in
the config, and `build_stages` turns it into a `Stage`. `StagedOptimizer` applies the updates: it clips the gradient,
skips updates that are not finite, and changes the optimizer where a stage begins. `WeightAverage` is independent of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from gnmt.training.schedule import Quality, Schedule

MakeOptimizer = Callable[..., Optimizer]


@dataclass(frozen=True)
class StageOptions:
    """Options of one training stage. Where optimizer or schedule is None, the root key of that name is used.

    Args:
        until_step: Number of updates of the whole run after which the next stage begins; None for the last stage, which
            lasts as long as the run.
        optimizer: Optimizer of the stage, which starts without the state of the previous one.
        schedule: Schedule of the stage, which counts updates from the beginning of the stage.
    """

    until_step: Annotated[int, Range(1)] | None
    optimizer: Annotated[MakeOptimizer | None, Deferred(Optimizer, ("params",))] = None
    schedule: Schedule | None = None


class Stage(NamedTuple):
    """A training stage of a run.

    Args:
        start: First update of the stage, counted from 0 in the whole run.
        make_optimizer: Builds the optimizer from the keyword argument `params`.
        schedule: Learning-rate schedule.
    """

    start: int
    make_optimizer: MakeOptimizer
    schedule: Schedule


def check_stages(stages: Sequence[StageOptions]) -> None:
    """Raise InputError if stages are out of order, or if all of them replace a root key."""
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
                f"trainer.stages: every stage has its own {key}, so the root key {key} would have no effect: move the "
                f"settings of one stage to the root key, and set {key}: null in that stage"
            )


def build_stages(
    stages: Sequence[StageOptions] | None, make_optimizer: MakeOptimizer, schedule: Schedule
) -> list[Stage]:
    """Return the stages of a run in their order.

    Args:
        stages: Stages of the config; None for a single stage.
        make_optimizer: Optimizer of the root key, for stages without their own.
        schedule: Schedule of the root key, for stages without their own.
    """
    if stages is None:
        return [Stage(0, make_optimizer, schedule)]
    starts = [0, *(stage.until_step or 0 for stage in stages[:-1])]
    return [
        Stage(start, stage.optimizer or make_optimizer, stage.schedule or schedule)
        for start, stage in zip(starts, stages, strict=True)
    ]


class StagedOptimizer:
    """Apply updates with the optimizer and the schedule of the current training stage.

    An update whose loss or gradient is not finite is skipped: weights and optimizer state stay unchanged. Optimizers
    with a fused kernel (`fused: true`) skip it on the device, so the host does not wait for the result. For other
    optimizers, and for the first update of a stage, the host reads whether the update is finite: fused SGD would leave
    its momentum uninitialized if its first update were skipped on the device.

    Args:
        parameters: The parameters to optimize.
        stages: See `build_stages`.
        clip_norm: Largest global norm of the gradient; None for no clipping.
        precision: Device and number format; fp16 scales the loss.
        before_clipping: Called in every update when the gradient is complete and unscaled.
        around_step: Returns a context in which the weights are changed; called in every update.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        stages: Sequence[Stage],
        clip_norm: float | None,
        precision: Precision,
        before_clipping: Callable[[], None] = lambda: None,
        around_step: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.parameters = parameters
        self.stages = stages
        self.clip_norm = math.inf if clip_norm is None else clip_norm
        self.before_clipping = before_clipping
        self.around_step = around_step
        self.scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.name == "fp16")
        self.skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=precision.device)
        """Number of updates skipped since the last one that was applied; on the device."""
        self._enter_stage(0)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the current update."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def begin_update(self, step: int, qualities: Sequence[tuple[int, Quality]]) -> None:
        """Set the learning rate of an update, after building the new optimizer if a stage begins with this update.

        Args:
            step: Number of the update, counted from 0.
            qualities: Step and quality of each dev evaluation so far.
        """
        index = self._stage_index(step)
        if index != self.stage_index:
            self._enter_stage(index)
        stage = self.stages[index]
        of_stage = [quality for evaluated_step, quality in qualities if evaluated_step > stage.start]
        factor = stage.schedule.factor(step - stage.start) * stage.schedule.plateau_factor(of_stage)
        for group, base_rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base_rate * factor

    def apply(self, loss_sum: Tensor) -> tuple[Tensor, Tensor]:
        """Clip the gradients, apply the update, and clear the gradients.

        Args:
            loss_sum: The loss that the gradients belong to. If it is not finite, the update is skipped.

        Returns:
            The norm of the gradient before clipping, and a bool that is False if the update was skipped; both are
            scalars on the device.
        """
        self.scaler.unscale_(self.optimizer)
        self.before_clipping()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        finite = torch.isfinite(norm) & torch.isfinite(loss_sum)
        with self.around_step():
            self._step_if(finite)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * ~finite
        return norm, finite

    def state_dict(self) -> dict[str, Any]:
        """Return the entries for a checkpoint. The stage is not among them, because the step determines it."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, contents: Mapping[str, Any], step: int) -> None:
        """Load what `state_dict` returned after `step` updates.

        The saved optimizer belongs to the stage of the last update. If a stage begins with the next update,
        `begin_update` builds its optimizer.
        """
        self._enter_stage(self._stage_index(max(0, step - 1)))
        self.optimizer.load_state_dict(contents["optimizer"])
        self.scaler.load_state_dict(contents["scaler"])
        self.skipped_in_a_row.copy_(contents["skipped_in_a_row"])
        self._has_stepped = bool(self.optimizer.state)

    def _stage_index(self, step: int) -> int:
        return max(index for index, stage in enumerate(self.stages) if stage.start <= step)

    def _enter_stage(self, index: int) -> None:
        self.stage_index = index
        self.optimizer = self.stages[index].make_optimizer(params=self.parameters)
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._has_stepped = False

    def _step_if(self, finite: Tensor) -> None:
        optimizer: Any = self.optimizer
        if self._has_stepped and getattr(optimizer, "_step_supports_amp_scaling", False):
            # torch.amp.GradScaler sets the same two attributes for fused optimizers.
            optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        elif bool(finite):
            optimizer.step()
            self._has_stepped = True


class WeightAverage:
    """Exponential moving average of the weights: average <- decay * average + (1 - decay) * weights.

    The first updates use the smaller decay (1 + step) / (10 + step), so that the initial weights soon lose their
    influence.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = dict(model.named_parameters())
        self.averages = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after update `step`, counted from 1, to the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.averages.values()), list(self.weights.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the model's weights by their averages inside this context, and restore them afterwards."""
        own = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._copy(self.averages)
        try:
            yield
        finally:
            self._copy(own)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by parameter name."""
        return dict(self.averages)

    @torch.no_grad()
    def load_state_dict(self, averages: Mapping[str, Tensor]) -> None:
        """Load averages that `state_dict` returned."""
        for name, average in self.averages.items():
            average.copy_(averages[name])

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])
