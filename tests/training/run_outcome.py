"""Read the checkpoints and curves of a run, to compare them with those of another run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gnmt.checkpoint.file import read_checkpoint

CLOCK = ("train/seconds", "train/tokens_per_second", "train/data_wait_fraction")
# They depend on the run's name, the source tree or the clock.
LEFT_OUT = ("config", "checksum", "git_revision", "seconds_before", "seconds_waited")


def values(contents: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every tensor and plain value of a checkpoint with its path, except those in LEFT_OUT."""
    if isinstance(contents, Mapping | list | tuple):
        items = contents.items() if isinstance(contents, Mapping) else enumerate(contents)
        for key, item in items:
            if key not in LEFT_OUT:
                yield from values(item, f"{prefix}.{key}")
    else:
        yield prefix, contents


def outcome(folder: Path) -> dict[str, Any]:
    """Return the contents of last.pt and best.pt and the TensorBoard curves, except values of a clock."""
    files = {name: read_checkpoint(folder / f"{name}.pt") for name in ("last", "best")}
    return {f"{name}{path}": value for name in files for path, value in values(files[name])} | scalars(folder)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the TensorBoard curves, except values of a clock and result/*, which every end of a run writes."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag not in CLOCK and not tag.startswith("result/")
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names of values that are not bitwise equal."""
    return [
        name
        for name in sorted(one.keys() | other.keys())
        if not (name in one and name in other and same(one[name], other[name]))
    ]


def same(one: Any, other: Any) -> bool:
    """Return whether two values or tensors are equal."""
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)
