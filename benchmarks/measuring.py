"""Clocks and memory, for all benchmarks."""

from __future__ import annotations

import multiprocessing
import re
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from gnmt.device import choose_device

Runner = Callable[[], object]


def timed(runner: Runner, device: str) -> float:
    """Seconds of wall clock; a CUDA device has finished before the clock is read."""
    synchronize(device)
    start = time.perf_counter()
    runner()
    synchronize(device)
    return time.perf_counter() - start


def timed_in_turns(runners: Mapping[str, Runner], repetitions: int, device: str) -> dict[str, list[float]]:
    """Seconds of each runner, by name: one unmeasured round, then in turns, `repetitions` rounds."""
    for runner in runners.values():
        runner()
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(repetitions):
        for name, runner in runners.items():
            seconds[name].append(timed(runner, device))
    return seconds


def synchronize(name: str) -> None:
    device = choose_device(name)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_own_process(function: Callable[..., float], *arguments: Any) -> float:
    """What the function returns in a new process with as many threads: its memory is then its own."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return pool.apply(function, arguments)


def peak_resident_mib() -> float:
    """The most that this process ever held; ru_maxrss is no answer on Linux, which hands it on from the parent."""
    status = process_status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 if status is None else status  # macOS: bytes


def resident_mib() -> float:
    """What this process holds now; elsewhere than on Linux the most that it ever held."""
    status = process_status("VmRSS")
    return peak_resident_mib() if status is None else status


def process_status(field: str) -> float | None:
    """MiB of that field of Linux's status file; None where there is none."""
    path = Path("/proc/self/status")
    return int(re.findall(rf"{field}:\s*(\d+) kB", path.read_text())[0]) / 2**10 if path.exists() else None
