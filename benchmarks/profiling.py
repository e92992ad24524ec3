"""Profile one call: a trace for chrome://tracing or Perfetto, and a table of groups of operators."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch.autograd import DeviceType

from benchmarks.measuring import Runner, synchronize
from gnmt.device import choose_device

# The first matching pattern gives the group of an operator, or on CUDA of a kernel.
GROUPS = (
    ("optimizer", r"_fused_adam|_fused_sgd|Optimizer\.|FusedAdam|FusedSgd"),
    ("LSTM kernels", r"rnn|RNN|lstm|LSTM"),
    (
        "matrix products",
        r"\b(mm|addmm|addmm_|bmm|baddbmm|addmv|mv|dot|linear|_?linear_pointwise|matmul)\b|mkldnn::_lin"
        r"|gemm|gemv|nvjet|cutlass|splitK",
    ),
    ("attention kernels", r"^(scores|gradient|attend)_kernel"),
    ("search kernels", r"^(best|select)_kernel"),
    ("random numbers", r"random_|bernoulli|dropout|uniform_|normal_|distribution_"),
    ("copies and fills", r"copy_|clone|::cat|fill_|zero_|zeros|stack|contiguous|reorder|Memcpy|Memset|Fill|CatArray"),
    ("indexing", r"index|gather|scatter|embedding|repeat_interleave|masked"),
    ("softmax, sigmoid, tanh", r"[Ss]oft[Mm]ax|sigmoid|tanh|::exp"),
    ("sums and norms", r"sum|norm|Norm|max|mean|foreach|reduce_kernel|multi_tensor_apply"),
    (
        "elementwise",
        r"elementwise_kernel|::(add|sub|mul|div|neg|addcmul|addr|where|lt|eq|ge|ne|bitwise\w*|logical\w*|isfinite)_?$",
    ),
)
OTHER = "other"


@dataclass
class Group:
    """Time spent in a group of operators without their children, summed over threads, or in a group of CUDA kernels."""

    seconds: float = 0.0
    calls: int = 0
    operators: dict[str, float] = field(default_factory=dict)


class Profiled(Protocol):
    """A workload that can be profiled; its repr describes it."""

    @property
    def device(self) -> str: ...

    @property
    def label(self) -> str:
        """Return a name for file names."""
        ...

    def call(self, name: str) -> Runner:
        """Return the call to profile, for a system by name."""
        ...


def profile_workload(workload: Profiled, name: str, folder: Path) -> str:
    """Profile one call of a system, write its trace to the folder and return the tables."""
    trace = folder / f"{workload.label}_{name}.trace.json"
    return f"{name}: {workload}\n{profile(workload.call(name), workload.device, trace)}\n"


def profile(runner: Runner, device_name: str, trace: Path) -> str:
    """Write the trace of one call, after a warm-up call, and return the tables of groups and of operators."""
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
        # On CUDA, the time of an operator and of an annotation is that of their kernels, which are events of their own.
        if not on_cuda or (event.device_type != DeviceType.CPU and not event.is_user_annotation)
    ]
    order = "self_cuda_time_total" if on_cuda else "self_cpu_time_total"
    table = averages.table(sort_by=order, row_limit=25, max_name_column_width=60)
    return f"{group_table(grouped(rows))}\n{table}"


def grouped(rows: Iterable[tuple[str, float, int]]) -> dict[str, Group]:
    """Sum rows of (operator, seconds without children, calls) by group."""
    groups: dict[str, Group] = {}
    for name, seconds, calls in rows:
        label = next((label for label, pattern in GROUPS if re.search(pattern, name)), OTHER)
        group = groups.setdefault(label, Group())
        group.seconds += seconds
        group.calls += calls
        group.operators[name] = group.operators.get(name, 0.0) + seconds
    return groups


def group_table(groups: dict[str, Group]) -> str:
    """Return a table of the groups, slowest first, with their three slowest operators."""
    total = sum(group.seconds for group in groups.values())
    lines = [f"{'operators':24}{'ms':>10}{'share':>8}{'calls':>8}  mostly"]
    for label, group in sorted(groups.items(), key=lambda item: -item[1].seconds):
        slowest = sorted(group.operators, key=lambda name: -group.operators[name])[:3]
        share = group.seconds / total if total else 0.0
        lines.append(f"{label:24}{1000 * group.seconds:10.1f}{share:8.1%}{group.calls:8}  {', '.join(slowest)}")
    return "\n".join([*lines, f"{'all':24}{1000 * total:10.1f}"])
