"""Timing, memory and tables of all benchmarks."""

from __future__ import annotations

import multiprocessing
import re
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gnmt.device import choose_device

Runner = Callable[[], object]


def timed(runner: Runner, device: str) -> float:
    """Return the wall-clock seconds of a call, synchronized with a CUDA device."""
    synchronize(device)
    start = time.perf_counter()
    runner()
    synchronize(device)
    return time.perf_counter() - start


def timed_in_turns(runners: Mapping[str, Runner], repetitions: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each call by name, after a warm-up round: `repetitions` rounds in turns."""
    for runner in runners.values():
        runner()
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(repetitions):
        for name, runner in runners.items():
            seconds[name].append(timed(runner, device))
    return seconds


def synchronize(name: str) -> None:
    """Wait until a CUDA device has finished its work; return at once for the CPU."""
    device = choose_device(name)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_own_process(function: Callable[..., float], *arguments: Any) -> float:
    """Call a function in a new process with the same number of threads, so that its memory can be measured alone."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return pool.apply(function, arguments)


def peak_resident_mib() -> float:
    """Return the peak resident memory of this process. On Linux ru_maxrss would include the parent's peak."""
    status = process_status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 if status is None else status  # macOS: bytes


def resident_mib() -> float:
    """Return the resident memory of this process; outside Linux, its peak."""
    status = process_status("VmRSS")
    return peak_resident_mib() if status is None else status


def process_status(field: str) -> float | None:
    """Return a field of /proc/self/status in MiB, or None outside Linux."""
    path = Path("/proc/self/status")
    return int(re.findall(rf"{field}:\s*(\d+) kB", path.read_text())[0]) / 2**10 if path.exists() else None


class Column(NamedTuple):
    """A column of the table that scripts/benchmark.py prints.

    Args:
        heading: Text above the column.
        field: Attribute of the figure.
        width: Width in characters. A longer text is cut at its start.
        number: Format of a number, which is right-aligned ("-" for None); None for text.
    """

    heading: str
    field: str
    width: int
    number: str | None = None

    def cell(self, figure: object) -> str:
        value = getattr(figure, self.field)
        if self.number is None:
            return f"{value[-self.width :]:{self.width}}"
        return f"{'-' if value is None else format(value, self.number):>{self.width}}"


def header(columns: Sequence[Column]) -> str:
    """Return the line of headings."""
    return " ".join(f"{column.heading:{'<' if column.number is None else '>'}{column.width}}" for column in columns)


def row(columns: Sequence[Column], figure: object) -> str:
    """Return the line of a figure."""
    return " ".join(column.cell(figure) for column in columns)
