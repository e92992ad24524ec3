"""A run killed with SIGKILL at marked points and then resumed is bitwise the run that was never killed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_outcome import differences, outcome

CHILD = Path(__file__).with_name("killed_child.py")
RECIPE = (
    "trainer.ema_decay=0.9",
    "trainer.microbatch_tokens=100",
    "trainer.evaluate_every_steps=4",
    # Not at the steps of evaluations: their figures would flush earlier TensorBoard points to the disk.
    "trainer.save_every_steps=3",
    "trainer.max_steps=10",
    "schedule=plateau",
    "schedule.warmup_steps=3",
    "schedule.patience_evaluations=1",
)


def marks() -> list[str]:
    spec = importlib.util.spec_from_file_location("killed_child", CHILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.MARKS)


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory) -> dict[str, Any]:
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("mark", marks())
def test_a_killed_and_resumed_run_equals_one_that_was_never_killed(run, settings, never_killed, tmp_path, mark):
    if not never_killed:
        run(tmp_path / "uninterrupted", *RECIPE)
        never_killed.update(outcome(tmp_path / "uninterrupted"))
    child = subprocess.run(
        [sys.executable, str(CHILD), mark, str(tmp_path / "killed"), *settings, *RECIPE],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == -9, child.stderr
    run(tmp_path / "killed", *RECIPE)
    assert differences(outcome(tmp_path / "killed"), never_killed) == []
    assert not list((tmp_path / "killed").rglob("*.tmp"))
