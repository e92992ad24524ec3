"""All that a run leaves behind, to be compared with what another run leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gnmt.checkpoint import read_checkpoint

CLOCK = ("train/tokens_per_second", "train/data_wait_fraction")


def values(contents: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and plain value of a checkpoint by its path, but for the config (the run's name) and checksum."""
    if isinstance(contents, Mapping | list | tuple):
        items = contents.items() if isinstance(contents, Mapping) else enumerate(contents)
        for key, item in items:
            if key not in ("config", "checksum"):
                yield from values(item, f"{prefix}.{key}")
    else:
        yield prefix, contents


def outcome(folder: Path) -> dict[str, Any]:
    """The last and the best checkpoint and what TensorBoard shows, but for what a clock says."""
    files = {name: read_checkpoint(folder / f"{name}.pt") for name in ("last", "best")}
    found = {f"{name}{path}": value for name in files for path, value in values(files[name])}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    for tag in set(events.Tags()["scalars"]) - set(CLOCK):
        found[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names of what is not the same, bit by bit."""
    return [
        name
        for name in sorted(one.keys() | other.keys())
        if not (name in one and name in other and same(one[name], other[name]))
    ]


def same(one: Any, other: Any) -> bool:
    """Equality of two values, tensors included."""
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)
