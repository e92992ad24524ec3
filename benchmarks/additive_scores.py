"""Time the scores of additive attention, forward and backward, in Triton kernels and in chunks.

python -m benchmarks.additive_scores [--device cuda] [--output FILE] [B,T,S,A ...]

B sentences, T target and S source positions, A hidden units. Queries and keys are bf16, v and the scores fp32, as in
training with precision=bf16. Both systems run in one process in turns; the figures are medians. `memory_mib` is the
peak of allocated device memory beside the inputs. Where the kernels cannot run (on a CPU), only the chunks are timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import timed_in_turns
from gnmt.device import choose_device
from gnmt.fileio import json_bytes, write_atomically
from gnmt.model.attention import chunked_additive_scores, kernels_run

SHAPES = ("64,25,25,1024", "128,25,25,1024", "64,50,50,1024", "64,20,20,512")
REPETITIONS = 20

Scores = Callable[[Tensor, Tensor, Tensor], Tensor]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shapes", nargs="*", default=SHAPES, metavar="B,T,S,A")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    given = parser.parse_args(arguments)
    device = choose_device(given.device)
    systems: dict[str, Scores] = {"chunks": chunked_additive_scores}
    if device.type == "cuda" and kernels_run(torch.device("cuda", torch.cuda.current_device())):
        from gnmt.model.attention_kernels import fused_additive_scores

        systems["kernels"] = fused_additive_scores
    figures: list[dict[str, Any]] = []
    for shape in given.shapes:
        batch, num_queries, num_keys, width = map(int, shape.split(","))
        parts = random_parts(batch, num_queries, num_keys, width, device)
        runners = {name: training_step(scores, parts) for name, scores in systems.items()}
        seconds = timed_in_turns(runners, REPETITIONS, str(device))
        for name, times in seconds.items():
            memory = peak_mib(runners[name], device)
            figures.append({"shape": shape, "system": name, "milliseconds": 1000 * median(times), "memory_mib": memory})
            print(figures[-1], flush=True)
        if given.output is not None:
            write_atomically(given.output, json_bytes({"figures": figures}))


def random_parts(batch: int, num_queries: int, num_keys: int, width: int, device: torch.device) -> list[Tensor]:
    """Return queries, keys and the vector v."""
    torch.manual_seed(1)
    sizes = (batch, num_queries, width), (batch, num_keys, width)
    parts = [torch.randn(*size, device=device, dtype=torch.bfloat16) for size in sizes]
    return [part.requires_grad_() for part in (*parts, torch.randn(width, device=device))]


def training_step(scores: Scores, parts: list[Tensor]) -> Callable[[], object]:
    """Return a function that runs forward and backward."""
    grad_BTS = torch.randn(len(parts[0]), parts[0].shape[1], parts[1].shape[1], device=parts[0].device)
    return lambda: torch.autograd.grad(scores(*parts), parts, grad_BTS)


def peak_mib(runner: Callable[[], object], device: torch.device) -> float | None:
    """Return the peak of device memory that a call allocates, or None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    runner()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


if __name__ == "__main__":
    main()
