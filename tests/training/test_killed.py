"""kill -9 at marked points, and the same command again: bit by bit the run that was never killed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gnmt.checkpoint import read_checkpoint

CHILD = Path(__file__).with_name("killed_child.py")
RECIPE = (
    "trainer.ema_decay=0.9",
    "trainer.microbatch_tokens=100",
    "trainer.evaluate_every_steps=4",
    "trainer.save_every_steps=4",
    "trainer.max_steps=10",
    "schedule=plateau",
    "schedule.warmup_steps=3",
    "schedule.patience_evaluations=1",
)
CLOCK = ("train/tokens_per_second", "train/data_wait_fraction")


def marks() -> list[str]:
    spec = importlib.util.spec_from_file_location("killed_child", CHILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.MARKS)


def values(contents: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and plain value of a checkpoint by its path, but for the checksum of all."""
    if isinstance(contents, Mapping | list | tuple):
        items = contents.items() if isinstance(contents, Mapping) else enumerate(contents)
        for key, item in items:
            if key != "checksum":
                yield from values(item, f"{prefix}.{key}")
    else:
        yield prefix, contents


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves: its last and best checkpoints and what TensorBoard shows, but for what a clock says."""
    files = {name: read_checkpoint(folder / f"{name}.pt") for name in ("last", "best")}
    found = {f"{name}{path}": value for name in files for path, value in values(files[name])}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    for tag in set(events.Tags()["scalars"]) - set(CLOCK):
        found[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return found


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory) -> dict[str, Any]:
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("mark", marks())
def test_killed_and_continued_is_never_killed(run, settings, never_killed, tmp_path, mark):
    if not never_killed:
        run(tmp_path / "whole", *RECIPE)
        never_killed.update(outcome(tmp_path / "whole"))
    child = subprocess.run(
        [sys.executable, str(CHILD), mark, str(tmp_path / "killed"), *settings, *RECIPE],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == -9, child.stderr
    run(tmp_path / "killed", *RECIPE)
    found = outcome(tmp_path / "killed")
    assert found.keys() == never_killed.keys()
    for name, value in never_killed.items():
        same = torch.equal(value, found[name]) if isinstance(value, torch.Tensor) else value == found[name]
        assert same, name
    assert not list((tmp_path / "killed").rglob("*.tmp"))
