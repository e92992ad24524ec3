"""Kill translate.py at random moments, resume it each time, and compare with an uninterrupted translation.

  python tests/by_hand/kill_translate.py runs/demo/best.pt a.en 10

Run it by hand: each start takes seconds. SIGKILL is sent after a random fraction of the time that the uninterrupted
command takes: at the start, between chunks, during a write, or not at all if the rest was short.
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
        print(f"uninterrupted: {seconds:.1f} s")
        rng = random.Random(1)
        killed = 0
        while killed < num_kills:
            wait = rng.uniform(0.2, 1.0) * seconds
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
            print("complete before it was killed, and equal: starts from scratch")
            found.unlink()
        assert run(checkpoint, text, found).wait() == 0
        check(found, expected)
        print(f"killed {killed} times, resumed to the end: the same bytes, {found.stat().st_size} bytes")


def run(checkpoint: str, text: str, output: Path) -> subprocess.Popen[bytes]:
    """Start a translation in small chunks, so that many of them are written."""
    settings = [f"checkpoint={checkpoint}", f"input={text}", f"output={output}", "batch_size=2", "format=jsonl"]
    command = [sys.executable, str(ROOT / "scripts" / "translate.py"), *settings]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT)


def check(found: Path, expected: Path) -> None:
    """Exit with a message if the two files differ."""
    if found.read_bytes() != expected.read_bytes():
        sys.exit(f"{found} differs from {expected}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
