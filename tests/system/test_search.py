"""A search by hydra/sweeper=search resumes and ends at an error; jobs of submitit are trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def search(*overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return sweep("hydra/sweeper=search", *overrides, cwd=cwd)


def sweep(*overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "-m", *overrides]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def trained(folder: Path) -> dict[str, int]:
    """Return the time of the last write of best.pt by the name of the run."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/best.pt")}


@pytest.mark.slow
def test_the_same_command_continues_a_search_and_trains_no_run_again(tiny, tmp_path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    overrides = [one for one in tiny.copied_to(tmp_path).overrides if not one.startswith("optimizer.lr")]
    first = search(*overrides, "runs=s", "hydra.sweeper.n_trials=1", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    before = trained(tmp_path / "s")
    assert len(before) == 1
    again = search(*overrides, "runs=s", "hydra.sweeper.n_trials=2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("is finished after 4 updates") == 1
    after = trained(tmp_path / "s")
    assert len(after) == 2
    assert before.items() <= after.items()
    assert "best_value" in (tmp_path / "s" / ".sweep" / "optimization_results.yaml").read_text("utf-8")


@pytest.mark.slow
def test_a_missing_file_ends_a_search_with_one_message(tmp_path) -> None:
    """Optuna repeated the message four times for each run."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    files = [f"data.{part}.{side}=no.{side}" for part in ("train", "dev") for side in ("source", "target")]
    ended = search("data=files", *files, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.count("error: ") == 1
    assert "Error executing job" not in ended.stderr


@pytest.mark.slow
def test_submitit_trains_each_job_in_a_process_of_its_own(tiny, tmp_path) -> None:
    """The documented command, for which the extra `slurm` is needed. The same command again finds the runs finished."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    overrides = [one for one in tiny.copied_to(tmp_path).overrides if not one.startswith("name=")]
    command = ("hydra/launcher=submitit_local", *overrides, "runs=s", "name=job", "seed=1,2")
    ended = sweep(*command, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    runs = trained(tmp_path / "s")
    assert sorted(runs) == ["job__seed-1", "job__seed-2"]
    logs = list((tmp_path / "s" / ".sweep" / ".submitit").glob("*/*_log.err"))
    assert ["update 4/4" in path.read_text("utf-8") for path in logs] == [True, True]
    again = sweep(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert trained(tmp_path / "s") == runs
