"""Run a command and print its time and the peak anonymous memory of all its processes (Linux).

python -m benchmarks.peak_memory COMMAND ...

Anonymous memory (RssAnon) excludes pages of memory-mapped files. It is sampled 20 times per second.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path


def main(command: list[str]) -> int:
    began = time.perf_counter()
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(anonymous_kilobytes(pid) for pid in family(process.pid)))
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    print(f"{seconds:.1f} seconds, peak anonymous memory of all processes {peak / 1024:.0f} MiB", file=sys.stderr)
    return process.returncode


def family(pid: int) -> list[int]:
    """Return the process and all its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [pid, *(member for child in children.split() for member in family(int(child)))]


def anonymous_kilobytes(pid: int) -> int:
    """Return RssAnon of a process in kB; 0 if it has exited."""
    try:
        found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
