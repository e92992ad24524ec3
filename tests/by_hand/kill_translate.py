"""Kills translate.py at random moments, lets it go on each time, and compares with a translation left in peace.

  python tests/by_hand/kill_translate.py runs/demo/best.pt a.en 10

Run by hand: a start of the program takes seconds. SIGKILL comes after a random share of the time that the undisturbed
command takes, so at the start, between chunks, in the middle of a write, or not at all when the rest was short.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(checkpoint: str, text: str, num_kills: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        expected, found = Path(folder) / "expected.jsonl", Path(folder) / "found.jsonl"
        start = time.monotonic()
        assert run(checkpoint, text, expected).wait() == 0
        seconds = time.monotonic() - start
        print(f"undisturbed: {seconds:.1f} s")
        dice = random.Random(1)
        killed = 0
        while killed < num_kills:
            wait = dice.uniform(0.2, 1.0) * seconds
            process = run(checkpoint, text, found)
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
                num_files = len(list(Path(f"{found}.partial").glob("*")))
                print(f"killed after {wait:.1f} s: {num_files} files in the partial output")
                continue
            assert process.returncode == 0, process.returncode
            check(found, expected)
            print("complete before it was killed, and equal: begins anew")
            found.unlink()
        assert run(checkpoint, text, found).wait() == 0
        check(found, expected)
        print(f"killed {killed} times, continued to the end: byte for byte the same, {found.stat().st_size} bytes")


def run(checkpoint: str, text: str, output: Path) -> subprocess.Popen[bytes]:
    """Start a translation in small chunks, so that many of them are written."""
    settings = [f"checkpoint={checkpoint}", f"input={text}", f"output={output}", "batch_size=2", "format=jsonl"]
    command = [sys.executable, str(ROOT / "scripts" / "translate.py"), *settings]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT)


def check(found: Path, expected: Path) -> None:
    if found.read_bytes() != expected.read_bytes():
        sys.exit(f"{found} differs from {expected}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
