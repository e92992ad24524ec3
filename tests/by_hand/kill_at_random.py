"""Kills a training (kill -9) at random moments, goes on each time, and compares the end with a run never killed.

  python tests/by_hand/kill_at_random.py --points 50 --seed 1 --folder /tmp/killed

Run by hand; docs/results/durability.md has what it said. A moment is drawn from the time that a process takes from its
start to the end of the run, so it falls into preparation, start, updates, evaluations and writing alike. Whenever a run
comes to its end it is compared, and the next one is begun, until there were that many kills.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "training"))

from run_outcome import differences, outcome  # noqa: E402 (its folder is no package)

SETTINGS = (
    "data.num_train=2000",
    "data.num_dev=20",
    "data.num_test=5",
    "tokenizer.vocab_size=600",
    "model.embedding_size=64",
    "schedule.total_steps=160",
    "trainer.max_steps=160",
    "trainer.batch_tokens=1500",
    "trainer.microbatch_tokens=600",
    "trainer.ema_decay=0.99",
    "trainer.log_every_steps=7",
    "trainer.evaluate_every_steps=40",
    "trainer.save_every_steps=20",
    "decoding.beam_size=2",
    "decoding.max_length_factor=1",
    "device=cpu",
)


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """The command of that run, its words appended to a log."""
    with (folder / f"{name}.log").open("ab") as log:
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), *SETTINGS, f"name={name}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def state_of(run: Path) -> str:
    """Where a run was when it was killed."""
    if list(run.rglob("*.tmp")):
        return "a file half written"
    if not (run / "last.pt").exists():
        return "before the first checkpoint"
    return f"going on from {(run / 'last.pt').resolve().stem}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50, help="kills in all")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--folder", type=Path, required=True, help="a folder that does not exist yet")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True)
    rng = random.Random(arguments.seed)

    began = time.monotonic()
    assert start(folder, "whole").wait() == 0, (folder / "whole.log").read_text()
    whole_seconds = time.monotonic() - began
    expected = outcome(folder / "runs" / "whole")
    print(f"never killed: {whole_seconds:.0f} s", flush=True)

    kills, runs, kills_of_run, states = 0, 0, 0, Counter[str]()
    while kills < arguments.points or kills_of_run:
        name = f"killed-{runs}"
        process = start(folder, name)
        try:
            process.wait(rng.uniform(0, whole_seconds) if kills < arguments.points else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills, kills_of_run = kills + 1, kills_of_run + 1
            state = state_of(folder / "runs" / name)
            states[state] += 1
            print(f"kill {kills}: {state}", flush=True)
            continue
        assert process.returncode == 0, (folder / f"{name}.log").read_text()
        different = differences(outcome(folder / "runs" / name), expected)
        assert not different, f"{name} differs after {kills_of_run} kills: {different}"
        assert not list((folder / "runs" / name).rglob("*.tmp"))
        print(f"{name}: the same, bit by bit, after {kills_of_run} kills", flush=True)
        runs, kills_of_run = runs + 1, 0
    print(f"{kills} kills, {runs} runs to their end, all as the one never killed; killed: {dict(states)}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
