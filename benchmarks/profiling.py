"""Where the time of one call goes: a trace for chrome://tracing or Perfetto, and a table of groups of operators."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.measuring import Runner, synchronize
from gnmt.device import choose_device

# The first pattern that is found in an operator's name decides.
GROUPS = (
    ("optimizer", r"_fused_adam|_fused_sgd|Optimizer\."),
    ("LSTM kernels", r"rnn|lstm"),
    (
        "matrix products",
        r"\b(mm|addmm|addmm_|bmm|baddbmm|addmv|mv|dot|linear|_?linear_pointwise|matmul)\b|mkldnn::_lin",
    ),
    ("random numbers", r"random_|bernoulli|dropout|uniform_|normal_"),
    ("copies and fills", r"copy_|clone|::cat|fill_|zero_|zeros|stack|contiguous|reorder"),
    ("indexing", r"index|gather|scatter|embedding|repeat_interleave|masked"),
    ("softmax, sigmoid, tanh", r"softmax|sigmoid|tanh|::exp"),
    ("sums and norms", r"sum|norm|max|mean|foreach"),
    ("element by element", r"::(add|sub|mul|div|neg|addcmul|addr|where|lt|eq|ge|ne|bitwise\w*|logical\w*|isfinite)_?$"),
)
OTHER = "other"


@dataclass
class Group:
    """seconds: in these operators themselves, all threads' clocks that torch.profiler reads."""

    seconds: float = 0.0
    calls: int = 0
    operators: dict[str, float] = field(default_factory=dict)


class Profiled(Protocol):
    """A workload: what is measured, in a dataclass that says so when it is printed."""

    @property
    def device(self) -> str: ...

    @property
    def label(self) -> str:
        """Its name in file names."""
        ...

    def call(self, name: str) -> Runner:
        """What is profiled, by the system of that name."""
        ...


def profile_workload(workload: Profiled, name: str, folder: Path) -> str:
    """Where the time of one call of the system goes, and its trace in the folder."""
    trace = folder / f"{workload.label}_{name}.trace.json"
    return f"{name}: {workload}\n{profile(workload.call(name), workload.device, trace)}\n"


def profile(runner: Runner, device_name: str, trace: Path) -> str:
    """Writes the trace of one call, after an unmeasured one, and returns the tables of groups and of operators."""
    runner()
    synchronize(device_name)
    on_cuda = choose_device(device_name).type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_cuda else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        runner()
        synchronize(device_name)
    trace.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(trace))
    averages = profiler.key_averages()
    rows = [
        (event.key, (event.self_device_time_total if on_cuda else event.self_cpu_time_total) / 1e6, event.count)
        for event in averages
    ]
    order = "self_cuda_time_total" if on_cuda else "self_cpu_time_total"
    table = averages.table(sort_by=order, row_limit=25, max_name_column_width=60)
    return f"{group_table(grouped(rows))}\n{table}"


def grouped(rows: Iterable[tuple[str, float, int]]) -> dict[str, Group]:
    """rows: an operator's name, the seconds in itself, and its calls."""
    groups: dict[str, Group] = {}
    for name, seconds, calls in rows:
        label = next((label for label, pattern in GROUPS if re.search(pattern, name)), OTHER)
        group = groups.setdefault(label, Group())
        group.seconds += seconds
        group.calls += calls
        group.operators[name] = group.operators.get(name, 0.0) + seconds
    return groups


def group_table(groups: dict[str, Group]) -> str:
    """A row for each group, the slowest first, with its three slowest operators."""
    total = sum(group.seconds for group in groups.values())
    lines = [f"{'operators':24}{'ms':>10}{'share':>8}{'calls':>8}  mostly"]
    for label, group in sorted(groups.items(), key=lambda item: -item[1].seconds):
        slowest = sorted(group.operators, key=lambda name: -group.operators[name])[:3]
        share = group.seconds / total if total else 0.0
        lines.append(f"{label:24}{1000 * group.seconds:10.1f}{share:8.1%}{group.calls:8}  {', '.join(slowest)}")
    return "\n".join([*lines, f"{'all':24}{1000 * total:10.1f}"])
