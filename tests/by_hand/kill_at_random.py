"""Kill a training (kill -9) at random moments, resume it each time, and compare the result with an uninterrupted run.

  python tests/by_hand/kill_at_random.py --points 50 --seed 1 --folder /tmp/killed

The script is run by hand, and docs/results/durability.md reports its results. Each kill comes after a random fraction
of the time that the uninterrupted command takes. It can hit preprocessing, start, updates, evaluations and writing.
When a run finishes, it is compared bitwise and the next run starts, until `--points` kills were made.
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
    """Start the training of the run `name`, and append its output to a log."""
    with (folder / f"{name}.log").open("ab") as log:
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), *SETTINGS, f"name={name}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def describe_state(run: Path) -> str:
    """Describe the files that a killed run has left."""
    if list(run.rglob("*.tmp")):
        return "an unfinished file"
    if not (run / "last.pt").exists():
        return "no checkpoint"
    return f"checkpoint {(run / 'last.pt').resolve().stem}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50, help="number of kills")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random moments")
    parser.add_argument("--folder", type=Path, required=True, help="a folder that does not exist yet")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True)
    rng = random.Random(arguments.seed)

    begin = time.monotonic()
    assert start(folder, "uninterrupted").wait() == 0, (folder / "uninterrupted.log").read_text()
    uninterrupted_seconds = time.monotonic() - begin
    expected = outcome(folder / "runs" / "uninterrupted")
    print(f"uninterrupted: {uninterrupted_seconds:.0f} s", flush=True)

    kills, runs, kills_of_run, states = 0, 0, 0, Counter[str]()
    while kills < arguments.points or kills_of_run:
        name = f"killed-{runs}"
        process = start(folder, name)
        try:
            process.wait(rng.uniform(0, uninterrupted_seconds) if kills < arguments.points else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills, kills_of_run = kills + 1, kills_of_run + 1
            state = describe_state(folder / "runs" / name)
            states[state] += 1
            print(f"kill {kills}: {state}", flush=True)
            continue
        assert process.returncode == 0, (folder / f"{name}.log").read_text()
        different = differences(outcome(folder / "runs" / name), expected)
        assert not different, f"{name} differs after {kills_of_run} kills: {different}"
        assert not list((folder / "runs" / name).rglob("*.tmp"))
        print(f"{name}: bitwise equal after {kills_of_run} kills", flush=True)
        runs, kills_of_run = runs + 1, 0
    print(
        f"{kills} kills, {runs} finished runs, all bitwise equal to the uninterrupted one; killed with {dict(states)}"
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
