"""From gradients to new weights: the phase's optimiser, its rate, clipping, and updates that are skipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gnmt.runtime import Precision
from gnmt.training.phases import Stage


class Optimisation:
    """Applies updates, phase after phase.

    An update whose loss or gradient is not finite is skipped where it is computed: weights and optimiser stay as they
    were, and the host does not wait to hear of it. Optimisers with a fused kernel (`fused: true`) can do this on the
    device; for others, and until the first update of a phase, the host looks. (Fused SGD, told to skip its first
    update, would leave its momentum uninitialised.)

    stages: see `stages_of`. clip_norm: the largest global norm of the gradient; None for no clipping.
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

    def begin(self, step: int, evaluations: Sequence[tuple[int, float]]) -> None:
        """Sets the learning rate for the update of that number, counted from 0, and enters its phase where that is new.

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
        """What a checkpoint holds of it; the phase follows from the step."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, contents: Mapping[str, Any], step: int) -> None:
        """Takes up what was saved after that many updates, whose last one decides which phase's optimiser it is."""
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
