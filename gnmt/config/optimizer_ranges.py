"""What values torch's optimisers take: they say so only one by one, when they are built, and without the keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from gnmt.config.values import contains, describe_range, shown
from gnmt.types import Range

_ABOVE_0, _AT_LEAST_0 = Range(0, open_low=True), Range(0)
_BELOW_1, _UP_TO_1 = Range(0, 1, open_high=True), Range(0, 1)
_ADAM = {"lr": _ABOVE_0, "betas": _BELOW_1, "eps": _ABOVE_0, "weight_decay": _AT_LEAST_0}
# Of a list, each number. Optimisers and keywords that are not here are judged by the optimiser itself.
RANGES: dict[type, dict[str, Range]] = {
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.Adamax: _ADAM,
    torch.optim.NAdam: _ADAM | {"momentum_decay": _AT_LEAST_0},
    torch.optim.RAdam: _ADAM,
    torch.optim.SGD: {"lr": _ABOVE_0, "momentum": _BELOW_1, "dampening": _UP_TO_1, "weight_decay": _AT_LEAST_0},
    torch.optim.RMSprop: {
        **{"lr": _ABOVE_0, "alpha": _BELOW_1, "eps": _ABOVE_0, "weight_decay": _AT_LEAST_0, "momentum": _BELOW_1},
    },
    torch.optim.Adagrad: {"lr": _ABOVE_0, "lr_decay": _AT_LEAST_0, "eps": _ABOVE_0, "weight_decay": _AT_LEAST_0},
    torch.optim.Adadelta: {"lr": _ABOVE_0, "rho": _UP_TO_1, "eps": _ABOVE_0, "weight_decay": _AT_LEAST_0},
}


def check_optimizer(node: Mapping[str, Any], component: type, path: str) -> list[str]:
    """What lies outside the ranges of the node's class, as "key: what was found, what is allowed"."""
    errors = []
    for name, limits in RANGES.get(component, {}).items():
        value = node.get(name)
        items = value if isinstance(value, list | tuple) else [value]
        items = [item for item in items if not isinstance(item, float) or math.isfinite(item)]  # refused by their type
        if not all(contains(limits, item) for item in items):
            kind = "a number" if not isinstance(value, list | tuple) else "a list of numbers, each"
            errors.append(f"{path}.{name}: found {shown(value)}, allowed is {kind} {describe_range(limits)}")
    return errors
