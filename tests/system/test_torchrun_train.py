"""scripts/train.py under torchrun: a process is killed and the run resumes; fine-tuning from a checkpoint."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gnmt.checkpoint.file import read_checkpoint

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

pytestmark = pytest.mark.slow


def start(flags: tuple[str, ...], overrides: tuple[str, ...], cwd: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [*TORCHRUN, *flags, str(SCRIPT), *overrides],
            cwd=cwd,
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def children(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the process ids that torchrun started, in the order of their ranks."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(int(number) for number in found)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of child processes")
def test_a_killed_process_costs_the_updates_since_the_last_checkpoint(tiny, wait_for, tmp_path) -> None:
    """torchrun restarts both processes. Then a signal stops the run, and a last command finishes it."""
    run, log = tiny.copied_to(tmp_path), tmp_path / "log"
    # Frequent checkpoints and an unreachable number of updates leave time for a kill.
    often = ("trainer.save_every_steps=10", "trainer.evaluate_every_steps=1000000", "trainer.keep_checkpoints=1000000")
    process = start(("--max-restarts=1",), (*run.overrides, *often, "trainer.max_steps=1000000"), tmp_path, log)
    try:
        wait_for("update 25/", log, process)
        assert len(children(process)) == 2
        os.kill(children(process)[1], signal.SIGKILL)
        wait_for(" updates from update ", log, process)  # the first start, from update 4
        wait_for(" updates from update ", log, process, times=2)
        printed = log.read_text(encoding="utf-8")
        again = int(re.findall(r" updates from update (\d+)", printed)[1])
        assert again >= 20
        assert again % 10 == 0
        # A later update than those of the first start, which the log has too.
        wait_for(f"update {max(map(int, re.findall(r'update ([0-9]+)/', printed))) + 1}/", log, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1, "torchrun exits with 1 whatever the exit codes of its processes"
    finally:
        process.kill()
    output = log.read_text(encoding="utf-8")
    stopped = re.search(r"SIGTERM: stopped after update (\d+), saved up to (\d+): the same command resumes", output)
    assert stopped is not None, output
    assert stopped[1] == stopped[2]
    step = int(stopped[1])
    assert read_checkpoint(run.folder / "last.pt")["step"] == step
    process = start((), (*run.overrides, *often, f"trainer.max_steps={step + 1}"), tmp_path, log)
    assert process.wait(240) == 0, log.read_text(encoding="utf-8")
    output = log.read_text(encoding="utf-8")
    assert f"1 update from update {step}" in output
    assert output.count("best on dev, at update") == 1
    assert "by 2 processes of about 300 tokens each" in output


def test_two_processes_fine_tune_and_resume_without_the_other_run(tiny, tmp_path) -> None:
    """Each process reads model and tokenizers from the checkpoint, or from that of the run which resumes."""
    general, log = tmp_path / "general.pt", tmp_path / "log"
    shutil.copy(tiny.folder / "best.pt", general)
    (tmp_path / "a.tsv").write_text("".join(f"a house {n}\tein Haus {n}\n" for n in range(60)), encoding="utf-8")
    command = ["initialize_from=general.pt", "data=files", "data.train.pairs=a.tsv", "data.dev.pairs=a.tsv"]
    command += ["name=domain", "device=cpu", "decoding.max_length_factor=1", "model.encoder.dropout=0.3"]
    for steps, message, num_first in ((2, "initial weights: update", 1), (4, "2 updates from update 2", 0)):
        process = start((), (*command, f"trainer.max_steps={steps}"), tmp_path, log)
        assert process.wait(240) == 0, log.read_text(encoding="utf-8")
        output = log.read_text(encoding="utf-8")
        assert message in output
        assert output.count("update 0, dev: ") == num_first
        assert "by 2 processes" in output
        general.unlink(missing_ok=True)
    config = json.loads(read_checkpoint(tmp_path / "runs" / "domain" / "last.pt")["config"])
    assert config["model"]["embedding_size"] == 16
    assert config["model"]["decoder"]["dropout"] == 0.3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_processes_share_a_gpu(tiny, tmp_path) -> None:
    """The data-parallel path on CUDA, for machines with one GPU. Its gradients go through gloo."""
    overrides = [text for text in tiny.overrides if not text.startswith(("device=", "name="))]
    overrides += ["device=cuda:0", "precision=fp32", "model.encoder.dropout=0"]
    log = tmp_path / "log"
    process = start((), (*overrides, "name=shared"), tmp_path, log)
    assert process.wait(240) == 0, log.read_text(encoding="utf-8")
    output = log.read_text(encoding="utf-8")
    assert "processes share a GPU" in output
    assert "by 2 processes" in output
    alone = subprocess.run([sys.executable, str(SCRIPT), *overrides, "name=alone"], cwd=tmp_path)
    assert alone.returncode == 0
    [together, single] = (read_checkpoint(tmp_path / "runs" / name / "last.pt") for name in ("shared", "alone"))
    for name, weight in single["model"].items():
        torch.testing.assert_close(together["model"][name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_processes_train_on_two_gpus(tiny, tmp_path) -> None:
    """NCCL between two GPUs."""
    overrides = [text for text in tiny.overrides if not text.startswith(("device=", "name="))]
    log = tmp_path / "log"
    process = start((), (*overrides, "device=cuda", "name=two"), tmp_path, log)
    assert process.wait(240) == 0, log.read_text(encoding="utf-8")
    output = log.read_text(encoding="utf-8")
    assert "by 2 processes" in output
    assert "processes share a GPU" not in output
