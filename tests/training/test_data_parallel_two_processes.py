"""Two gloo processes compute what one does: gradients, evaluation, whole runs; and they stop and fail together.

One pair of processes serves all tests; see parallel_child.py.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_child import EVERY_2, GRADIENTS, SPLIT_EVALUATION, evaluation, gradients, make_trainer

from gnmt.checkpoint.file import read_checkpoint
from gnmt.distributed import Ranks
from gnmt.training.trainer import Trainer

CHILD = Path(__file__).with_name("parallel_child.py")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Pair:
    """Results, stderr and exit codes of the two processes, by rank. home: the folder of their runs."""

    home: Path
    found: list[dict[str, Any]]
    err: list[str]
    codes: list[int]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def pair(settings, shared_folder) -> Pair:
    """Return the pair. The first worker that needs it runs it, and the others wait. Tests must not change its files."""
    with shared_folder("pair") as home:
        record = home / "ended.json"
        if not record.exists():
            record.write_text(json.dumps(run_pair(home, settings)), encoding="utf-8")
    err, codes = json.loads(record.read_text(encoding="utf-8"))
    found = [torch.load(home / f"found-{rank}.pt", weights_only=False) for rank in range(2)]
    return Pair(home, found, err, codes)


def run_pair(home: Path, settings: tuple[str, ...]) -> tuple[list[str], list[int]]:
    """Run both processes, and return their stderr and exit codes."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(CHILD), str(home), *settings],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        err = [process.communicate(timeout=400)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank in range(2):
        assert (home / f"found-{rank}.pt").exists(), "\n".join(err)
    return err, [process.returncode for process in processes]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_two_processes_are_those_of_one(pair, settings, tmp_path, name):
    """DDP averages gradients, and the processes have different numbers of tokens; neither may change the result."""
    overrides, num_updates = GRADIENTS[name]
    expected = gradients(make_trainer((*settings, *overrides), tmp_path, Ranks()), num_updates)
    tolerance = 2e-2 if name == "bf16" else 1e-5
    for found in (pair.found[0][name], pair.found[1][name]):
        for one, other in zip(found["gradients"], expected["gradients"], strict=True):
            assert (one - other).norm() <= tolerance * other.norm()
        assert found["losses"] == pytest.approx(expected["losses"], rel=tolerance)
        assert found["tokens"] == expected["tokens"], "token counts of a global batch are equal on every rank"
        for one, other in zip(found["statistics"], expected["statistics"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_local_batches_of_both_make_up_the_batches_of_one(pair, settings, tmp_path, name):
    overrides, num_updates = GRADIENTS[name]
    expected = gradients(make_trainer((*settings, *overrides), tmp_path, Ranks()), num_updates)["own_pairs"]
    own = [pair.found[rank][name]["own_pairs"] for rank in range(2)]
    assert [sorted(first + second) for first, second in zip(*own, strict=True)] == [sorted(batch) for batch in expected]
    num_empty = sum(not batch for batch in own[1])
    assert (num_empty > 2) is ("fewer pairs than processes" in name)


def test_evaluation_is_split_and_equals_that_of_one_process(pair, settings, tmp_path):
    expected = evaluation(make_trainer((*settings, *SPLIT_EVALUATION), tmp_path, Ranks()))
    for rank in range(2):
        found = pair.found[rank]["evaluation"]
        assert found["scalars"] == expected["scalars"], "bitwise: losses are summed in the same order"
        assert found["texts"] == expected["texts"]
        torch.testing.assert_close(found["attention"], expected["attention"], rtol=0, atol=1e-6)
    own = [pair.found[rank]["evaluation"]["own_sentences"] for rank in range(2)]
    assert min(own) >= 1
    assert sum(own) == expected["own_sentences"]


def test_a_whole_run_equals_that_of_one_process(pair, run, tmp_path):
    """With averaged weights, evaluations and checkpoints. Both processes hold equal weights and the same best step."""
    result = run(tmp_path, *EVERY_2, "trainer.max_steps=4")
    first, second = pair.found
    assert first["result"] == second["result"]
    assert first["result"][:2] == (4, result.best_step)
    assert first["result"][2] == pytest.approx(result.best, rel=1e-4)
    for part in ("weights", "average"):
        assert all(torch.equal(first[part][name], second[part][name]) for name in first[part])
    alone, together = (read_checkpoint(folder / "last.pt") for folder in (tmp_path, pair.home / "run"))
    assert together["loader_state"] == alone["loader_state"]
    assert together["step"] == alone["step"] == 4
    for name, weight in alone["model"].items():
        torch.testing.assert_close(together["model"][name], weight, rtol=1e-3, atol=1e-5)


def test_only_rank_0_writes(pair):
    files = sorted(path.name for path in (pair.home / "run").iterdir())
    assert len([name for name in files if name.startswith("events.")]) == 1
    log = (pair.home / "run" / "train.log").read_text(encoding="utf-8")
    assert log.count("update 4/4") == 1
    assert "by 2 processes of about 125 tokens each" in log
    assert "update 4/4" in pair.err[0]
    assert "tokens/s" not in pair.err[1]


def test_one_process_resumes_the_run_of_two_in_the_same_data_order(pair, run, tmp_path, monkeypatch):
    """The batches are those of a run in one process from the start; dropout may differ."""
    consumed: dict[str, list[list[int]]] = {"alone": [], "resumed": []}
    update = Trainer.update
    now = "alone"

    def watched(trainer, local_batch, metrics):
        consumed[now].append([pair for batch in local_batch for pair in batch.pairs_B.tolist()])
        update(trainer, local_batch, metrics)

    monkeypatch.setattr(Trainer, "update", watched)
    run(tmp_path / "alone", *EVERY_2, "trainer.max_steps=7")
    now = "resumed"
    shutil.copytree(pair.home / "run", tmp_path / "resumed", symlinks=True)
    run(tmp_path / "resumed", *EVERY_2, "trainer.max_steps=7")
    assert len(consumed["resumed"]) == 3
    assert consumed["resumed"] == consumed["alone"][4:]


def test_dropout_differs_between_processes_and_is_a_function_of_the_update(pair):
    first, second = (pair.found[rank]["draws"] for rank in range(2))
    for draws in (first, second):
        assert torch.equal(draws[0], draws[2])
        assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize(("stage", "step"), [("update", 3), ("evaluation", 4)])
def test_a_signal_to_one_process_stops_both_after_the_same_update(pair, stage, step):
    for found in pair.found:
        message, code = found[f"stopped in {stage}"]
        assert message.startswith(f"SIGTERM: stopped after update {step}, saved up to {step}: the same command")
        assert code == 143
    saved = read_checkpoint(pair.home / stage / "last.pt")
    assert (saved["step"], saved["evaluation_due"]) == (step, stage == "evaluation")


def test_an_error_of_one_process_ends_both_and_names_its_rank(pair):
    """Rank 1 prints its error once, with the traceback."""
    assert pair.codes == [1, 1]
    assert "error: stopped, because rank 1 did: this process has no memory left" in pair.err[0]
    assert "Traceback" not in pair.err[0]
    assert "error: rank 1: RuntimeError: this process has no memory left" in pair.err[1]
    assert "Traceback" in pair.err[1]
