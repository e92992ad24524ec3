"""The batch script of docs/slurm.md with stubs of Slurm's commands: a warned job saves, is requeued and resumes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gnmt.checkpoint.file import read_checkpoint

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"^srun python scripts/train\.py .*$", re.MULTILINE)


def batch_script() -> str:
    script, _ = re.findall(
        r"^```sh\n(.*?)^```$", (ROOT / "docs" / "slurm.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    return str(script)


def stub(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def test_the_script_has_one_command_and_requests_a_warning() -> None:
    script = batch_script()
    assert len(COMMAND.findall(script)) == 1
    assert "#SBATCH --signal=USR1@" in script
    assert "#SBATCH --requeue" in script


@pytest.mark.slow
def test_a_warned_job_saves_is_requeued_and_resumes(run_command, tiny, wait_for, tmp_path) -> None:
    run = tiny.copied_to(tmp_path)
    overrides = (*run.overrides, "trainer.save_every_steps=1000000", "trainer.evaluate_every_steps=1000000")
    train = f"srun {sys.executable} {ROOT / 'scripts' / 'train.py'} {' '.join(overrides)} trainer.max_steps=1000000"
    (tmp_path / "job.sh").write_text(COMMAND.sub(lambda _: train, batch_script()), encoding="utf-8")
    commands = tmp_path / "bin"
    commands.mkdir()
    stub(commands / "srun", f'echo $$ > {tmp_path}/pid\nexec "$@"')
    stub(commands / "scontrol", f'echo "$@" >> {tmp_path}/scontrol')
    environment = {"OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "77", "PATH": f"{commands}:{os.environ['PATH']}"}
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(
            ["bash", "job.sh"], cwd=tmp_path, stdout=log, stderr=log, env={**os.environ, **environment}
        )
        try:
            wait_for("update 6/", tmp_path / "log", job)
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)
            assert job.wait(60) == 75
        finally:
            job.kill()
    output = (tmp_path / "log").read_text(encoding="utf-8")
    stopped = re.search(r"SIGUSR1: stopped after update (\d+), saved up to (\d+): the same command resumes", output)
    assert stopped is not None, output
    assert stopped[1] == stopped[2]
    assert (tmp_path / "scontrol").read_text() == "requeue 77\n"
    step = int(stopped[1])
    assert read_checkpoint(run.folder / "last.pt")["step"] == step
    again = run_command("train", *overrides, f"trainer.max_steps={step + 1}", cwd=tmp_path)
    assert again.code == 0, again.err
    assert f"1 update from update {step}" in again.err
